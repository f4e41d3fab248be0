"""A 3x3 convolution as a matrix product, for small maps: on a CPU oneDNN's weight gradient takes two to ten times as
long as the product where a batch has fewer pixels than the convolution has channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ld3m.ops.backends import is_plain, is_transformed


class SmallMapConv2d(nn.Module):
    """A convolution on its own parameters that takes products where those are faster."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self._parameters = layer.stride, layer._parameters

    def forward(self, x: Tensor) -> Tensor:
        pixels = len(x) * (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])
        is_float = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if x.is_cpu and is_float and pixels <= len(self.weight) and is_plain() and not is_transformed():
            return _Product.apply(x, self.weight, self.bias, self.stride[0])
        return F.conv2d(x, self.weight, self.bias, self.stride, 1)

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        return (
            isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.padding, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
            and layer.stride in ((1, 1), (2, 2))
            and layer.padding_mode == "zeros"
        )


class _Product(torch.autograd.Function):
    """Rows are pixels, columns the 3x3 window's channels: what a weight in channels_last is without a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        columns, matrix = _columns(x, stride), weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        rows = columns @ matrix.T if bias is None else torch.addmm(bias, columns, matrix.T)
        ctx.save_for_backward(columns, matrix)
        ctx.shape, ctx.stride, ctx.has_bias = x.shape, stride, bias is not None
        height, width = (-(-side // stride) for side in x.shape[2:])
        return rows.view(len(x), height, width, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        columns, matrix = ctx.saved_tensors
        B, C, H, W = ctx.shape
        rows = grad.permute(0, 2, 3, 1).reshape(len(columns), -1)  # (B, D, h, w) -> (B * h * w, D)
        d_x = d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (rows.T @ columns).view(-1, 3, 3, C).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            h, w = grad.shape[2:]
            windows, padded = (rows @ matrix).view(B, h, w, 3, 3, C), grad.new_zeros(B, H + 2, W + 2, C)
            s = ctx.stride
            for i in range(3):
                for j in range(3):
                    padded[:, i : i + s * h : s, j : j + s * w : s] += windows[:, :, :, i, j]
            d_x = padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        return d_x, d_weight, rows.sum(0) if ctx.has_bias else None, None


def _columns(x: Tensor, stride: int) -> Tensor:
    """Return (B, C, H, W) as (B * h * w, 9 C), the windows of a 3x3 convolution padded by one."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # -> (B, H + 2, W + 2, C)
    B, H, W, C = padded.shape
    height, width = ((side - 3) // stride + 1 for side in (H, W))
    b, r, c, _ = padded.stride()
    windows = padded.as_strided((B, height, width, 3, 3, C), (b, stride * r, stride * c, r, c, 1))
    return windows.reshape(B * height * width, 9 * C)
