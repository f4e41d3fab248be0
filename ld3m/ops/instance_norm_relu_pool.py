"""Instance norm, ReLU and 2x2 average pooling in one pass: what follows each convolution of a ConvNet.

With n = (x - mean) / std over a plane (one channel of one image) and u = weight * n + bias, the result is the mean of
max(u, 0) over windows. With g the cotangent of u (the window's over 4 where u > 0, else 0), that of x is
weight / std * (g - mean(g) - n * mean(g * n)), of weight the sum of g * n and of bias the sum of g over planes. Only x,
mean and 1 / std are kept; n and u are recomputed.
"""

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import choose, missing, native

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/instance_norm_relu_pool.cu


def instance_norm_relu_pool_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, pool: bool = True
) -> Tensor:
    """Eager definition that every backend is tested against."""
    active = F.relu(F.group_norm(x, x.shape[1], weight, bias, eps))
    return F.avg_pool2d(active, 2) if pool else active


def supports(backend: str, x: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Say why `backend` cannot take these tensors; "" when it can."""
    if reason := missing(backend, x):
        return reason
    is_right = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _layout(x) == torch.channels_last)
    if backend == "native" and x.is_cpu and not is_right:
        return f"native is for float32, and bfloat16 in channels_last, on cpu, got {x.dtype} {x.stride()}"
    if backend != "eager" and x.dtype not in _CODES:
        return f"{backend} is for float32, bfloat16 and float16, got {x.dtype}"
    return ""


def instance_norm_relu_pool(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, pool: bool = True, backend: str = "auto"
) -> Tensor:
    """Normalise each channel of each image, scale and shift by channel, apply ReLU and halve the map by averaging.

    Differentiable once, in all three tensors. The native kernels of a CPU take channels_last as it is; all else is
    copied into contiguous (B, C, H, W) first.

    Args:
        x: (B, C, H, W), H and W even.
        weight, bias: (C,), of the dtype of x.
        pool: False leaves out the pooling; H and W are then free.
        backend: "auto", "native", "triton" or "eager".

    Returns:
        (B, C, H/2, W/2), or (B, C, H, W) without pooling; of the dtype of x.

    Raises:
        InputError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot take the inputs.
    """
    _check(x, weight, bias, pool)
    chosen = choose(backend, supports, x, weight, bias)
    is_last = chosen == "native" and x.is_cpu and _layout(x) == torch.channels_last
    x = x.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
    weight, bias = weight.contiguous(), bias.contiguous()
    return _instance_norm_relu_pool(x, weight, bias, eps, pool, chosen)[0]


def _check(x: Tensor, weight: Tensor, bias: Tensor, pool: bool) -> None:
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise InputError(
            f"instance_norm_relu_pool needs floating x (B, C, H, W) with C, H, W > 0, got {x.dtype} {tuple(x.shape)}"
        )
    if pool and (x.shape[2] % 2 or x.shape[3] % 2):
        raise InputError(
            f"instance_norm_relu_pool needs an even map to pool, got {tuple(x.shape[2:])}; crop it or pass pool=False"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value.shape != x.shape[1:2] or value.dtype != x.dtype or value.device != x.device:
            raise InputError(
                f"instance_norm_relu_pool needs {name} ({x.shape[1]},) {x.dtype} on {x.device}, "
                f"got {tuple(value.shape)} {value.dtype} on {value.device}; convert it before the call"
            )


@torch.library.custom_op("ld3m::instance_norm_relu_pool", mutates_args=())
def _instance_norm_relu_pool(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and 1 / std (B, C), in float32 or better."""
    if backend == "eager":
        normed, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), x.shape[1], eps)
        active = F.relu(normed)
        return F.avg_pool2d(active, 2) if pool else active, _precise(mean), _precise(rstd)
    outputs = _empty_outputs(x, pool)
    if backend == "triton":
        from ld3m.kernels.instance_norm_relu_pool import instance_norm_relu_pool_fwd  # Triton may be absent

        instance_norm_relu_pool_fwd(x, weight, bias, *outputs, eps, pool)
    elif x.is_cuda:
        x = _aligned(x)
        pointers = [t.data_ptr() for t in (x, weight, bias, *outputs)]
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream().cuda_stream
            native.instance_norm_relu_pool_fwd_cuda(*pointers, *x.shape, eps, pool, _CODES[x.dtype], stream)
    else:
        pointers = [t.data_ptr() for t in (x, weight, bias, *outputs)]
        if _layout(x) == torch.channels_last:
            is_bfloat16 = x.dtype == torch.bfloat16
            native.instance_norm_relu_pool_last_fwd(
                *pointers, *x.shape, eps, pool, is_bfloat16, torch.get_num_threads()
            )
        else:
            native.instance_norm_relu_pool_fwd(*pointers, *x.shape, eps, pool, torch.get_num_threads())
    return outputs


@_instance_norm_relu_pool.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(x, pool)


@torch.library.custom_op("ld3m::instance_norm_relu_pool_bwd", mutates_args=())
def _instance_norm_relu_pool_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    pool: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cotangents of x, weight and bias."""
    if backend == "eager":
        return _eager_bwd(grad, x, weight, bias, mean.to(x.dtype), rstd.to(x.dtype), eps, pool)
    outputs = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    sums = x.new_empty(2, *x.shape[:2], dtype=torch.float32)  # of each plane, for weight and bias
    if backend == "triton":
        from ld3m.kernels.instance_norm_relu_pool import instance_norm_relu_pool_bwd  # Triton may be absent

        instance_norm_relu_pool_bwd(grad, x, weight, bias, mean, rstd, sums, *outputs, pool)
    elif x.is_cuda:
        x = _aligned(x)
        pointers = [t.data_ptr() for t in (grad, x, weight, bias, mean, rstd, sums, *outputs)]
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream().cuda_stream
            native.instance_norm_relu_pool_bwd_cuda(*pointers, *x.shape, pool, _CODES[x.dtype], stream)
    else:
        pointers = [t.data_ptr() for t in (grad, x, weight, bias, mean, rstd, sums, *outputs)]
        if _layout(x) == torch.channels_last:
            is_bfloat16 = x.dtype == torch.bfloat16
            native.instance_norm_relu_pool_last_bwd(*pointers, *x.shape, pool, is_bfloat16, torch.get_num_threads())
        else:
            native.instance_norm_relu_pool_bwd(*pointers, *x.shape, pool, torch.get_num_threads())
    return outputs


@_instance_norm_relu_pool_bwd.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    pool: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _eager_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    normed = F.group_norm(x, x.shape[1], weight, bias, eps)
    if pool:
        grad = torch.ops.aten.avg_pool2d_backward(grad, normed, [2, 2], [2, 2], [0, 0], False, True, None)
    grad = torch.ops.aten.threshold_backward(grad, normed, 0)
    return torch.ops.aten.native_group_norm_backward(
        grad, x, mean, rstd, weight, *_sizes(x), x.shape[1], [True, True, True]
    )


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _precise(statistics: Tensor) -> Tensor:
    return statistics.to(torch.promote_types(statistics.dtype, torch.float32))


def _empty_outputs(x: Tensor, pool: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, C, H, W = x.shape
    size = (B, C, H // 2, W // 2) if pool else x.shape
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_layout(x))
    mean = x.new_empty(B, C, dtype=torch.promote_types(x.dtype, torch.float32))
    return out, mean, torch.empty_like(mean)


def _layout(x: Tensor) -> torch.memory_format:
    """Return channels_last where x is in it and in no other."""
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 8 == 0 else x.clone()  # the CUDA kernels read pairs of pixels


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)  # no zeros for mean and 1 / std
    x, weight, bias, ctx.eps, ctx.pool, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(
    ctx: Any, grad: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:  # mean and 1 / std never leave this file
    if grad is None:
        return (None,) * 6
    grad = grad.contiguous(memory_format=_layout(ctx.saved_tensors[0]))
    grads = _instance_norm_relu_pool_bwd(grad, *ctx.saved_tensors, ctx.eps, ctx.pool, ctx.backend)
    return *grads, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise BackendError(
        "instance_norm_relu_pool has no second derivative; use instance_norm_relu_pool_reference for one"
    )


_instance_norm_relu_pool.register_autograd(_backward, setup_context=_setup_context)
_instance_norm_relu_pool_bwd.register_autograd(_no_second_derivative)
