"""Facts about the process that made a run: versions, device, time and memory."""

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import torch


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("ld3m", "torch", "diffusers", "safetensors", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def measured(device: torch.device, *, seed: int, seconds: float, **more: object) -> dict[str, object]:
    """Return the facts for result.json, and `more`."""
    is_cuda = device.type == "cuda"
    cpu = f"cpu ({platform.processor() or platform.machine()})"
    # Linux counts the peak resident size in KiB, macOS in bytes.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "versions": versions(),
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if is_cuda else cpu,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 2),
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in more.items()},
        # Reserved: what captured graphs freed within their own pools counts as theirs.
        "peak_memory_bytes": torch.cuda.max_memory_reserved(device) if is_cuda else resident,
        "peak_memory_of": "CUDA allocator" if is_cuda else "resident size of the process",
    }
