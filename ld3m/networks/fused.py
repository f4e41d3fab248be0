"""A network whose instance norms run as one op with what follows them, for passes that are differentiated once."""

import copy
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.networks.columns import SmallMapConv2d
from ld3m.networks.norm import InstanceNorm
from ld3m.ops.instance_norm_relu_pool import instance_norm_relu_pool


def fused(network: nn.Module) -> nn.Module:
    """Return a twin of the network on the same weights, under the same names, with fewer passes over its maps.

    In every `nn.Sequential`, a group norm with one group per channel, a ReLU and a 2x2 average pooling in a row become
    `ops.instance_norm_relu_pool`. Elsewhere such a norm after a convolution becomes `ops.instance_norm_add_relu`, with
    the ReLU that follows, and the convolution one that takes products for small maps. What takes their places cannot be
    differentiated twice, nor stand inside torch.func. A network without such a norm is returned as it is.
    """
    children = {name: fused(child) for name, child in network.named_children()} | _normed(network)
    if isinstance(network, nn.Sequential):
        children |= _pooled(network)
    if all(child is network._modules[name] for name, child in children.items()):
        return network
    twin = copy.copy(network)
    twin._modules = {**network._modules, **children}
    return twin


def channels_last(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) in the layout that a twin runs fastest in: on a CPU, below float64, channels_last."""
    if not images.is_cpu or images.dtype == torch.float64:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _normed(network: nn.Module) -> dict[str, nn.Module]:
    """Return what takes the place of norms after convolutions, and in a sequence of ReLUs after those."""
    merged: dict[str, nn.Module] = {}
    named = list(network.named_children())
    for (before, conv), (name, norm), (relu, activation) in zip(
        named, named[1:], [*named[2:], ("", None)], strict=False
    ):
        if isinstance(conv, nn.Conv2d) and _is_instance_norm(norm):
            is_active = isinstance(network, nn.Sequential) and isinstance(activation, nn.ReLU)
            merged[name] = InstanceNorm(norm, relu=is_active)
            if is_active:
                merged[relu] = nn.Identity()
            if SmallMapConv2d.takes(conv):
                merged[before] = SmallMapConv2d(conv)
    return merged


def _pooled(layers: nn.Sequential) -> dict[str, nn.Module]:
    """Return what takes the place of which layer: the op for a norm, nothing for the ReLU and pooling after it."""
    merged: dict[str, nn.Module] = {}
    named = list(layers.named_children())
    for (name, norm), (relu, activation), (pool, pooling) in zip(named, named[1:], named[2:], strict=False):
        is_halving = isinstance(pooling, nn.AvgPool2d) and (pooling.kernel_size, pooling.stride) == (2, 2)
        if _is_instance_norm(norm) and isinstance(activation, nn.ReLU) and is_halving and not pooling.padding:
            merged |= {name: _InstanceNormReluPool(norm), relu: nn.Identity(), pool: nn.Identity()}
    return merged


def _is_instance_norm(norm: nn.Module) -> TypeGuard[nn.GroupNorm]:
    return isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels and norm.affine


class _InstanceNormReluPool(nn.Module):
    """The op as a layer, on the parameters of the norm that it stands for."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps, self._parameters = norm.eps, norm._parameters

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # under autocast a convolution before it gives another
        if x.shape[2] % 2 or x.shape[3] % 2:  # pooling drops the last row or column, which the norm still has
            return F.avg_pool2d(instance_norm_relu_pool(x, self.weight, self.bias, self.eps, pool=False), 2)
        return instance_norm_relu_pool(x, self.weight, self.bias, self.eps)
