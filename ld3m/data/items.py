"""Images not read yet: what every kind of source becomes before it is split and decoded."""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ld3m.data.pixels import allocate, fit, quantise
from ld3m.errors import DataError

logger = logging.getLogger(__name__)
TEST_SPLITS = ("test", "testing", "val", "valid", "validation")  # in order of preference
_GROUP = 1024  # images under way at once: bounds the memory when decoding is faster than the disk of the memory map


@dataclass(frozen=True)
class Items:
    """The images of one split.

    Args:
        read: position -> a picture that `quantise` takes; raises DataError for what must stop the loading, anything
            else for a damaged image.
        labels: (N,) int64.
        keys: a name for each image; names it in messages and decides on which side of a holdout split it falls.
        is_threadsafe: whether `read` may be called from several threads.
    """

    read: Callable[[int], object]
    labels: Tensor
    keys: Sequence[str]
    is_threadsafe: bool = False

    def take(self, positions: Sequence[int]) -> "Items":
        positions = list(positions)
        keys = [self.keys[position] for position in positions]
        return replace(self, read=lambda i: self.read(positions[i]), labels=self.labels[positions], keys=keys)


@dataclass(frozen=True)
class Source:
    """A data set before it is read; `test` is None where the source has no test split of its own."""

    name: str
    train: Items
    test: Items | None
    class_names: tuple[str, ...]
    wnids: tuple[str | None, ...] | None = None


def split(items: Items, class_names: Sequence[str], holdout: float, seed: int) -> tuple[Items, Items]:
    """Split every class alike; an image's side depends on the seed and on names alone, not on the order of files."""
    test: list[int] = []
    for label, name in enumerate(class_names):
        members = (items.labels == label).nonzero().flatten().tolist()
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has a single image, and holdout={holdout} takes a test image from every class; "
                "add images, or pass holdout=0 to do without a test split"
            )
        members.sort(key=lambda i: _digest(f"{seed}/{items.keys[i]}"))
        test += members[: min(max(1, round(holdout * len(members))), len(members) - 1)]
    chosen = set(test)
    return items.take([i for i in range(len(items.keys)) if i not in chosen]), items.take(sorted(chosen))


def decode(
    items: Items, resolution: int, *, strict: bool, cache: str | Path | None, split_name: str
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Read all images.

    Returns:
        images (n, 3, resolution, resolution) uint8, the positions (n,) they had in `items`, and for each skipped
        position the reason.
    """
    count = len(items.keys)
    storage = allocate(count, resolution, cache)
    kept: list[int] = []
    failures: dict[int, str] = {}

    def pixels(position: int) -> np.ndarray | Exception:
        try:
            return fit(quantise(items.read(position), items.keys[position]), resolution)
        except DataError:
            raise
        except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error …
            return error

    threads = min(8, os.cpu_count() or 1) if items.is_threadsafe else 1
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, count, _GROUP):
            positions = range(start, min(start + _GROUP, count))
            results = (pool.map if threads > 1 else map)(pixels, positions)
            for position, result in zip(positions, results, strict=True):
                if not isinstance(result, Exception):
                    storage[len(kept)] = result
                    kept.append(position)
                    continue
                failures[position] = f"{type(result).__name__}: {result}"
                if strict:
                    raise DataError(
                        f"{items.keys[position]} cannot be read ({failures[position]}); repair or remove it, "
                        "or do without strict to skip such images"
                    ) from result
    if failures:
        first, reason = next(iter(failures.items()))
        if not kept:
            raise DataError(f"none of the {count} {split_name} images can be read; {items.keys[first]}: {reason}")
        logger.warning(
            "skipped %d of %d %s images that cannot be read, the first is %s (%s)",
            len(failures), count, split_name, items.keys[first], reason,
        )  # fmt: skip
    return torch.from_numpy(storage[: len(kept)]), torch.tensor(kept, dtype=torch.int64), failures


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
