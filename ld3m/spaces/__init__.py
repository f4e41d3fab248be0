"""The spaces to optimise in: latents through the chain, latents through the decoder, features of a GAN, or pixels."""

from typing import Any

from ld3m.config import DistillConfig, one_of
from ld3m.errors import ConfigError
from ld3m.spaces.base import DiffusionSetup, Space, SpaceSetup, keep_rows, only_rows
from ld3m.spaces.glad import GladSetup, GladSpace
from ld3m.spaces.latent import LatentSetup, LatentSpace
from ld3m.spaces.pixel import PixelSetup, PixelSpace

__all__ = [
    "SPACES",
    "DiffusionSetup",
    "GladSpace",
    "LatentSpace",
    "PixelSpace",
    "Space",
    "SpaceSetup",
    "keep_rows",
    "only_rows",
    "setup_of",
]

SPACES: dict[str, SpaceSetup[Any]] = {
    "ld3m": LatentSetup(has_chain=True),
    "autoencoder": LatentSetup(has_chain=False),
    "glad": GladSetup(),
    "pixel": PixelSetup(),
}


def setup_of(config: DistillConfig) -> SpaceSetup[Any]:
    """Return the set-up of the space that the settings name.

    Raises:
        ConfigError: there is no such space, or a setting is given that other spaces alone take.
    """
    one_of(config.space, "space", tuple(SPACES))
    for name, value in vars(config).items():
        spaces = [space for space, setup in SPACES.items() if name in setup.settings]
        is_given = not (value is None or value is False or value == "auto")
        if is_given and spaces and config.space not in spaces:
            raise ConfigError(
                f"{name} is for space {' or '.join(spaces)}, and the space is {config.space!r}; leave {name} out"
            )
    return SPACES[config.space]
