"""The device that a computation runs on, and its precision."""

import gc

import torch

from ld3m.config.distill import DTYPES
from ld3m.errors import ConfigError


def default_device() -> str:
    """Return what runs where nobody says."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable(device: torch.device | str | None) -> torch.device:
    """Return the device, the default for None; raise when it cannot be used here."""
    name = str(device or default_device())
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0].partition(". ")[0][:160]  # of unknown devices torch lists all it knows
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); leave it out, or say cpu") from error


def release_memory(device: torch.device) -> None:
    """Give back what nothing uses any more: tensors in reference cycles, and the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def precision(dtype: torch.dtype | str) -> torch.dtype:
    """Return the floating-point dtype, which may be given by its name; raise for what weights cannot have."""
    found = getattr(torch, dtype) if isinstance(dtype, str) and dtype in DTYPES else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ConfigError(f"dtype is one of {', '.join(DTYPES)}, or a torch dtype of 16 to 64 bits; got {dtype!r}")
    return found
