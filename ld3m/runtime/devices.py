"""The device that a computation runs on, its memory, and its dtype."""

import errno
import gc
import math
import re
import resource
from collections.abc import Sequence

import torch

from ld3m.errors import ConfigError, Ld3mError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}  # that settings may name
_OUT_OF_MEMORY = (
    r"can't allocate memory|ALLOC(?:ATION)?_FAILED|CUDA (?:driver )?error: out of memory|\[CUDA\]: out of memory|"
    r"(?:FIND|GET) was unable to find an engine to execute|Cannot allocate memory|"  # cuDNN, when no workspace fits
    r"can't start new thread|could not create a (?:primitive|memory)|bad_alloc|std::bad_array_new_length"
)
_FAULTS_OF_A_CALL = r"size|shape|dimension|dtype|[Ee]xpected|must|invalid|not implemented|device-side assert|illegal"
_LEAST_FREE = 64 * 2**20
# Where a control group's memory stands, in versions 2 and 1: folder, limit, use, and what of it the kernel can drop
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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


def moved(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Return tensors of one dtype on a device, all of them by one copy that is not waited for."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(device, non_blocking=True)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def release_memory(device: torch.device) -> None:
    """Give back what nothing uses any more: tensors in reference cycles, and the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException, needed: int = 0) -> bool:
    """Whether an error says that a device, or the process, has no more memory to give.

    Known by its class, by the number of the system's error, and by the words of those who have neither; or by the error
    that it was raised in the handling of, as by the capture of a CUDA graph that fails on its way out. An error of
    other words, from a library that tells no reason, counts where the process is at its limit or the machine has next
    to nothing left: that is looked at.

    Args:
        needed: bytes of what was done, where that is known.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # The CPU allocator, the libraries of a GPU, its driver and Triton have no class of their own for it.
    if not isinstance(error, RuntimeError) or isinstance(error, Ld3mError | NotImplementedError | RecursionError):
        return False
    if error.__context__ is not None and is_out_of_memory(error.__context__, needed):
        return True
    text = str(error)
    return bool(re.search(_OUT_OF_MEMORY, text)) or (not _names_the_fault(text) and is_memory_short(needed))


def is_memory_short(needed: int = 0) -> bool:
    """Whether this process could not take so many bytes more, by its own limit, its group's, the machine's or a GPU's.

    A few are needed in any case, without which libraries fail for reasons they do not tell.
    """
    left = min(_below_the_limit(), _below_the_group(), _available(), _left_on_gpu())
    return left < max(needed, _LEAST_FREE)


def _names_the_fault(text: str) -> bool:
    """Whether an error of torch's says what is wrong with the call, such as shapes or dtypes."""
    return bool(re.search(_FAULTS_OF_A_CALL, text))


def _below_the_limit() -> float:
    """Return how much address space is left to the process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _first_number("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or pages is None:
        return math.inf
    return limit - pages * resource.getpagesize()


def _below_the_group() -> float:
    """Return how much memory is left to the control group, what it holds of files left out."""
    for folder, most, now, kept in _GROUPS:
        limit, used = _first_number(f"{folder}/{most}"), _first_number(f"{folder}/{now}")
        if limit is not None and used is not None:
            files = re.search(rf"^{kept} (\d+)", _text_of(f"{folder}/memory.stat"), re.MULTILINE)
            return limit - used + (int(files[1]) if files else 0)
    return math.inf


def _available() -> float:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text_of("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else math.inf


def _left_on_gpu() -> float:
    if not torch.cuda.is_initialized():
        return math.inf
    try:
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    except RuntimeError:  # of a device that an error has left unusable
        return math.inf


def _first_number(path: str) -> int | None:
    word = (_text_of(path).split() or ["max"])[0]
    return int(word) if word.isdecimal() else None


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (OSError, MemoryError):
        return ""


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the floating-point dtype, which may be given by its name; raise for what weights cannot have."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ConfigError(f"dtype is one of {', '.join(DTYPES)}, or a torch dtype of 16 to 64 bits; got {dtype!r}")
    return found
