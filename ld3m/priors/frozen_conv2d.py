"""A convolution with frozen weights, which is all that a frozen generator needs: its input need not be kept."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Convolve (B, C, H, W) as `F.conv2d` does; differentiable once, in x alone, with nothing but the weight kept."""
    return _FrozenConv2d.apply(x, weight, bias, stride, padding)


class _FrozenConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        [weight] = ctx.saved_tensors
        x = grad.new_empty(1).expand(ctx.shape)  # its shape alone is read
        dilation, is_transposed, output_padding, groups, wanted = (1, 1), False, (0, 0), 1, (True, False, False)
        layout = ctx.stride, ctx.padding, dilation, is_transposed, output_padding, groups
        grad, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *layout, wanted)
        return grad, None, None, None, None
