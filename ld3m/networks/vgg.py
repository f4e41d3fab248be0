"""VGG11 with instance norm and one linear layer."""

from torch import Tensor, nn

from ld3m.errors import ConfigError

LAYOUT = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512)


class VGG11(nn.Module):
    """Eight convolutions, each followed by a norm per channel and ReLU.

    Args:
        resolution: images are (B, 3, resolution, resolution).
        cifar: pool a fifth time down to 1x1, for 32 px; otherwise an adaptive max pool ends at 7x7 whatever the map is,
            which repeats entries of a smaller one (4x4 after five pools at 128 px).
        scale: factor on every width.
    """

    def __init__(self, num_classes: int, resolution: int, *, cifar: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        if resolution < 32:
            raise ConfigError(f"VGG11 pools five times and needs resolution >= 32, got {resolution}")
        layers, channels = [], 3
        for item in (*LAYOUT, "pool"):
            if item == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            width = max(1, round(item * scale))
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.Identity() if cifar else nn.AdaptiveMaxPool2d(7)
        self.classifier = nn.Linear(channels * (1 if cifar else 49), num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the linear layer."""
        return self.pool(self.features(images)).flatten(1)  # (B, C, size, size) -> (B, C * size**2)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))
