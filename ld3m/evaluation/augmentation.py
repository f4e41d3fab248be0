"""Augmentations of a protocol, applied to each batch: DSA, or random resized crops, flips and CutMix."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.evaluation.photographic import flip, jitter_and_light, shuffle_patches
from ld3m.matching import dsa
from ld3m.selection.combine import one_tile

AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True)
class Mix:
    """Images that each got a box of another one.

    Args:
        partners: (B,) positions of the images that gave.
        kept: share of the pixels that stayed.
    """

    partners: Tensor
    kept: float


def resized_crop_and_flip(
    images: Tensor, generator: torch.Generator, area: tuple[float, float] | None = None
) -> Tensor:
    """Cut a random box out of each image, enlarge it to the whole, and mirror it left and right half of the time."""
    count, side = len(images), images.shape[-1]
    top, left, height, width = draw_boxes(count, side, generator, area)
    is_flipped = torch.rand(count, generator=generator) < 0.5
    rows, columns = _positions(top, height, side), _positions(left, width, side)  # (B, H)
    columns = torch.where(is_flipped[:, None], columns.flip(1), columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), 3)  # (B, H, H, 2), x first
    grid = (2 * grid / max(side - 1, 1) - 1).to(images)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def draw_boxes(
    count: int, side: int, generator: torch.Generator, shares: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw top, left, height and width, each (count,), of boxes inside squares: areas uniform, the logarithm of the
    aspect ratio uniform (Szegedy et al. 2015).

    Of ten draws the first that fits into the square is taken; where none does, the whole square is.
    """
    area = side**2 * _uniform((count, TRIES), *(shares or AREA), generator)
    ratio = _uniform((count, TRIES), math.log(RATIO[0]), math.log(RATIO[1]), generator).exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()]).round().long().clamp_min(1)  # height, width
    fits = (sizes <= side).all(0)  # (count, TRIES)
    first = fits.long().argmax(1)
    chosen = sizes[:, torch.arange(count), first]  # (2, count)
    height, width = torch.where(fits.any(1), chosen, side)
    top, left = ((torch.rand(count, generator=generator) * (side - size + 1)).long() for size in (height, width))
    return top, left, height, width


def cutmix(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Mix]:
    """Paste into each image one box, the same for the whole batch, of another (Yun et al. 2019, λ from Beta(1, 1)).

    Returns:
        images (B, 3, H, W), and which they were mixed with.
    """
    height, width = images.shape[-2:]
    partners = torch.randperm(len(images), generator=generator)
    share, row, column = torch.rand(3, generator=generator).tolist()  # Beta(1, 1) is uniform
    half_height, half_width = (int(size * math.sqrt(1 - share)) // 2 for size in (height, width))
    row, column = int(row * height), int(column * width)
    rows = slice(max(row - half_height, 0), min(row + half_height, height))
    columns = slice(max(column - half_width, 0), min(column + half_width, width))
    mixed = images.clone()
    mixed[..., rows, columns] = images[partners.to(images.device)][..., rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, Mix(partners, 1 - pasted / (height * width))


def _positions(first: Tensor, size: Tensor, side: int) -> Tensor:
    """Return where in the image `side` equally spaced pixels of a crop lie, (B, side): pixel centres, edges clamped."""
    steps = (torch.arange(side) + 0.5) * (size[:, None] / side) - 0.5
    return first[:, None] + steps.clamp_min(0).minimum(size[:, None] - 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


# name: what is done to images (B, 3, H, H), and which images were mixed, if any
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], tuple[Tensor, Mix | None]]] = {
    "dsa": lambda images, generator: (dsa.augment(images, generator), None),
    "crop-cutmix": lambda images, generator: cutmix(resized_crop_and_flip(images, generator), generator),
    "crop-jitter-cutmix": lambda images, generator: cutmix(
        jitter_and_light(resized_crop_and_flip(images, generator, (0.5, 1.0)), generator), generator
    ),
    "flip-cutmix": lambda images, generator: cutmix(flip(images, generator), generator),
    "tiles-cutmix": lambda images, generator: cutmix(
        resized_crop_and_flip(shuffle_patches(images, 2, generator), generator, (0.5, 1.0)), generator
    ),
    "none": lambda images, generator: (images, None),
}


def augmentation(name: str, tiles: int) -> Callable[[Tensor, torch.Generator], tuple[Tensor, Mix | None]]:
    """Return what a protocol does to a batch; of tiled images after a tile of each has been cut out and enlarged."""
    augment = AUGMENTATIONS[name]
    if tiles == 1:
        return augment
    return lambda images, generator: augment(one_tile(images, tiles, generator), generator)
