"""`build`: the table of networks, and a network by its name."""

import difflib
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ld3m.errors import ConfigError
from ld3m.networks.alexnet import AlexNet
from ld3m.networks.convnet import ConvNet
from ld3m.networks.initialize import initialize
from ld3m.networks.residual import ResidualNet
from ld3m.networks.resnet import ResNet18
from ld3m.networks.vgg import VGG11
from ld3m.networks.vit import ViT

NETWORKS: dict[str, tuple[Callable[..., nn.Module], set[str]]] = {
    "ConvNet": (ConvNet, {"width", "depth", "norm"}),
    "AlexNet": (AlexNet, set()),
    "VGG11": (VGG11, set()),
    "ResNet18": (ResNet18, set()),
    "ViT": (ViT, {"depth"}),
    "AlexNetCIFAR": (AlexNet, set()),
    "VGG11CIFAR": (partial(VGG11, cifar=True), set()),
    "ResNet18CIFAR": (ResNet18, set()),
    "ViTCIFAR": (partial(ViT, patch=4, depth=6, layer_norm=True), {"depth"}),
    "ConvNet-6": (partial(ConvNet, depth=6), {"width"}),
    "ConvNetBN": (partial(ConvNet, norm="batchnorm"), {"width", "depth"}),
    "ResNetAP-10": (partial(ResidualNet, blocks=(1, 1, 1, 1), is_pooled=True), set()),
    "ResNet18Large": (ResidualNet, set()),
    "ResNet18BN": (partial(ResidualNet, norm="batchnorm", mid=(64, 64)), set()),
    "ResNet50BN": (
        partial(ResidualNet, blocks=(3, 4, 6, 3), has_bottlenecks=True, norm="batchnorm", mid=(64, 64)),
        set(),
    ),
}
"""By name: what is called as (num_classes, resolution, scale=..., **options), and the options of `build` it takes."""


def build(
    name: str,
    *,
    num_classes: int,
    resolution: int,
    width: int | None = None,
    depth: int | None = None,
    norm: str = "instancenorm",
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a network with fresh weights on the CPU, in train mode.

    Args:
        name: one of `NETWORKS`; a suffix such as `-w0.5` multiplies all widths. At 32 px AlexNet, VGG11, ResNet18 and
            ViT stand for their CIFAR versions, which exist at that resolution alone.
        resolution: images are (B, 3, resolution, resolution).
        width, depth, norm: of ConvNet; ViT takes `depth` as well.
        generator: a CPU generator for the weights; None draws from torch's global one.

    Returns:
        A module with `forward(images)` -> (B, num_classes) and `embed(images)` -> (B, features).

    Raises:
        ConfigError: an unknown name, a resolution or an option that the network does not take.
    """
    network = blueprint(name, num_classes=num_classes, resolution=resolution, width=width, depth=depth, norm=norm)
    return initialize(network.to_empty(device="cpu"), generator)


def blueprint(
    name: str,
    *,
    num_classes: int,
    resolution: int,
    width: int | None = None,
    depth: int | None = None,
    norm: str = "instancenorm",
) -> nn.Module:
    """Build a network on the meta device: names and shapes of the parameters, no memory. Arguments as in `build`."""
    base, scale = _parse(name)
    cifar = f"{base}CIFAR"
    if resolution == 32 and cifar in NETWORKS:
        base = cifar
    if base.endswith("CIFAR") and resolution != 32:
        raise ConfigError(f"{base} is for 32 px alone, got resolution={resolution}; take {base.removesuffix('CIFAR')}")
    if num_classes < 1:
        raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
    constructor, known = NETWORKS[base]
    options = {"width": width, "depth": depth, "norm": None if norm == "instancenorm" else norm}
    options = {option: value for option, value in options.items() if value is not None}
    if refused := options.keys() - known:
        raise ConfigError(
            f"{name} takes no {', '.join(sorted(refused))}; leave it out, or scale all widths by the name: {base}-w0.5"
        )
    with torch.device("meta"):
        return constructor(num_classes, resolution, scale=scale, **options)


def base_name(network: str) -> str:
    """Return a network's name without width suffix: "AlexNet-w0.5" and "AlexNetCIFAR" are AlexNets."""
    return re.sub(r"-w[\d.]*$", "", network).removesuffix("CIFAR")


def _parse(name: str) -> tuple[str, float]:
    """Split a name such as "AlexNet-w0.5" into table entry and width factor."""
    base, _, suffix = name.partition("-") if name not in NETWORKS else (name, "", "")
    if (cut := re.fullmatch(r"(.+)-(w.*)", name)) and cut[1] in NETWORKS:
        base, suffix = cut[1], cut[2]
    scale = 1.0
    if suffix:
        number = re.fullmatch(r"w(\d+\.?\d*|\.\d+)", suffix)
        scale = float(number[1]) if number else 0.0
    if base in NETWORKS and scale > 0:
        return base, scale
    spelt = {known.lower(): known for known in NETWORKS}
    close = difflib.get_close_matches(base.lower(), spelt, n=1, cutoff=0.4)
    hint = f"; did you mean {spelt[close[0]]}?" if close else "."
    raise ConfigError(
        f"unknown network {name!r}{hint} Known: {', '.join(NETWORKS)}, each also with a suffix like -w0.5"
    )
