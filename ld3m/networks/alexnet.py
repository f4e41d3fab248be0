"""AlexNet as distillation papers use it: five convolutions of stride 1, no norm, no dropout, one linear layer."""

from torch import Tensor, nn

from ld3m.errors import ConfigError


class AlexNet(nn.Module):
    """Five convolutions and three max pools; the linear layer sees a map of one eighth of the resolution.

    Args:
        resolution: images are (B, 3, resolution, resolution), resolution >= 8.
        scale: factor on every width.
    """

    def __init__(self, num_classes: int, resolution: int, *, scale: float = 1.0) -> None:
        super().__init__()
        if resolution < 8:
            raise ConfigError(f"AlexNet pools three times and needs resolution >= 8, got {resolution}")
        a, b, c, d, e = (max(1, round(width * scale)) for width in (128, 192, 256, 192, 192))
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.fc = nn.Linear(e * (resolution // 8) ** 2, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the linear layer."""
        return self.features(images).flatten(1)  # (B, C, R/8, R/8) -> (B, C * (R/8)**2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.embed(images))
