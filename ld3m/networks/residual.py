"""Residual networks of the published evaluations: ResNet-18 and -50 with batch or instance norm, and ResNetAP-10.

The stem is that of Kim et al. 2022 (IDC) by resolution: "large" 7x7 and a pool of 4 in all, "mid" 3x3 and a pool of 2,
"small" 3x3 alone. ResNetAP strides by average pooling instead of strided convolutions. He et al. 2016 for the rest.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.errors import ConfigError

WIDTHS = (64, 128, 256, 512)


class ResidualNet(nn.Module):
    """A stem, four stages of residual blocks, a global mean and a linear layer.

    Args:
        resolution: images are (B, 3, resolution, resolution), resolution >= 8.
        blocks: of each stage.
        has_bottlenecks: blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide at their end.
        norm: "batchnorm", or "instancenorm" as GroupNorm with one group per channel.
        is_pooled: stride by average pooling (ResNetAP).
        mid: resolutions up to the first have the small stem, up to the second the mid one, above the large one.
        scale: factor on every width.
    """

    has_fan_out_init = True  # convolutions start from N(0, 2 / (k * k * C_out)), see `initialize`

    def __init__(
        self,
        num_classes: int,
        resolution: int,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        has_bottlenecks: bool = False,
        norm: str = "instancenorm",
        is_pooled: bool = False,
        mid: tuple[int, int] = (64, 128),
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if resolution < 8:
            raise ConfigError(f"residual networks halve the map three times and need resolution >= 8, got {resolution}")
        widths = [max(1, round(width * scale)) for width in WIDTHS]
        size = "small" if resolution <= mid[0] else "mid" if resolution <= mid[1] else "large"
        self.stem = _stem(size, widths[0], norm, is_pooled)
        channels, stages = widths[0], []
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            kind = Bottleneck if has_bottlenecks else Basic
            layers: list[nn.Module] = []
            for k in range(count):
                layers.append(kind(channels, width, 2 if stage and not k else 1, norm, is_pooled))
                channels = width * kind.expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the linear layer: the last map averaged, (B, C)."""
        return self.stages(self.stem(images)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


class Block(nn.Module):
    """A residual block: convolutions, a shortcut, their sum and ReLU."""

    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, norm: str, is_pooled: bool, convolutions: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(*convolutions)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width * self.expansion:
            self.shortcut = nn.Sequential(
                _conv(channels, width * self.expansion, 1, 1 if is_pooled else stride),
                *([nn.AvgPool2d(stride)] if is_pooled and stride > 1 else []),
                _norm(norm, width * self.expansion),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class Basic(Block):
    """Two 3x3 convolutions; the first, or an average pooling after it, strides."""

    def __init__(self, channels: int, width: int, stride: int, norm: str, is_pooled: bool) -> None:
        first = _strided(channels, width, stride, norm, is_pooled)
        convolutions = (*first, _conv(width, width, 3), _norm(norm, width))
        super().__init__(channels, width, stride, norm, is_pooled, convolutions)


class Bottleneck(Block):
    """A 1x1, a 3x3 and a 1x1 convolution; the middle one, or an average pooling after it, strides."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, norm: str, is_pooled: bool) -> None:
        convolutions = (
            *(_conv(channels, width, 1), _norm(norm, width), nn.ReLU()),
            *_strided(width, width, stride, norm, is_pooled),
            *(_conv(width, 4 * width, 1), _norm(norm, 4 * width)),
        )
        super().__init__(channels, width, stride, norm, is_pooled, convolutions)


def _stem(size: str, width: int, norm: str, is_pooled: bool) -> nn.Sequential:
    kernel, stride = (7, 1 if is_pooled else 2) if size == "large" else (3, 1)
    pool = nn.AvgPool2d(4 if size == "large" else 2) if is_pooled else nn.MaxPool2d(3, 2, 1)
    layers = [_conv(3, width, kernel, stride), _norm(norm, width), nn.ReLU()]
    return nn.Sequential(*layers, *([] if size == "small" else [pool]))


def _strided(channels: int, width: int, stride: int, norm: str, is_pooled: bool) -> list[nn.Module]:
    layers = [_conv(channels, width, 3, 1 if is_pooled else stride), _norm(norm, width), nn.ReLU()]
    return [*layers, nn.AvgPool2d(stride)] if is_pooled and stride > 1 else layers


def _conv(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)


def _norm(norm: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batchnorm" else nn.GroupNorm(channels, channels)
