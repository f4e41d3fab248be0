"""Pictures that occur twice: copies of test images in training, one picture in several classes, pictures of one colour.

A cheap hash finds candidates: 64 bits that say in which of the neighbouring cells of an 8 × 9 grid the picture is
brighter. Pictures of which a quarter of the bits is the same, in one row of 16, are compared by their pixels, so that a
picture saved again, or its thumbnail, is found, and two pictures of one thing are not.
"""

import hashlib
import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.data.images import ImageSet

logger = logging.getLogger(__name__)
_DIFFERENCE = 10.0  # levels: root mean square over 16 × 16 cells between copies
_RELATIVE = 0.25  # of the smaller standard deviation of the two
_FLAT = 4.0  # levels: a picture whose standard deviation is lower shows nothing
_CHUNK = 1024
_MOST_OF_A_BAND = 64  # a band that more share says nothing: pictures on a uniform ground


def copies(train: ImageSet, test: ImageSet, *, near: bool = True) -> Tensor:
    """Return the positions (n,) of training images that are copies of a test image, ascending.

    Args:
        near: also those that are not the same to the byte.

    Where more than half of a class would be, its pictures are so alike that near ones are not copies: X-rays of one
    view. Only those that are the same to the byte are then returned.
    """
    grids, probes = _grids(train.images), _grids(test.images)
    same, found = _same_bytes(train, test, grids), set[int]()
    if not near:
        return torch.tensor(sorted(same), dtype=torch.int64)
    bands, test_bands = _bands(grids), _bands(probes)
    for band in range(bands.shape[1]):
        for some, others in _pairs(bands[:, band], test_bands[:, band]):
            found.update(some[_are_copies(grids[some], probes[others])].tolist())
    found_at = torch.tensor(sorted(found), dtype=torch.int64)
    sizes = torch.bincount(train.labels, minlength=train.num_classes)
    alike = torch.bincount(train.labels[found_at], minlength=train.num_classes) > sizes / 2
    return torch.tensor(sorted(same | set(found_at[~alike[train.labels[found_at]]].tolist())), dtype=torch.int64)


def is_grey(images: ImageSet) -> bool:
    """Whether no picture has a color."""
    blocks = images.images.split(_CHUNK)
    return all(bool((block[:, :1] == block).all()) for block in blocks)


def say_what_repeats(images: ImageSet, split_name: str) -> None:
    """Log pictures of one colour, and pictures that stand in several classes to the byte: placeholders, mostly."""
    flat = _deviation(_grids(images.images)) < _FLAT
    if 0 < int(flat.sum()) <= len(images) // 5:
        first = int(flat.nonzero()[0])
        logger.warning(
            "%d of %d %s images are of one colour, the first of class %r: placeholders? They are kept",
            int(flat.sum()), len(images), split_name, images.class_names[int(images.labels[first])],
        )  # fmt: skip
    by_bytes: dict[bytes, set[int]] = {}
    for position in (~flat).nonzero().flatten().tolist():
        by_bytes.setdefault(_digest(images, position), set()).add(int(images.labels[position]))
    several = [labels for labels in by_bytes.values() if len(labels) > 1]
    if several:
        names = ", ".join(repr(images.class_names[label]) for label in sorted(several[0])[:3])
        logger.warning(
            "%d %s images stand in several classes, the first in %s: placeholders, or wrong labels; they are kept",
            len(several), split_name, names,
        )  # fmt: skip


def _same_bytes(train: ImageSet, test: ImageSet, grids: Tensor) -> set[int]:
    known = {_digest(test, position) for position in range(len(test))}
    shown = (_deviation(grids) >= _FLAT).nonzero().flatten().tolist()
    return {position for position in shown if _digest(train, position) in known}


def _digest(images: ImageSet, position: int) -> bytes:
    return hashlib.blake2b(images.images[position].numpy().tobytes(), digest_size=16).digest()


def _grids(images: Tensor) -> Tensor:
    """Return images (n, 3, H, W) uint8 as 16 × 16 grey cells (n, 1, 16, 16), in levels."""
    if not len(images):
        return torch.empty(0, 1, 16, 16)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    blocks = ((block.float() * weights).sum(1, keepdim=True) for block in images.split(_CHUNK))
    return torch.cat([F.adaptive_avg_pool2d(block, 16) for block in blocks])


def _bands(grids: Tensor) -> Tensor:
    """Return the hash as 4 numbers of 16 bits (n, 4) int64."""
    cells = F.adaptive_avg_pool2d(grids, (8, 9))[:, 0]
    bits = (cells[:, :, 1:] > cells[:, :, :-1] + 0.5).flatten(1)  # (n, 64)
    return (bits.view(-1, 4, 16).long() << torch.arange(16)).sum(2)


def _pairs(ours: Tensor, theirs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the positions of pairs that have one value in common."""
    values, inverse, counts = torch.unique(theirs, return_inverse=True, return_counts=True)
    order = inverse.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    if not len(values):
        return
    at = torch.searchsorted(values, ours.contiguous()).clamp_max(len(values) - 1)
    hits = ((values[at] == ours) & (counts[at] <= _MOST_OF_A_BAND)).nonzero().flatten()
    for some in hits.split(_CHUNK):
        sizes = counts[at[some]]
        repeated = some.repeat_interleave(sizes)
        within = torch.arange(len(repeated)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        yield repeated, order[starts[at[repeated]] + within]


def _are_copies(ours: Tensor, theirs: Tensor) -> Tensor:
    """Whether the pictures of a pair are one, (n,) bool; pictures that show nothing are not."""
    difference = (ours - theirs).square().mean((1, 2, 3)).sqrt()
    spread = torch.minimum(_deviation(ours), _deviation(theirs))
    return (difference < _DIFFERENCE) & (difference < _RELATIVE * spread) & (spread >= _FLAT)


def _deviation(grids: Tensor) -> Tensor:
    cells = grids.flatten(1)
    return (cells - cells.mean(1, keepdim=True)).square().mean(1).sqrt()
