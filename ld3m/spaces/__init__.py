"""What is optimised: latents through the chain, latents through the decoder, features of a GAN, or pixels."""

from ld3m.spaces.base import Space
from ld3m.spaces.glad import GladSpace
from ld3m.spaces.latent import ChainSettings, LatentSpace
from ld3m.spaces.pixel import PixelSpace

__all__ = ["ChainSettings", "GladSpace", "LatentSpace", "PixelSpace", "Space"]
