"""`load`: one door for every kind of data set."""

import logging
import os
from functools import partial
from pathlib import Path

import torch

from ld3m.data import folder as image_folder
from ld3m.data.builtin import read_builtin
from ld3m.data.idx import is_idx_folder, read_idx_folder
from ld3m.data.images import Dataset, ImageSet, channel_statistics
from ld3m.data.items import Items, Source, decode, split
from ld3m.data.tensors import read_object
from ld3m.errors import DataError

logger = logging.getLogger(__name__)
_HOLDOUT = 0.1


def load(
    source: object,
    *,
    resolution: int,
    holdout: float | None = None,
    strict: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Dataset:
    """Read a data set into memory, once, as uint8.

    Args:
        source: "builtin"; the path of an ImageFolder directory or zip (train/ and test/ or val/ inside, or class
            folders alone) or of a folder of IDX files; a pair (images, labels) of tensors, images (N, C, H, W)
            uint8 or floating point in [0, 1]; a map-style torch Dataset of (image, label); a datasets.Dataset; a
            mapping {"train": …, "test": …} of such objects; "hf:NAME", a set on the Hugging Face hub; a Dataset.
        resolution: pixels of a side; the largest centred square is resampled (Lanczos).
        holdout: fraction of each class, in [0, 1), that becomes the test split of a source that has none (0.1 by
            default; 0: no test split). The choice depends on `seed` and file names.
            A Dataset has been split and read already: it takes neither `holdout` nor `strict`.
        strict: refuse damaged images instead of skipping them with a warning.
        cache: folder for the memory map of a set larger than 1 GiB.

    Raises:
        DataError: with what was expected, what came, and the remedy.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise DataError(f"resolution must be a positive number of pixels, got {resolution!r}")
    if holdout is not None and not 0 <= holdout < 1:
        raise DataError(f"holdout must be a fraction in [0, 1), got {holdout!r}")
    if isinstance(source, Dataset):
        if source.resolution != resolution:
            raise DataError(
                f"data {source.name!r} was loaded at resolution {source.resolution}, asked for is {resolution}; "
                f"load its source again with resolution={resolution}"
            )
        given = [f"holdout={holdout}"] * (holdout is not None) + ["strict=True"] * strict
        if given:
            raise DataError(
                f"{' and '.join(given)} would have no effect: data {source.name!r} has been split and read already; "
                "leave it out here, and pass it to ld3m.data.load when the source is loaded"
            )
        return source

    decode_items = partial(decode, resolution=resolution, strict=strict, cache=cache)
    raw = _open(source, decode_items)
    if len(raw.class_names) < 2:
        raise DataError(f"expected at least two classes, found only {raw.class_names[0]!r}; add another class")
    train, test = raw.train, raw.test
    if test is not None and holdout is not None:
        raise DataError(f"holdout={holdout} has no use: {raw.name!r} has a test split of its own; leave it out")
    if test is None and holdout != 0:
        train, test = split(train, raw.class_names, _HOLDOUT if holdout is None else holdout, seed)
    train_set = _image_set(train, raw.class_names, "train", decode_items)
    test_set = None if test is None else _image_set(test, raw.class_names, "test", decode_items)
    wnids = raw.wnids or (None,) * len(raw.class_names)
    logger.info("%s: %d classes, %d training images", raw.name, len(raw.class_names), len(train_set))
    return Dataset(
        raw.name, train_set, test_set, *channel_statistics(train_set.images), raw.class_names, wnids, resolution
    )


def would_read(source: object, folder: Path) -> bool:
    """Whether what is written into a folder becomes part of a source."""
    if not isinstance(source, str | os.PathLike) or source == "builtin":
        return False
    path = Path(source).expanduser()
    return path.is_dir() and not is_idx_folder(path) and image_folder.would_read(path, folder)


def _open(source: object, decode_items: partial) -> Source:
    if not isinstance(source, str | os.PathLike):
        return read_object(source, decode_items)
    if source == "builtin":
        return read_builtin()
    if str(source).startswith("hf:"):
        return read_object(_from_hub(str(source)[3:]), decode_items)
    path = Path(source).expanduser()
    try:
        if not path.exists():
            raise DataError(f"there is no data {str(source)!r}; expected 'builtin', 'hf:NAME', a folder or a zip")
        return read_idx_folder(path) if path.is_dir() and is_idx_folder(path) else image_folder.read_folder(path)
    except OSError as error:
        raise DataError(f"data {str(source)!r} cannot be read: {error}; check its name and permissions") from error


def _from_hub(name: str) -> object:
    try:
        import datasets  # an extra
    except ImportError as error:
        raise DataError(f"data 'hf:{name}' needs Hugging Face datasets: pip install 'ld3m[data]'") from error
    try:
        return datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"data 'hf:{name}' cannot be loaded: {error}") from error


def _image_set(items: Items, class_names: tuple[str, ...], split_name: str, decode_items: partial) -> ImageSet:
    images, kept, failures = decode_items(items, split_name=split_name)
    labels = items.labels[kept]
    counts = torch.bincount(labels, minlength=len(class_names))
    for label in (counts == 0).nonzero().flatten().tolist():
        first = next(position for position in failures if items.labels[position] == label)
        raise DataError(
            f"class {class_names[label]!r} has no readable {split_name} image; "
            f"{items.keys[first]}: {failures[first]}; repair the images or remove the class"
        )
    return ImageSet(images, labels, class_names)
