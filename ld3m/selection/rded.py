"""Crops that a teacher has the lowest loss on, tiled (RDED, Sun et al. 2024, arXiv 2312.03526).

Of each of at most `candidates` images of a class, the best of some random square crops, of 8 to 100 % of the area, is
kept; of these the tiles² · ipc best are tiled. Unlike the published code, crops are cut out of images that have been
brought to the resolution, and the result is kept without JPEG.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.config import SelectConfig
from ld3m.data.coreset import random_of
from ld3m.data.ranges import resize
from ld3m.selection.base import Candidates, Choice, Measured, losses_and_errors

_LEAST_AREA = 0.08
_AT_ONCE = 16  # images whose crops the teacher sees at once


def tiles(resolution: int) -> int:
    """Return the tiles per side: one for small images, as published for CIFAR."""
    return 1 if resolution < 64 else 2


def measure(
    networks: Sequence[nn.Module], candidates: Candidates, config: SelectConfig, generator: torch.Generator
) -> Measured:
    """Return the lowest loss of each image's crops, infinite for those not looked at, and the crop."""
    (teacher,) = networks
    data, members = candidates.data, candidates.members
    device, side, per_side = next(teacher.parameters()).device, data.resolution, config.tiles or tiles(data.resolution)
    pool = max(config.candidates, config.ipc * per_side**2)
    drawn = random_of(torch.arange(len(members)), pool, generator).sort().values
    boxes = draw_squares(len(drawn) * config.crops, side, generator).unflatten(0, (len(drawn), config.crops))
    score = torch.full((len(members),), torch.inf, dtype=torch.float64)
    chosen = torch.zeros(len(members), 3, dtype=torch.int64)
    for part, own in zip(drawn.split(_AT_ONCE), boxes.split(_AT_ONCE), strict=True):
        images = data.train.batch(members[part], device).split(1)
        squares = zip(images, own.tolist(), strict=True)
        crops = [
            _padded(image[..., y : y + s, x : x + s], side // per_side, side) for image, b in squares for y, x, s in b
        ]
        losses, _ = losses_and_errors(teacher, data.normalize(torch.cat(crops)), candidates.label)
        lowest = losses.unflatten(0, own.shape[:2]).min(1)
        score[part], chosen[part] = lowest.values, own[torch.arange(len(part)), lowest.indices]
    return {"score": score, "boxes": chosen}


def choose(
    candidates: Candidates, measured: Mapping[str, Tensor], count: int, config: SelectConfig, generator: torch.Generator
) -> Choice:
    """Tile the crops of the lowest loss, lowest first."""
    per_side = config.tiles or tiles(candidates.data.resolution)
    best = measured["score"].argsort(stable=True)[: count * per_side**2]
    shape = (count, per_side**2)
    return Choice(candidates.members[best].unflatten(0, shape), measured["boxes"][best].unflatten(0, shape))


def draw_squares(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw top, left and side (count, 3) of squares inside an image, their areas uniform."""
    area, top, left = torch.rand(3, count, generator=generator)
    sizes = (side * (_LEAST_AREA + (1 - _LEAST_AREA) * area).sqrt()).round().long().clamp(1, side)
    places = [(drawn * (side - sizes + 1)).long() for drawn in (top, left)]
    return torch.stack([*places, sizes], 1)


def _padded(crop: Tensor, size: int, side: int) -> Tensor:
    """Bring a crop to `size` and put it into the middle of a black image of `side`."""
    before = (side - size) // 2
    after = side - size - before
    return F.pad(resize(crop, size), (before, after, before, after))
