"""Instance norm with what follows it in a residual network: the sum with a residual and ReLU, ReLU alone, or nothing.

With n and u as in `instance_norm_relu_pool`, r the residual and g the cotangent where u + r > 0, else 0, r gets g, and
x, weight and bias what they get there. Only x, the residual, mean and 1 / std are kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ld3m.errors import InputError
from ld3m.ops.backends import choose, is_plain, missing, native

LAST = torch.channels_last


def instance_norm_add_relu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, eps: float = 1e-5, *, relu: bool = True
) -> Tensor:
    """Eager definition that the native kernel is tested against."""
    normed = F.group_norm(x, x.shape[1], weight, bias, eps)
    if residual is not None:
        normed = normed + residual
    return F.relu(normed) if relu else normed


def supports(backend: str, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> str:
    """Say why `backend` cannot take these tensors; "" when it can."""
    if backend == "triton":
        return "instance_norm_add_relu has no Triton kernel"
    if reason := missing(backend, x):
        return reason
    if backend == "native" and (not x.is_cpu or x.dtype not in (torch.float32, torch.bfloat16)):
        return f"native is for float32 and bfloat16 on cpu, got {x.dtype} on {x.device.type}"
    if backend == "native" and not is_plain():
        return "native can be neither traced nor watched by a dispatch mode"
    return ""


def instance_norm_add_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    *,
    relu: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Normalise each channel of each image, scale and shift by channel, add the residual and apply ReLU.

    Differentiable in all tensors, once where native. The eager form is plain torch operations.

    Args:
        x: (B, C, H, W).
        weight, bias: (C,), of the dtype of x.
        residual: like x; needs `relu`.
        relu: False leaves ReLU out.
        backend: "auto", "native" or "eager".

    Returns:
        (B, C, H, W), where native in channels_last.

    Raises:
        InputError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot take the inputs.
    """
    _check(x, weight, bias, residual, relu)
    if choose(backend, supports, x, weight, bias, residual) == "eager":
        return instance_norm_add_relu_reference(x, weight, bias, residual, eps, relu=relu)
    return _Native.apply(x, weight, bias, residual, eps, relu)


def _check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> None:
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise InputError(
            f"instance_norm_add_relu needs floating x (B, C, H, W) with C, H, W > 0, got {x.dtype} {tuple(x.shape)}"
        )
    if residual is not None and not relu:
        raise InputError("instance_norm_add_relu adds a residual before ReLU alone; add it to the result")
    for name, value, shape in (
        ("weight", weight, x.shape[1:2]),
        ("bias", bias, x.shape[1:2]),
        ("residual", residual, x.shape),
    ):
        if value is not None and (value.shape != shape or value.dtype != x.dtype or value.device != x.device):
            raise InputError(
                f"instance_norm_add_relu needs {name} {tuple(shape)} {x.dtype} on {x.device}, "
                f"got {tuple(value.shape)} {value.dtype} on {value.device}; convert it before the call"
            )


class _Native(torch.autograd.Function):
    """The kernels, called without torch.library, whose dispatch would take as long as they do."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool
    ) -> Tensor:
        x, weight, bias = x.contiguous(memory_format=LAST), weight.contiguous(), bias.contiguous()
        residual = None if residual is None else residual.contiguous(memory_format=LAST)
        out, mean = torch.empty_like(x), x.new_empty(x.shape[:2], dtype=torch.float32)
        rstd = torch.empty_like(mean)
        native.instance_norm_add_relu_fwd(
            *_pointers(x, weight, bias, residual, out, mean, rstd), *x.shape, eps, relu, *_settings(x)
        )
        ctx.save_for_backward(x, weight, bias, residual, mean, rstd)
        ctx.relu = relu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        sums = x.new_empty(2, *x.shape[:2], dtype=torch.float32)  # of each plane, for weight and bias
        d_x, d_weight, d_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        d_residual = None if residual is None else torch.empty_like(residual)
        native.instance_norm_add_relu_bwd(
            *_pointers(grad, x, weight, bias, residual, mean, rstd, sums, d_x, d_weight, d_bias, d_residual),
            *x.shape, ctx.relu, *_settings(x),
        )  # fmt: skip
        return d_x, d_weight, d_bias, d_residual, None, None


def _pointers(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def _settings(x: Tensor) -> tuple[bool, int]:
    return x.dtype == torch.bfloat16, torch.get_num_threads()
