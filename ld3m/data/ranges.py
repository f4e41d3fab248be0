"""The two ranges of a picture's values: [0, 1] of files and data sets, [−1, 1] of generators."""

from torch import Tensor
from torch.nn import functional as F


def to_signed(images: Tensor) -> Tensor:
    """Map images from [0, 1] to [−1, 1]."""
    return images * 2 - 1


def from_signed(images: Tensor) -> Tensor:
    """Map images from about [−1, 1] to [0, 1], and clamp what lies outside."""
    return ((images + 1) / 2).clamp(0, 1)


def resize(images: Tensor, resolution: int) -> Tensor:
    """Resize square images (N, 3, H, W) with antialiasing; those of this size stay as they are."""
    if images.shape[-1] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def to_pixels(images: Tensor, resolution: int) -> Tensor:
    """Bring a generator's images, about [−1, 1], to `resolution` and into [0, 1]."""
    return from_signed(resize(images, resolution))
