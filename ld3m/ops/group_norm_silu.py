"""Group normalisation, with SiLU in one pass or alone, for frozen networks: a gradient in the input only.

With n = (x - mean) / std over a group, u = weight * n + bias, y = u * sigmoid(u) and d = weight * silu'(u) * dy:
dx = (d - mean(d) - n * mean(d * n)) / std. Only x, mean and 1 / std are kept; n and u are computed again. Without SiLU
y = u and d = weight * dy.
"""

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import choose, missing, native

LAST = torch.channels_last


def group_norm_silu_reference(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, silu: bool = True
) -> Tensor:
    """Eager definition that every backend is tested against."""
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


def supports(backend: str, x: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Say why `backend` cannot take these tensors; "" when it can."""
    if reason := missing(backend, x):
        return reason
    if backend == "native" and (not x.is_cpu or x.dtype not in (torch.float32, torch.bfloat16)):
        return f"native is for float32 and bfloat16 on cpu, got {x.dtype} on {x.device.type}"
    return ""


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    silu: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Normalise each sample's groups of channels, scale and shift by channel, and apply SiLU.

    Differentiable once, in x. Other layouts than channels_last are copied into it first.

    Args:
        x: (B, C, H, W).
        groups: divides C.
        weight, bias: (C,), frozen, of the dtype of x.
        silu: False leaves SiLU out. ATen's own normalisation has no channels_last on a GPU.
        backend: "auto", "native", "triton" or "eager".

    Returns:
        (B, C, H, W) in channels_last.
    """
    _check(x, groups, weight, bias)
    x, weight, bias = x.contiguous(memory_format=LAST), weight.contiguous(), bias.contiguous()
    chosen = choose(backend, supports, x, weight, bias)
    return _group_norm_silu(x, weight, bias, groups, eps, silu, chosen)[0]


def _check(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"group_norm_silu needs floating x (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    channels = x.shape[1]
    if groups < 1 or channels < 1 or channels % groups:
        raise InputError(f"group_norm_silu needs groups that divide x's {channels} channels, got {groups}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value.shape != (channels,) or value.dtype != x.dtype or value.device != x.device:
            raise InputError(
                f"group_norm_silu needs {name} ({channels},) {x.dtype} on {x.device}, "
                f"got {tuple(value.shape)} {value.dtype} on {value.device}; cast it once, beside the other weights"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"group_norm_silu has no gradient in {name}; call {name}.requires_grad_(False), "
                "or train with torch.nn.functional.group_norm and silu"
            )


@torch.library.custom_op("ld3m::group_norm_silu", mutates_args=())
def _group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and 1 / std (B, groups), in float32 or better."""
    if backend == "native":
        outputs = _empty_outputs(x, groups)
        pointers = [t.data_ptr() for t in (x, weight, bias, *outputs)]
        native.group_norm_silu_fwd(
            *pointers, *_extents(x), groups, eps, silu, x.dtype == torch.bfloat16, torch.get_num_threads()
        )
        return outputs
    if backend == "triton":
        from ld3m.kernels.group_norm_silu import group_norm_silu_fwd  # Triton may be absent

        return group_norm_silu_fwd(x, weight, bias, groups, eps, silu)
    out, mean, rstd = torch.native_group_norm(_as_aten_takes(x), weight, bias, *_sizes(x), groups, eps)
    return _strided_like(F.silu(out) if silu else out, x), _precise(mean), _precise(rstd)


@_group_norm_silu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, backend: str):
    return _empty_outputs(x, groups)


@torch.library.custom_op("ld3m::group_norm_silu_bwd", mutates_args=())
def _group_norm_silu_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    backend: str,
) -> Tensor:
    if backend == "native":
        grad_x = torch.empty_like(x)
        pointers = [t.data_ptr() for t in (grad, x, weight, bias, mean, rstd, grad_x)]
        native.group_norm_silu_bwd(
            *pointers, *_extents(x), groups, silu, x.dtype == torch.bfloat16, torch.get_num_threads()
        )
        return grad_x
    if backend == "triton":
        from ld3m.kernels.group_norm_silu import group_norm_silu_bwd

        return group_norm_silu_bwd(grad, x, weight, bias, mean, rstd, groups, silu)
    strided_like, x, grad = x, _as_aten_takes(x), _as_aten_takes(grad)
    if x.dtype.itemsize < 4:  # eager statistics are as coarse as x
        u, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)
    elif silu:
        scale = rstd.repeat_interleave(x.shape[1] // groups, 1) * weight  # (B, groups) -> (B, C)
        shift = bias - mean.repeat_interleave(x.shape[1] // groups, 1) * scale
        u = torch.addcmul(shift[..., None, None], x, scale[..., None, None])
    else:
        u = x  # not looked at
    d = torch.ops.aten.silu_backward(grad, u) if silu else grad
    wanted = [True, False, False]
    dx, _, _ = torch.ops.aten.native_group_norm_backward(d, x, mean, rstd, weight, *_sizes(x), groups, wanted)
    return _strided_like(dx, strided_like)


@_group_norm_silu_bwd.register_fake
def _(grad: Tensor, x: Tensor, *_others: Any) -> Tensor:
    return torch.empty_like(x)


def _empty_outputs(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(len(x), groups, dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _extents(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _as_aten_takes(x: Tensor) -> Tensor:
    """Return x in a layout of ATen's group normalisation: channels_last as well on a CPU alone."""
    return x if x.is_cpu else x.contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _precise(statistics: Tensor) -> Tensor:
    return statistics.to(torch.promote_types(statistics.dtype, torch.float32))


def _strided_like(result: Tensor, x: Tensor) -> Tensor:
    return result if result.stride() == x.stride() else torch.empty_like(x).copy_(result)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # no zeros for mean and 1 / std
    x, weight, bias, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    grad = grad.contiguous(memory_format=LAST)  # mean and 1 / std never leave this file
    return _group_norm_silu_bwd(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None, None, None


def _refuse(ctx: Any, *grads: Tensor) -> NoReturn:
    raise BackendError("group_norm_silu has no second derivative; use torch.nn.functional.group_norm and silu there")


_group_norm_silu.register_autograd(_backward, setup_context=_setup_context)
_group_norm_silu_bwd.register_autograd(_refuse)
