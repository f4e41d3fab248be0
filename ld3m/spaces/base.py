"""What every space offers the loop: parameters to optimise, and images rendered from them."""

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Space(Protocol):
    """A differentiable map from a few learnable tensors to images.

    `parameters` are leaves by name, one row an image; only those that require a gradient are optimised.
    """

    parameters: dict[str, Tensor]

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        """Render images (n, 3, H, W) in [0, 1] of the rows (n,) int64; `noise_seed` names the draw of the noise."""

    def project(self) -> None:
        """Put the parameters back where they are allowed to be, after an optimiser step."""

    def hold(self, *, retain: float, micro_batch: int, decoder_batch: int | None) -> None:
        """Change what is kept from the forward pass and made at once; images and gradients stay, up to rounding.

        Only spaces that a memory plan is made for have it.
        """


def to_pixels(images: Tensor, resolution: int) -> Tensor:
    """Bring a generator's images, about [−1, 1], to `resolution` with antialiasing and into [0, 1]."""
    if images.shape[-1] != resolution:
        size = (resolution, resolution)
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return ((images + 1) / 2).clamp(0, 1)
