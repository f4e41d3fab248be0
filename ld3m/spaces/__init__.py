"""The spaces to optimise in: latents through the chain, latents through the decoder, features of a GAN, or pixels."""

from typing import Any

from ld3m.spaces.base import DiffusionSetup, Space, SpaceSetup
from ld3m.spaces.glad import GladSetup, GladSpace
from ld3m.spaces.latent import LatentSetup, LatentSpace
from ld3m.spaces.pixel import PixelSetup, PixelSpace

__all__ = ["SPACES", "DiffusionSetup", "GladSpace", "LatentSpace", "PixelSpace", "Space", "SpaceSetup"]

SPACES: dict[str, SpaceSetup[Any]] = {
    "ld3m": LatentSetup(has_chain=True),
    "autoencoder": LatentSetup(has_chain=False),
    "glad": GladSetup(),
    "pixel": PixelSetup(),
}
