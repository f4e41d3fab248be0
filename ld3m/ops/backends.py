"""The choice of an op's backend: native (C++ or CUDA in `ld3m._C`), Triton, or eager, its definition."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

import ld3m
from ld3m.errors import BackendError

BACKENDS = ("native", "triton", "eager")  # in order of preference

# Read once, here: torch.compile(fullgraph=True) cannot trace an import or a look at the environment.
FORCED = os.environ.get("LD3M_BACKEND", "auto")
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run on CPU tensors, slowly
HAS_TRITON = importlib.util.find_spec("triton") is not None

try:
    from ld3m import _C as native
except ImportError as error:
    native = None  # pyright: ignore[reportAssignmentType]  # not to be called: `missing` says so first
    _not_built = f"ld3m._C cannot be imported ({error}); reinstall ld3m with a C++ compiler at hand"
else:
    _not_built = ""
    if native.__version__ != ld3m.__version__:
        _not_built = f"ld3m._C was built for {native.__version__}, the package is {ld3m.__version__}; reinstall ld3m"
_refusals: dict[int | None, str] = {}  # by device
_no_cuda = ""
if native is not None:
    if not native.has_cuda:
        _no_cuda = "ld3m._C was built without CUDA; reinstall ld3m with nvcc at hand"
    elif not native.cuda_driver_version():
        _no_cuda = "there is no CUDA driver here, which a machine without an NVIDIA GPU does not need"
    elif native.cuda_driver_version() // 1000 < native.cuda_runtime_version() // 1000:
        _no_cuda = (
            f"ld3m._C has CUDA {native.cuda_runtime_version() / 1000:.1f}, the driver is for "
            f"{native.cuda_driver_version() / 1000:.1f}; update the driver"
        )


def missing(backend: str, x: Tensor) -> str:
    """Say why `backend` is not there for tensors like `x`, whatever the op; "" when it is."""
    if backend == "native":
        if _not_built:
            return _not_built
        if x.is_cuda and (reason := _no_cuda or _no_code(x.device.index)):
            return reason
        return "" if x.is_cuda or x.is_cpu else f"native is for cpu and cuda, got {x.device.type}"
    if backend == "triton":
        if not HAS_TRITON:
            return "Triton is not installed; pip install triton"
        if not x.is_cuda and not (INTERPRET and x.is_cpu):
            return f"Triton runs on cuda, or on cpu when TRITON_INTERPRET=1, got {x.device.type}"
        return "float64 has no Triton kernel" if x.dtype == torch.float64 else ""
    return ""


@torch.compiler.assume_constant_result  # of the device, which a trace cannot ask
def _no_code(index: int | None) -> str:
    """Say why the CUDA code that was built does not run on a device; "" when it does."""
    if index not in _refusals:
        assert native is not None  # or `missing` had said so
        major, minor = torch.cuda.get_device_capability(index)
        built = [divmod(int(arch), 10) for arch in native.cuda_archs.split(",")]
        # Machine code runs from its own minor version on; the last is there as PTX too, for all that came later.
        runs = (major, minor) >= built[-1] or any(major == own and minor >= least for own, least in built)
        reason = f"ld3m._C was built for {native.cuda_archs}, the device is {major}{minor}"
        _refusals[index] = "" if runs else f"{reason}; set LD3M_CUDA_ARCHS and reinstall"
    return _refusals[index]


def describe() -> dict[str, str]:
    """Say of native and triton what is there, or why it is not."""
    built = _not_built
    if native is not None and not built:
        built = f"{native.__file__}, CUDA: {_no_cuda or 'yes'}"
    found = "not installed; pip install triton"
    if HAS_TRITON:
        import ld3m.kernels

        kernels = ld3m.kernels.__path__[0]
        found = f"{importlib.metadata.version('triton')}, kernels in {kernels}" + (", interpreted" if INTERPRET else "")
    return {"native": built, "triton": found}


def choose(backend: str, supports: Callable[..., str], *tensors: Tensor | None) -> str:
    """Return the backend to use: the one asked for by argument or by LD3M_BACKEND, else the first that can.

    Args:
        backend: "auto", or one of `BACKENDS`.
        supports: of the op, (backend, *tensors) -> why it cannot take them, "" when it can.

    Raises:
        BackendError: the backend asked for cannot take the tensors, or a torch.func or forward-mode transform is
            active: derivatives would come out as zeros there without an error.
    """
    if is_transformed():
        raise BackendError(
            "ld3m.ops cannot stand inside torch.func transforms or forward-mode AD; use plain torch operations there"
        )
    wanted = FORCED if backend == "auto" else backend
    if wanted == "auto":
        return next(name for name in BACKENDS if not supports(name, *tensors))
    if wanted not in BACKENDS:
        raise BackendError(f"backend is auto, {', '.join(BACKENDS)}; got {wanted!r} (by argument or LD3M_BACKEND)")
    if reason := supports(wanted, *tensors):
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors if t is not None)
        raise BackendError(f"{wanted} cannot take {shapes}: {reason}, or leave the choice to backend='auto'")
    return wanted


@torch.compiler.assume_constant_result  # a traced call would always be true; the compiled code is guarded by the stack
def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active."""
    is_in_func = peek_interpreter_stack() is not None  # pyright: ignore[reportUnnecessaryComparison]
    return is_in_func or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
