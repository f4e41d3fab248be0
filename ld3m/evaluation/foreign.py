"""Sets that ld3m did not make, opened through the door of `ld3m.data`: folders, archives, tensors, Hugging Face sets.

Tensors stay as exact as they are given; pictures are read as those of the data are: the largest centred square,
resampled by Lanczos. That is the rule of size, and its name in reports is "centre-square".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ld3m.data import Dataset
from ld3m.data import load as load_data
from ld3m.data.images import to_unit
from ld3m.data.items import Items
from ld3m.data.sources import look
from ld3m.errors import DataError, InputError

MNIST_SIDE, MNIST_RESOLUTION = 28, 32  # as in `ld3m.data.pixels`
_SHOWN = 4
_SLACK, _FAR = 0.01, 3.0  # beyond [0, 1]


@dataclass(frozen=True, eq=False)
class ForeignSet:
    """A set before its classes are matched.

    Args:
        images: (N, 3, H, H) floats, in [0, 1] unless they are tensors that say otherwise.
        is_raw: whether they are tensors as they were given, perhaps normalized.
        is_named: whether the classes have names; else the numbers of their labels.
        rule: how images of another size were brought to this one; "" where none was.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    wnids: tuple[str | None, ...]
    is_raw: bool
    is_named: bool
    rule: str


def open_foreign(source: object, resolution: int | None, *, strict: bool, bit_range: str | int | None) -> ForeignSet:
    """Read a set.

    Args:
        resolution: pixels of a side; the set's own when not given, 32 for the 28 of the MNIST family.

    Raises:
        DataError: it cannot be read, or its images have several sizes and no resolution is given.
    """
    if isinstance(source, Dataset):
        return _from_dataset(source, True, "")  # which has been read at its resolution
    raw = _looked_at(source)
    if raw is not None and len(raw.train.keys) and isinstance(raw.train.read(0), Tensor):
        images, rule = sized(_stacked(raw.train), resolution)
        wnids = raw.wnids or (None,) * len(raw.class_names)
        own = raw.name, images, raw.train.labels, raw.class_names, wnids
        return ForeignSet(*own, True, _is_named(raw.class_names), rule)
    sizes = _sizes(raw.train, range(len(raw.train.keys))) if raw is not None else _sizes_of_dataset(source)
    side = resolution or _own_side(sizes)
    reading: dict[str, Any] = {"resolution": side, "strict": strict, "bit_range": bit_range}
    has_test = raw is not None and raw.test is not None
    dataset = load_data(source, **{**reading, "holdout": None if has_test else 0})
    rule = "" if sizes <= {(side, side)} else f"centre-square to {side} px"
    return _from_dataset(dataset, _is_named(dataset.class_names), rule)


def _is_named(class_names: Sequence[str]) -> bool:
    return not all(name.isdecimal() for name in class_names)


def _from_dataset(dataset: Dataset, is_named: bool, rule: str) -> ForeignSet:
    train = dataset.train
    own = dataset.name, to_unit(train.images), train.labels, dataset.class_names, dataset.wnids
    return ForeignSet(*own, False, is_named, rule)


def _looked_at(source: object) -> Any:
    """Return a source that is not read yet; None for a map-style Dataset, whose pictures only its own code makes."""
    is_map_style = hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "features")
    if is_map_style and not isinstance(source, str | Path | tuple | list | dict):
        return None
    return look(source)


def _stacked(items: Items) -> Tensor:
    images = torch.stack([items.read(k) for k in range(len(items.keys))])
    images = images[:, None] if images.ndim == 3 else images
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"images of a set are uint8 or floating point, got {images.dtype}; convert them")
    return images if images.dtype == torch.uint8 else images.float()


def sized(images: Tensor, resolution: int | None) -> tuple[Tensor, str]:
    """Return tensors at a resolution, and the rule by which they got there."""
    height, width = images.shape[-2:]
    if height != width and resolution is None:
        raise _oblong(width, height)
    side = resolution or (MNIST_RESOLUTION if height == MNIST_SIDE and images.shape[1] == 1 else height)
    if (height, width) == (side, side):
        return images, ""
    if (height, width, side, images.shape[1]) == (MNIST_SIDE, MNIST_SIDE, MNIST_RESOLUTION, 1):
        border = (MNIST_RESOLUTION - MNIST_SIDE) // 2
        return F.pad(images, [border] * 4), f"a border of {border} zeros"
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = to_unit(images[..., top : top + least, left : left + least])
    resized = F.interpolate(square, (side, side), mode="bicubic", antialias=True)
    low, high = square.amin(), square.amax()  # bicubic overshoots
    return resized.clamp(low, high), f"centre-square to {side} px, bicubic"


def _sizes(items: Items, positions: Sequence[int]) -> set[tuple[int, int]]:
    """Return the sizes of pictures, (width, height); those that cannot be read are said when they are read."""
    found: set[tuple[int, int]] = set()
    for position in positions:
        try:
            picture = items.read(position)
        except DataError:
            raise
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError … for damaged files
            continue
        found |= _size(picture)
    return found


def _sizes_of_dataset(source: Any) -> set[tuple[int, int]]:
    return set().union(*(_size(source[k][0]) for k in range(len(source))))


def _size(picture: object) -> set[tuple[int, int]]:
    if isinstance(picture, Image.Image):
        return {(picture.width, picture.height)}
    if isinstance(picture, Tensor) and picture.ndim >= 2:
        return {(int(picture.shape[-1]), int(picture.shape[-2]))}
    if isinstance(picture, np.ndarray) and picture.ndim >= 2:
        return {(picture.shape[1], picture.shape[0])}
    return set()


def _own_side(sizes: set[tuple[int, int]]) -> int:
    if len(sizes) == 1:
        (width, height) = next(iter(sizes))
        if width == height:
            return MNIST_RESOLUTION if width == MNIST_SIDE else width
        raise _oblong(width, height)
    if not sizes:
        raise DataError("the set has no image that can be read")
    shown = ", ".join(f"{width} × {height}" for width, height in sorted(sizes)[:_SHOWN])
    more = f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else ""
    raise DataError(
        f"the images of the set have several sizes, {shown}{more}, and no rule: say resolution, to which the largest "
        "centred square of each is resampled"
    )


def _oblong(width: int, height: int) -> DataError:
    return DataError(f"the images of the set are {width} × {height}; say resolution, the side of a centred square")


def in_unit_range(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo a normalization; raise InputError where the images are far from [0, 1] then."""
    undone = to_unit(images) * std.to(images)[:, None, None] + mean.to(images)[:, None, None]
    low, high = float(undone.min()), float(undone.max())
    outside = float(((undone < -_SLACK) | (undone > 1 + _SLACK)).float().mean())
    if outside > 0.5 or low < -_FAR or high > 1 + _FAR:  # what is trained freely may lie a little outside
        raise InputError(
            f"the images of the set, with their normalization undone, go from {low:.4g} to {high:.4g}: they were "
            "normalized by something else; name their own mean and standard deviation"
        )
    return undone
