"""The device that a computation runs on, its memory, and its dtype."""

import gc
import re

import torch

from ld3m.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}  # that settings may name
_OUT_OF_MEMORY = r"can't allocate memory|ALLOC_FAILED|CUDA error: out of memory|\[CUDA\]: out of memory"


def default_device() -> str:
    """Return what runs where nobody says."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(device: torch.device | str | None) -> torch.device:
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the process, has no more memory to give."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator, the libraries of a GPU, its driver and Triton have no class of their own for it.
    return isinstance(error, RuntimeError) and bool(re.search(_OUT_OF_MEMORY, str(error)))


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the floating-point dtype, which may be given by its name; raise for what weights cannot have."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ConfigError(f"dtype is one of {', '.join(DTYPES)}, or a torch dtype of 16 to 64 bits; got {dtype!r}")
    return found
