"""The device that a computation runs on."""

import torch

from ld3m.errors import ConfigError


def usable(device: torch.device | str | None) -> torch.device:
    """Return the device, a GPU where there is one for None; raise when it cannot be used here."""
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); leave it out, or say cpu") from error
