"""A convolution with frozen weights, which is all that a frozen generator needs: its input need not be kept."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Convolve (B, C, H, W) as `F.conv2d` does; differentiable once, in x alone, with nothing but the weight kept."""
    return FrozenConv2d.apply(x, weight, bias, stride, padding)


class FrozenConv2d(torch.autograd.Function):
    """The convolution of `frozen_conv2d`: `apply` takes its arguments, all of them, by position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        [weight] = ctx.saved_tensors
        x = _unread_on_a_gpu(ctx.shape, grad, weight) if grad.is_cuda else grad.new_empty(1).expand(ctx.shape)
        dilation, is_transposed, output_padding, groups, wanted = (1, 1), False, (0, 0), 1, (True, False, False)
        layout = ctx.stride, ctx.padding, dilation, is_transposed, output_padding, groups
        grad, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *layout, wanted)
        return grad, None, None, None, None


def _unread_on_a_gpu(shape: torch.Size, grad: Tensor, weight: Tensor) -> Tensor:
    """Return what stands for the input, of which its shape and layout alone are read.

    ATen copies the gradient into that layout before it calls cuDNN, so it has to be that of the others.
    """
    last = torch.channels_last
    is_last = any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in (grad, weight))
    layout = last if is_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
