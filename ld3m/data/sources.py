"""`load`: one door for every kind of data set."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ld3m.config import is_count
from ld3m.data import folder as image_folder
from ld3m.data.arrays import is_npz, read_npz
from ld3m.data.builtin import read_builtin
from ld3m.data.cache import OFF, Shelf, shelf_of
from ld3m.data.dataset_files import is_parquet, is_saved, read_parquet, read_saved
from ld3m.data.deep import RULES, Levels, choose_levels
from ld3m.data.duplicates import copies, is_grey, say_what_repeats
from ld3m.data.idx import is_idx_folder, read_idx_folder
from ld3m.data.images import Dataset, ImageSet, channel_statistics, closed_up
from ld3m.data.items import Items, Source, UnrangedItems, decode, extremes, split
from ld3m.data.naming import require_names
from ld3m.data.subsets import first_or_drawn, narrowed, parse
from ld3m.data.tensor_files import is_tensor_file, read_tensor_file
from ld3m.data.tensors import Decode, read_object
from ld3m.errors import DataError
from ld3m.runtime.devices import is_out_of_memory
from ld3m.runtime.reading import clear_read_errors, expanded, is_there, shown_text

logger = logging.getLogger(__name__)
_HOLDOUT = 0.1

# What a path may be, in the order in which it is asked; a folder of pictures or an archive is what is left.
_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (
    (is_idx_folder, read_idx_folder),
    (is_saved, read_saved),
    (is_parquet, read_parquet),
    (is_npz, read_npz),
    (is_tensor_file, read_tensor_file),
    (lambda path: True, image_folder.read_folder),
)


def load(
    source: object,
    *,
    resolution: int,
    holdout: float | None = None,
    strict: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    bit_range: str | int | None = None,
    classes: str | None = None,
    per_class: int | None = None,
    per_class_seed: int | None = None,
) -> Dataset:
    """Read a data set into memory, once, as uint8.

    Args:
        source: "builtin"; the path of an ImageFolder directory, zip or tar (train/ and test/ or val/ inside, or class
            folders alone, or pictures with a table of labels), of a folder of IDX files, of parquet files or of
            `save_to_disk`, or of an `.npz`, `.safetensors` or `.pt`; a pair (images, labels) of tensors, images
            (N, C, H, W) uint8 or floating point in [0, 1]; a map-style torch Dataset of (image, label); a
            datasets.Dataset; a mapping {"train": …, "test": …} of such objects; "hf:NAME", a set on the Hugging Face
            hub; a Dataset.
        resolution: pixels of a side; the largest centred square is resampled (Lanczos).
        holdout: fraction of each class, in [0, 1), that becomes the test split of a source that has none (0.1 by
            default; 0: no test split). The choice depends on `seed` and file names.
            A Dataset has been split and read already: it takes neither `holdout` nor `strict`.
        strict: refuse damaged images, and files passed over, instead of skipping them with a warning.
        cache: folder in which the decoded images of a path are kept, for this and later loads, or "off" for none. By
            default those of large sets are kept, in the user's cache; see `ld3m.data.cache.kept_in` for a default of
            many loads. What is not kept and larger than 1 GiB is mapped from an unnamed file there.
        bit_range: of pictures of more than 8 bits: the bits in use, 8, 10, 12, 14 or 16; "minmax" for the set's own
            range; by default ("auto") the fewest bits that hold all pictures of the set.
        classes: those to read, in the order of their labels: a published subset of ImageNet by its name in
            `ld3m.data.subsets`, wnids or names with commas between, or a file with one on each line.
        per_class: so many training images of each class: the first, or with `per_class_seed` drawn ones.

    Raises:
        DataError: with what was expected, what came, and the remedy.
    """
    if not is_count(resolution):
        raise DataError(f"resolution must be a positive number of pixels, got {resolution!r}")
    if holdout is not None and not 0 <= holdout < 1:
        raise DataError(f"holdout must be a fraction in [0, 1), got {holdout!r}")
    if bit_range is not None and str(bit_range) not in RULES:
        raise DataError(f"bit_range is one of {', '.join(RULES)}, got {bit_range!r}")
    if isinstance(source, Dataset):
        said = {"holdout": holdout, "strict": strict or None, "bit_range": bit_range}
        _require_as_read(source, resolution, said | {"classes": classes, "per_class": per_class})
        return source

    def make(shelf: Shelf | None) -> Dataset:
        room = None if cache == OFF else cache
        decode_items = partial(decode, resolution=resolution, strict=strict, cache=room, store=shelf)
        try:
            return _read(source, decode_items, resolution, holdout, strict, seed, classes)
        except UnrangedItems as error:  # pictures of more than 8 bits, whose mapping follows from the whole set
            levels = _levels(source, error.items, str(bit_range or "auto"))
            decode_items = partial(decode_items, levels=levels)
            return _read(source, decode_items, resolution, holdout, strict, seed, classes)

    settings = {"holdout": holdout, "strict": strict, "seed": seed, "bit_range": str(bit_range or "auto")}
    settings["classes"] = None if classes is None else parse(classes)
    shelf = _shelf(source, cache, resolution, settings)
    dataset = make(None) if shelf is None else shelf.load(make)
    if per_class is None:
        return dataset
    train = first_or_drawn(dataset.train, per_class, per_class_seed)
    mean, std = channel_statistics(train.images)
    return replace(dataset, train=train, mean=mean, std=std)


def _require_as_read(dataset: Dataset, resolution: int, said: dict[str, object]) -> None:
    """Refuse to read a data set otherwise that has been read: other resolution, or options that are not None."""
    if dataset.resolution != resolution:
        raise DataError(
            f"data {dataset.name!r} was loaded at resolution {dataset.resolution}, asked for is {resolution}; "
            f"load its source again with resolution={resolution}"
        )
    given = [f"{name}={value!r}" for name, value in said.items() if value is not None]
    if given:
        raise DataError(
            f"{' and '.join(given)} would have no effect: data {dataset.name!r} has been split and read already; "
            "leave it out here, and pass it to ld3m.data.load when the source is loaded"
        )


def look(source: object) -> Source:
    """Open a source without reading its pictures; a map-style torch Dataset alone cannot be opened so."""
    return _open(source, partial(decode))


def _read(
    source: object,
    decode_items: Decode,
    resolution: int,
    holdout: float | None,
    strict: bool,
    seed: int,
    classes: str | None,
) -> Dataset:
    raw = _open(source, decode_items)
    raw = raw if classes is None else narrowed(raw, classes)
    _say_what_is_passed(raw, strict)
    require_names(raw.class_names)
    train, test = raw.train, raw.test
    if test is not None and holdout is not None:
        raise DataError(f"holdout={holdout} has no use: {raw.name!r} has a test split of its own; leave it out")
    if test is None and holdout != 0:
        train, test = split(train, raw.class_names, _HOLDOUT if holdout is None else holdout, seed)
    train_set = _image_set(train, raw.class_names, "train", decode_items)
    test_set = None if test is None else _image_set(test, raw.class_names, "test", decode_items)
    if not raw.is_published:
        say_what_repeats(train_set, "train")
        train_set = train_set if test_set is None else _without_copies(train_set, test_set, raw)
    wnids = raw.wnids or (None,) * len(raw.class_names)
    logger.info("%s: %d classes, %d training images", raw.name, len(raw.class_names), len(train_set))
    return Dataset(
        raw.name, train_set, test_set, *channel_statistics(train_set.images), raw.class_names, wnids, resolution
    )


def _shelf(source: object, cache: str | Path | None, resolution: int, settings: object) -> Shelf | None:
    """Return where the decoded images of a source are kept; None for what is in memory, or on the hub's client."""
    if not isinstance(source, str | os.PathLike) or source == "builtin" or str(source).startswith("hf:"):
        return None
    path = expanded(os.fspath(source), "data", DataError)
    try:
        if not is_there(path, DataError):
            return None
        is_pictures = path.is_dir() and not any(is_kind(path) for is_kind, _ in _READERS[:-1])
        is_read = image_folder.reads_below(path) if is_pictures else lambda name: True
        return shelf_of(path, cache, resolution, settings, is_read)
    except OSError:  # which reading says better
        return None


def _levels(source: object, items: Items, rule: str) -> Levels:
    """Return what pictures of more than 8 bits are mapped by: the range over both splits where these can be listed."""
    is_path = isinstance(source, str | os.PathLike)
    raw = _open(source, partial(decode)) if is_path else None
    splits = [items] if raw is None else [one for one in (raw.train, raw.test) if one is not None]
    levels, found = choose_levels(rule, lambda: extremes(splits))
    logger.warning("%s: pictures of more than 8 bits %s", raw.name if raw else "the data", found)
    return levels


def _say_what_is_passed(raw: Source, strict: bool) -> None:
    if not raw.passed:
        return
    shown = ", ".join(raw.passed[:3]) + (f" and {len(raw.passed) - 3} more" if len(raw.passed) > 3 else "")
    if strict:
        raise DataError(
            f"{len(raw.passed)} files of {raw.name!r} look like pictures and are not read: {shown}; convert or remove "
            "them, or do without strict to pass over them"
        )
    logger.warning("%s: passed over %d files that look like pictures: %s", raw.name, len(raw.passed), shown)


def _without_copies(train: ImageSet, test: ImageSet, raw: Source) -> ImageSet:
    """Leave out of the training images what the test split holds as well; a score on it would measure memory.

    Grey pictures that are arrays are digits and clothes, each like many others: of these the same bytes count alone.
    """
    name, found = raw.name, copies(train, test, near=raw.from_files or not is_grey(train))
    if not len(found):
        return train
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[found] = False
    labels = train.labels[kept]
    gone = (torch.bincount(labels, minlength=train.num_classes) == 0).nonzero().flatten().tolist()
    if gone:
        raise DataError(
            f"every training image of class {train.class_names[gone[0]]!r} of {name!r} is a copy of a test image; give "
            "the splits images of their own"
        )
    logger.warning(
        "%s: %d of %d training images are copies of test images, exact or nearly, and are left out of training",
        name, len(found), len(train),
    )  # fmt: skip
    return ImageSet(closed_up(train.images, kept.nonzero().flatten()), labels, train.class_names)


def would_read(source: object, folder: Path) -> bool:
    """Whether what is written into a folder becomes part of a source."""
    if not isinstance(source, str | os.PathLike) or source == "builtin":
        return False
    path = expanded(os.fspath(source), "data", DataError)
    with clear_read_errors(path, DataError):
        if not is_there(path, DataError) or not path.is_dir() or any(is_kind(path) for is_kind, _ in _READERS[:-1]):
            return False
        return image_folder.would_read(path, folder)


def _open(source: object, decode_items: Decode) -> Source:
    if not isinstance(source, str | os.PathLike):
        return read_object(source, decode_items)
    if source == "builtin":
        return read_builtin()
    if str(source).startswith("hf:"):
        return read_object(_from_hub(str(source)[3:]), decode_items)
    path = expanded(os.fspath(source), "data", DataError)
    try:
        if not is_there(path, DataError):
            raise DataError(f"there is no data {str(source)!r}; expected 'builtin', 'hf:NAME', a folder or an archive")
        return next(read for is_kind, read in _READERS if is_kind(path))(path)
    except OSError as error:
        raise DataError(f"data {str(source)!r} cannot be read: {error}; check its name and permissions") from error


def _from_hub(name: str) -> object:
    if not name.strip("/ "):
        raise DataError("data 'hf:' names no data set; expected 'hf:NAME' or 'hf:OWNER/NAME'")
    try:
        import datasets  # an extra
    except ImportError as error:
        raise DataError(f"data 'hf:{name}' needs Hugging Face datasets: pip install 'ld3m[data]'") from error
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        if is_out_of_memory(error):
            raise
        reason = shown_text(" ".join(str(error).split()) or type(error).__name__, 300)
        raise DataError(f"data 'hf:{name}' cannot be loaded: {reason}; check its name") from error


def _image_set(items: Items, class_names: tuple[str, ...], split_name: str, decode_items: Decode) -> ImageSet:
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
