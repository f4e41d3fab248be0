"""Networks for grey images, which come as three equal channels: the first is seen, by a first convolution of one."""

from typing import cast

import torch
from torch import Tensor, nn

from ld3m.networks.initialize import initialize


class FirstChannel(nn.Module):
    """Leave the first channel of images."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1]


def one_channel(network: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Return a network whose first convolution, fresh from the generator, takes the first of three channels alone.

    A network without a convolution of three channels is returned as it is.
    """
    found = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    name, first = next(found, ("", None))
    if first is None or first.in_channels != 3 or not name:
        return network
    size, stride, padding = cast("list[tuple[int, int]]", [first.kernel_size, first.stride, first.padding])
    grey = nn.Conv2d(1, first.out_channels, size, stride, padding, bias=first.bias is not None)
    network.set_submodule(name, initialize(grey, generator))
    return nn.Sequential(FirstChannel(), network)
