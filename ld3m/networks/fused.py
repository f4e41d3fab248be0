"""A network whose instance norm, ReLU and average pooling run as one op, for passes that are differentiated once."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.ops.instance_norm_relu_pool import instance_norm_relu_pool


def fused(network: nn.Module) -> nn.Module:
    """Return a twin of the network on the same weights, under the same names, with fewer passes over its maps.

    In every `nn.Sequential`, a group norm with one group per channel, a ReLU and a 2x2 average pooling in a row become
    `ops.instance_norm_relu_pool`, which cannot be differentiated twice, nor inside torch.func. A network without such a
    row is returned as it is.
    """
    children = {name: fused(child) for name, child in network.named_children()}
    if isinstance(network, nn.Sequential):
        children |= _merged(network)
    if all(child is network._modules[name] for name, child in children.items()):
        return network
    twin = copy.copy(network)
    twin._modules = {**network._modules, **children}
    return twin


def _merged(layers: nn.Sequential) -> dict[str, nn.Module]:
    """Return what takes the place of which layer: the op for a norm, nothing for the ReLU and pooling after it."""
    merged: dict[str, nn.Module] = {}
    named = list(layers.named_children())
    for (name, norm), (relu, activation), (pool, pooling) in zip(named, named[1:], named[2:], strict=False):
        if not isinstance(norm, nn.GroupNorm) or norm.num_groups != norm.num_channels or not norm.affine:
            continue
        is_halving = isinstance(pooling, nn.AvgPool2d) and (pooling.kernel_size, pooling.stride) == (2, 2)
        if isinstance(activation, nn.ReLU) and is_halving and not pooling.padding:
            merged |= {name: _InstanceNormReluPool(norm), relu: nn.Identity(), pool: nn.Identity()}
    return merged


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
