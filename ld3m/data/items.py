"""Images not read yet: what every kind of source becomes before it is split and decoded."""

import hashlib
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ld3m.data.deep import Levels, Unranged, deep_pixels
from ld3m.data.images import by_class, closed_up
from ld3m.data.pixels import allocate, fit, quantise
from ld3m.errors import DataError
from ld3m.runtime.progress import progress_bar

logger = logging.getLogger(__name__)
_LARGE_BYTES = 2**24  # files above are read one at a time, which bounds the memory
_GROUP = 1024  # images under way at once: bounds the memory when decoding is faster than the disk of the memory map
_one_large = threading.Lock()


@dataclass(frozen=True)
class Items:
    """The images of one split.

    Args:
        read: position -> a picture that `quantise` takes; raises DataError for what must stop the loading, anything
            else for a damaged image.
        labels: (N,) int64.
        keys: a name for each image; names it in messages and decides on which side of a holdout split it falls.
        is_threadsafe: whether `read` may be called from several threads.
        sizes: bytes of each file, where there are files.
        decoded: (N, 3, H, W) uint8 at the resolution of the load, where reading the labels took reading the images: in
            memory that is nobody else's, and given on without a second copy.
    """

    read: Callable[[int], Any]
    labels: Tensor
    keys: Sequence[str]
    is_threadsafe: bool = False
    sizes: Sequence[int] | None = None
    decoded: Tensor | None = None

    def take(self, positions: Sequence[int]) -> "Items":
        positions = list(positions)
        keys = [self.keys[position] for position in positions]
        sizes = None if self.sizes is None else [self.sizes[position] for position in positions]
        read = self.read
        taken = replace(self, read=lambda i: read(positions[i]), keys=keys, sizes=sizes, decoded=None)
        return replace(taken, labels=self.labels[positions])


@dataclass(frozen=True)
class Source:
    """A data set before it is read; `test` is None where the source has no test split of its own.

    Args:
        passed: files that look like pictures and are not read, each with the reason.
        from_files: pictures of the user's own, of any size and format.
        is_published: a set that everybody has, taken as it is; in others copies across splits are left out.
    """

    name: str
    train: Items
    test: Items | None
    class_names: tuple[str, ...]
    wnids: tuple[str | None, ...] | None = None
    passed: tuple[str, ...] = ()
    from_files: bool = False
    is_published: bool = False


class Store(Protocol):
    """Room for decoded images that outlasts the process, block by block; `show` says whether with a bar."""

    show: bool

    def room(self, split_name: str, count: int) -> np.ndarray:
        """Return room for the images of a split, with those that are there already."""
        ...

    def known(self, split_name: str) -> Mapping[int, dict[int, str]]:
        """Return the blocks that are there, by their first positions, with the positions that failed and why."""
        ...

    def note(self, split_name: str, start: int, failed: Mapping[int, str]) -> None:
        """Note that a block is there."""


def split(items: Items, class_names: Sequence[str], holdout: float, seed: int) -> tuple[Items, Items]:
    """Split every class alike; an image's side depends on the seed and on names alone, not on the order of files."""
    test: list[int] = []
    for name, positions in zip(class_names, by_class(items.labels, len(class_names)), strict=True):
        members = positions.tolist()
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has a single image, and holdout={holdout} takes a test image from every class; "
                "add images, or pass holdout=0 to do without a test split"
            )
        members.sort(key=lambda i: _digest(f"{seed}/{items.keys[i]}"))
        test += members[: min(max(1, round(holdout * len(members))), len(members) - 1)]
    is_test = torch.zeros(len(items.keys), dtype=torch.bool)
    is_test[test] = True
    sides = [(is_test == side).nonzero().flatten() for side in (False, True)]
    train, held_out = (items.take(side.tolist()) for side in sides)
    if items.decoded is not None:
        held_out = replace(held_out, decoded=items.decoded[sides[1]])  # before the others move up
        train = replace(train, decoded=closed_up(items.decoded, sides[0]))
    return train, held_out


def decode(
    items: Items,
    resolution: int,
    *,
    strict: bool,
    cache: str | Path | None,
    split_name: str,
    levels: Levels | None = None,
    store: Store | None = None,
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Read all images.

    Args:
        levels: of pictures of more than 8 bits, see `fit`.
        store: where the images are to stay, and which are there already; in memory when None.

    Returns:
        images (n, 3, resolution, resolution) uint8, the positions (n,) they had in `items`, and for each skipped
        position the reason.

    Raises:
        UnrangedItems: there are pictures of more than 8 bits, and `levels` is not known yet.
    """
    count = len(items.keys)
    if items.decoded is not None:
        return items.decoded, torch.arange(count), {}
    storage = allocate(count, resolution, cache) if store is None else store.room(split_name, count)
    failures: dict[int, str] = {}

    def pixels(position: int) -> np.ndarray | Exception:
        return _attempt(items, position, lambda image: fit(image, resolution, levels))

    known = {} if store is None else store.known(split_name)
    with progress_bar(
        name=f"decoding {split_name}", total=count, unit="image", show=store is not None and store.show
    ) as bar:
        for start in known:
            failures |= known[start]
            bar.update(min(_GROUP, count - start))
        for block, results in _in_threads(items, pixels, skipped=known):
            failed = {}
            for position, result in zip(block, results, strict=True):
                if isinstance(result, Unranged):
                    raise UnrangedItems(items) from result
                if not isinstance(result, Exception):
                    storage[position] = result
                    continue
                failures[position] = failed[position] = f"{type(result).__name__}: {result}"
                if strict:
                    raise DataError(
                        f"{items.keys[position]} cannot be read ({failed[position]}); repair or remove it, "
                        "or do without strict to skip such images"
                    ) from result
            if store is not None:
                store.note(split_name, block.start, failed)
            bar.update(len(block))
    failures = dict(sorted(failures.items()))
    if failures:
        first, reason = next(iter(failures.items()))
        if len(failures) == count:
            raise DataError(f"none of the {count} {split_name} images can be read; {items.keys[first]}: {reason}")
        logger.warning(
            "skipped %d of %d %s images that cannot be read, the first is %s (%s)",
            len(failures), count, split_name, items.keys[first], reason,
        )  # fmt: skip
    kept = torch.ones(count, dtype=torch.bool)
    kept[list(failures)] = False
    positions = kept.nonzero().flatten()
    return closed_up(torch.from_numpy(storage), positions), positions, failures


class UnrangedItems(Exception):
    """The range of the pictures of more than 8 bits has to be known before they are decoded."""

    def __init__(self, items: Items) -> None:
        super().__init__()
        self.items = items


def extremes(splits: Sequence[Items]) -> tuple[float, float, bool]:
    """Return the smallest and largest level in the pictures of more than 8 bits, and whether there are floats."""
    low, high, is_float = math.inf, -math.inf, False

    def levels(image: Image.Image | np.ndarray) -> np.ndarray:
        found = deep_pixels(image) if isinstance(image, Image.Image) else None
        return np.empty(0) if found is None else np.array([found.min(), found.max()])

    for items in splits:
        blocks = _in_threads(items, lambda i, items=items: _attempt(items, i, levels))
        for found in chain.from_iterable(results for _, results in blocks):
            if isinstance(found, np.ndarray) and len(found):
                low, high = min(low, float(found[0])), max(high, float(found[1]))
                is_float |= np.issubdtype(found.dtype, np.floating)
    return low, high, is_float


def _in_threads(
    items: Items, work: Callable[[int], np.ndarray | Exception], skipped: Container[int] = ()
) -> Iterator[tuple[range, Iterator[np.ndarray | Exception]]]:
    """Yield blocks of positions with what `work` makes of each, on all cores where `items` allows it.

    Args:
        skipped: the first positions of blocks to leave out.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cores if items.is_threadsafe else 1
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(items.keys), _GROUP):
            if start not in skipped:
                block = range(start, min(start + _GROUP, len(items.keys)))
                yield block, (pool.map if threads > 1 else map)(work, block)


def _attempt(
    items: Items, position: int, work: Callable[[Image.Image | np.ndarray], np.ndarray]
) -> np.ndarray | Exception:
    """Return what `work` makes of an image, or why the image cannot be read; errors of the machine are raised."""
    key = items.keys[position]
    is_large = items.sizes is not None and items.sizes[position] > _LARGE_BYTES
    try:
        with _one_large if is_large else nullcontext():
            return work(quantise(items.read(position), key))
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{key} cannot be read: there is not enough memory; free some, then run again") from error
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error …
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own have no number
            raise DataError(
                f"{key} cannot be read: {error.strerror or error}, which says nothing about the image; run again when "
                "the disk and its permissions are in order"
            ) from error
        return error


def check_same_classes(train: Collection[str], test: Collection[str]) -> None:
    """Raise DataError, naming the difference, when the test split has other classes than the training split."""
    missing = [name for name in train if name not in set(test)]
    unknown = [name for name in test if name not in set(train)]
    differences = [f"lacks {_listed(missing)}"] * bool(missing) + [f"adds {_listed(unknown)}"] * bool(unknown)
    if differences:
        raise DataError(
            f"the test split must have the classes of the training split, but {' and '.join(differences)}; "
            "give both the same classes"
        )


def _digest(name: str) -> bytes:
    # File names that are not UTF-8 hold surrogates, which encode by default refuses.
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
