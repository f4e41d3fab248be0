"""ResNet18 with a 3x3 stem of stride 1, no first max pool, and instance norm."""

import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.errors import ConfigError


class ResNet18(nn.Module):
    """Four stages of two basic blocks; the norms keep the name `bn` though they are norms per channel.

    Args:
        resolution: images are (B, 3, resolution, resolution), resolution >= 32.
        scale: factor on every width.
    """

    def __init__(self, num_classes: int, resolution: int, *, scale: float = 1.0) -> None:
        super().__init__()
        if resolution < 32:
            raise ConfigError(
                f"ResNet18 embeds by 4x4 pools of a map of resolution/8 and needs >= 32, got {resolution}"
            )
        widths = [max(1, round(width * scale)) for width in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(widths[0], widths[0])
        self.layer1 = _stage(widths[0], widths[0], stride=1)
        self.layer2 = _stage(widths[0], widths[1], stride=2)
        self.layer3 = _stage(widths[1], widths[2], stride=2)
        self.layer4 = _stage(widths[2], widths[3], stride=2)
        self.classifier = nn.Linear(widths[3], num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the last map, (B, C, R/8, R/8)."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def embed(self, images: Tensor) -> Tensor:
        """Return the map averaged over 4x4 windows, which above 32 px is more than what enters the linear layer."""
        return F.avg_pool2d(self.features(images), 4).flatten(1)  # (B, C, R/8, R/8) -> (B, C * (R/32)**2)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))  # (B, C, R/8, R/8) -> (B, C)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(width, width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.GroupNorm(width, width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def _stage(channels: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(channels, width, stride), BasicBlock(width, width, 1))
