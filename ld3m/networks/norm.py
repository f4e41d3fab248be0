"""Norms per channel with a residual and ReLU after them, as one op where a twin of the network has put one."""

import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.ops.instance_norm_add_relu import instance_norm_add_relu


def add_relu(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return the ReLU of the normed x (B, C, H, W), with a residual added before it."""
    if isinstance(norm, InstanceNorm):
        return norm(x, residual, relu=True)
    normed = norm(x)
    return F.relu(normed if residual is None else normed + residual)


class InstanceNorm(nn.Module):
    """The op as a layer, on the parameters of the group norm that it stands for.

    Args:
        relu: whether ReLU is a part of it, as in a sequence.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm, *, relu: bool) -> None:
        super().__init__()
        self.eps, self.relu, self._parameters = norm.eps, relu, norm._parameters

    def forward(self, x: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
        x = x.to(self.weight.dtype)  # under autocast a convolution before it gives another
        return instance_norm_add_relu(x, self.weight, self.bias, residual, self.eps, relu=relu or self.relu)
