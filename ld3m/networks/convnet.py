"""ConvNet: blocks of convolution, norm, ReLU and average pooling, then one linear layer (Gidaris & Komodakis 2018)."""

from torch import Tensor, nn

from ld3m.errors import ConfigError

NORMS = ("instancenorm", "batchnorm", "layernorm", "groupnorm", "none")


class ConvNet(nn.Module):
    """The usual student of data set distillation.

    Args:
        resolution: images are (B, 3, resolution, resolution).
        width: channels of every block.
        depth: blocks, each halves the map; by default 3 at 32 px, 4 at 64, 5 at 128, 6 at 256: the map ends at 4x4.
        norm: one of `NORMS`; instance norm is a group norm with one group per channel, so it has no running statistics.
        scale: factor on the width.
    """

    def __init__(
        self,
        num_classes: int,
        resolution: int,
        *,
        width: int = 128,
        depth: int | None = None,
        norm: str = "instancenorm",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if depth is None:
            depth = max(1, (resolution // 4).bit_length() - 1)
        if depth < 1 or width < 1 or resolution >> depth < 1:
            raise ConfigError(
                f"ConvNet needs depth >= 1, width >= 1 and a resolution of at least 2 ** depth pixels, "
                f"got depth={depth}, width={width}, resolution={resolution}; lower depth= or raise resolution="
            )
        self.width = width = max(1, round(width * scale))
        layers, channels, size = [], 3, resolution
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), *_norm(norm, width, size), nn.ReLU(), nn.AvgPool2d(2)]
            channels, size = width, size // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size * size, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the linear layer: the last map, flattened in the order (channel, row, column)."""
        return self.features(images).flatten(1)  # (B, width, size, size) -> (B, width * size * size)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def _norm(norm: str, channels: int, size: int) -> list[nn.Module]:
    match norm:
        case "instancenorm":
            return [nn.GroupNorm(channels, channels)]
        case "groupnorm":
            if channels % 4:
                raise ConfigError(f"norm='groupnorm' has 4 groups, so width must be a multiple of 4, got {channels}")
            return [nn.GroupNorm(4, channels)]
        case "batchnorm":
            return [nn.BatchNorm2d(channels)]
        case "layernorm":
            return [nn.LayerNorm([channels, size, size])]
    return []
