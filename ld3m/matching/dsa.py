"""Differentiable siamese augmentation (DSA, Zhao & Bilen 2021), mode S: one of six operations for a whole batch.

Each primitive is a pure function of images (B, 3, H, W) and explicit parameters, one per image (B,) or one for all
(1,). `draw` draws parameters, `apply` uses them, so that real and synthetic images can share one `Draw`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.errors import InputError
from ld3m.runtime.devices import moved

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
MAX_SCALE, MAX_DEGREES, CROP, CUTOUT = 1.2, 15.0, 0.125, 0.5


@dataclass(frozen=True)
class Draw:
    """One operation of `OPERATIONS` and its parameters, each (num_images,), or (1,) when shared."""

    operation: str
    parameters: tuple[Tensor, ...]

    def on(self, device: torch.device) -> "Draw":
        """Return the draw with its parameters on a device."""
        return self if self.parameters[0].device == device else draws_on([self], device)[0]


def augment(images: Tensor, generator: torch.Generator, *, shared: bool = False) -> Tensor:
    """Augment images (..., 3, H, H) by one operation, with parameters of their own or one shared set."""
    _check(images)
    return apply(images, draw(generator, images.shape[:-3].numel(), images.shape[-1], shared=shared))


def draw(generator: torch.Generator, num_images: int, resolution: int, *, shared: bool = False) -> Draw:
    """Draw an operation, uniformly, and its parameters.

    Args:
        generator: a CPU generator.
        resolution: side of the images in pixels.
        shared: one set of parameters for all images (siamese), which then fits any number of them.
    """
    count = 1 if shared else num_images
    operation = OPERATIONS[int(torch.randint(len(OPERATIONS), (1,), generator=generator))]

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    def integer(low: int, high: int) -> Tensor:  # both included
        return torch.randint(low, high + 1, (count,), generator=generator)

    match operation:
        case "color":
            parameters = uniform(), uniform(), uniform()
        case "crop":
            reach = int(CROP * resolution + 0.5)
            parameters = integer(-reach, reach), integer(-reach, reach)
        case "cutout":
            last = resolution - _cutout_size(resolution) % 2
            parameters = integer(0, last), integer(0, last)
        case "flip":
            parameters = (uniform(),)
        case "scale":
            parameters = zoom(uniform()), zoom(uniform())
        case "rotate":
            parameters = (angle(uniform()),)
    return Draw(operation, parameters)


def draws_on(draws: Sequence[Draw], device: torch.device) -> list[Draw]:
    """Return draws with their parameters on a device, all of them by one copy that is not waited for."""
    numbers = [p.float() for draw in draws for p in draw.parameters]  # whole ones are pixels, which are exact
    parts = iter(moved(numbers, device))
    return [Draw(d.operation, tuple(next(parts).type(p.dtype) for p in d.parameters)) for d in draws]


def apply(images: Tensor, draw: Draw) -> Tensor:
    """Apply a draw to images (..., 3, H, W); differentiable, and deterministic for a fixed draw."""
    _check(images)
    batch = images.flatten(0, -4)  # (..., 3, H, W) -> (B, 3, H, W)
    parameters = draw.on(images.device).parameters
    if any(len(p) not in (1, len(batch)) for p in parameters):
        raise InputError(
            f"the draw has parameters for {len(parameters[0])} images, got {len(batch)} images; "
            "draw for that many, or with shared=True"
        )
    return _APPLY[draw.operation](batch, *parameters).view(images.shape)


def color(images: Tensor, u_brightness: Tensor, u_saturation: Tensor, u_contrast: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast."""
    return contrast(saturation(brightness(images, u_brightness), u_saturation), u_contrast)


def brightness(images: Tensor, u: Tensor) -> Tensor:
    """Add u - 0.5."""
    return images + (_per_image(u, images) - 0.5)


def saturation(images: Tensor, u: Tensor) -> Tensor:
    """Multiply the distance from each pixel's mean over channels by 2u."""
    mean = images.mean(1, keepdim=True)  # (B, 3, H, W) -> (B, 1, H, W)
    return mean + 2 * _per_image(u, images) * (images - mean)


def contrast(images: Tensor, u: Tensor) -> Tensor:
    """Multiply the distance from each image's mean by u + 0.5."""
    mean = images.mean((1, 2, 3), keepdim=True)  # (B, 3, H, W) -> (B, 1, 1, 1)
    return mean + (_per_image(u, images) + 0.5) * (images - mean)


def crop(images: Tensor, shift_rows: Tensor, shift_columns: Tensor) -> Tensor:
    """Return out[r, c] = images[r + shift_rows, c + shift_columns], and 0 where that is outside."""
    return _shift(_shift(images, shift_rows, 2), shift_columns, 3)


def cutout(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Set a square of half the side to 0: from rows - size // 2, columns - size // 2 on, as far as it is inside."""
    height, width = images.shape[2:]
    hole = _span(rows, height)[:, None, :, None] & _span(columns, width)[:, None, None, :]  # -> (B, 1, H, W)
    return images.masked_fill(hole, 0)


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirror left and right where u < 0.5."""
    return torch.where(_per_image(u, images) < 0.5, images.flip(3), images)


def scale(images: Tensor, sx: Tensor, sy: Tensor) -> Tensor:
    """Resample so that the content shrinks by sx in width and sy in height, with zeros around it."""
    zero = torch.zeros_like(sx)
    return _resample(images, torch.stack([sx, zero, zero, zero, sy, zero], 1))


def rotate(images: Tensor, theta: Tensor) -> Tensor:
    """Resample, turned by theta (radians), with zeros around."""
    cos, sin, zero = theta.cos(), theta.sin(), torch.zeros_like(theta)
    return _resample(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def zoom(u: Tensor) -> Tensor:
    """Return the factor of `scale` for uniform u."""
    return u * (MAX_SCALE - 1 / MAX_SCALE) + 1 / MAX_SCALE


def angle(u: Tensor) -> Tensor:
    """Return the angle of `rotate` for uniform u, in radians."""
    return (u - 0.5) * 2 * math.radians(MAX_DEGREES)


def _check(images: Tensor) -> None:
    if images.ndim < 4 or images.shape[-3] != 3 or images.shape[-2] != images.shape[-1]:
        raise InputError(f"augmentation needs square images (..., 3, H, H), got {tuple(images.shape)}")


def _per_image(parameter: Tensor, images: Tensor) -> Tensor:
    return parameter.to(images.dtype).view(-1, 1, 1, 1)  # (B,) -> (B, 1, 1, 1)


def _shift(images: Tensor, shift: Tensor, dim: int) -> Tensor:
    size = images.shape[dim]
    index = torch.arange(size, device=images.device) + shift[:, None]  # (B,) -> (B, size)
    index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
    inside = (index >= 0) & (index < size)
    return images.gather(dim, index.clamp(0, size - 1).expand(images.shape)).masked_fill(~inside, 0)


def _cutout_size(side: int) -> int:
    return int(CUTOUT * side + 0.5)


def _span(offset: Tensor, side: int) -> Tensor:
    first = offset[:, None] - _cutout_size(side) // 2  # (B,) -> (B, 1)
    position = torch.arange(side, device=offset.device)
    return (position >= first) & (position < first + _cutout_size(side))


def _resample(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample at output coordinates mapped by an affine matrix, given as six numbers for each image."""
    matrix = matrix.to(images.dtype).view(-1, 2, 3).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


_APPLY = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}
