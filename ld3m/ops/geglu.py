"""GEGLU (Shazeer 2020): one half of the channels, gated by the GELU of the other, in one pass.

With value v, gate x, Φ the normal distribution function and φ its density: y = v x Φ(x), and of a cotangent g of y
v gets g x Φ(x) and x gets g v (Φ(x) + x φ(x)). The halves alone are kept.
"""

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import choose, missing, native


def geglu_reference(halves: Tensor) -> Tensor:
    """Eager definition that every backend is tested against."""
    value, gate = halves.chunk(2, -1)
    return value * F.gelu(gate)


def supports(backend: str, halves: Tensor) -> str:
    """Say why `backend` cannot take these tensors; "" when it can."""
    if backend == "triton":
        return "geglu has no Triton kernel"
    if reason := missing(backend, halves):
        return reason
    if backend == "native" and (not halves.is_cpu or halves.dtype not in (torch.float32, torch.bfloat16)):
        return f"native is for float32 and bfloat16 on cpu, got {halves.dtype} on {halves.device.type}"
    return ""


def geglu(halves: Tensor, *, backend: str = "auto") -> Tensor:
    """Multiply the first half of the last axis by the GELU of the second. Differentiable once.

    Args:
        halves: (..., 2 D).
        backend: "auto", "native" or "eager".

    Returns:
        (..., D), contiguous.
    """
    if not halves.is_floating_point() or halves.ndim < 1 or halves.shape[-1] % 2:
        raise InputError(
            f"geglu needs floating halves (..., 2 D), got {halves.dtype} {tuple(halves.shape)}; "
            "project to twice the width before the call"
        )
    halves = halves.contiguous()
    return _geglu(halves, choose(backend, supports, halves))


@torch.library.custom_op("ld3m::geglu", mutates_args=())
def _geglu(halves: Tensor, backend: str) -> Tensor:
    if backend == "eager":
        return geglu_reference(halves)
    out = _empty_output(halves)
    is_bfloat16 = halves.dtype == torch.bfloat16
    native.geglu_fwd(halves.data_ptr(), out.data_ptr(), *_extents(halves), is_bfloat16, torch.get_num_threads())
    return out


@_geglu.register_fake
def _(halves: Tensor, backend: str) -> Tensor:
    return _empty_output(halves)


@torch.library.custom_op("ld3m::geglu_bwd", mutates_args=())
def _geglu_bwd(grad: Tensor, halves: Tensor, backend: str) -> Tensor:
    if backend == "eager":
        value, gate = halves.chunk(2, -1)
        return torch.cat([grad * F.gelu(gate), torch.ops.aten.gelu_backward(grad * value, gate)], -1)
    result = torch.empty_like(halves)
    pointers = [t.data_ptr() for t in (grad, halves, result)]
    native.geglu_bwd(*pointers, *_extents(halves), halves.dtype == torch.bfloat16, torch.get_num_threads())
    return result


@_geglu_bwd.register_fake
def _(grad: Tensor, halves: Tensor, backend: str) -> Tensor:
    return torch.empty_like(halves)


def _empty_output(halves: Tensor) -> Tensor:
    return halves.new_empty(*halves.shape[:-1], halves.shape[-1] // 2)


def _extents(halves: Tensor) -> tuple[int, int]:
    width = halves.shape[-1] // 2
    return halves.shape[:-1].numel(), width


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    halves, ctx.backend = inputs
    ctx.save_for_backward(halves)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _geglu_bwd(grad.contiguous(), *ctx.saved_tensors, ctx.backend), None


def _refuse(ctx: Any, grad: Tensor) -> NoReturn:
    raise BackendError("geglu has no second derivative; use geglu_reference there")


_geglu.register_autograd(_backward, setup_context=_setup_context)
_geglu_bwd.register_autograd(_refuse)
