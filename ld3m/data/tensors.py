"""Data sets that are objects of a program: tensor pairs, map-style torch Datasets, Hugging Face datasets."""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ld3m.data.items import TEST_SPLITS, Items, Source, check_same_classes
from ld3m.errors import DataError

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_NOT_MAP_STYLE = (IterableDataset, Tensor, np.ndarray, list, tuple, str)

Decode = Callable[..., tuple[Tensor, Tensor, dict[int, str]]]  # `items.decode` with the options of the load bound
Split = tuple[Items, tuple[str, ...]]  # with class names


def read_object(source: object, decode: Decode) -> Source:
    """Turn a pair, a torch Dataset, a Hugging Face dataset, or a mapping of those by split into a Source."""
    if not isinstance(source, Mapping):
        items, class_names = _split(source, "train", decode)
        return Source(_name(source), items, None, class_names)
    if "train" not in source:
        raise DataError(f"a mapping of splits needs the key 'train', found {list(source)}; rename the training split")
    train, class_names = _split(source["train"], "train", decode)
    held_out = [key for key in TEST_SPLITS if key in source]
    test_key = next((key for key in held_out if not _is_unlabelled(source[key])), next(iter(held_out), None))
    if test_key is None:
        return Source(_name(source["train"]), train, None, class_names)
    test, test_names = _split(source[test_key], test_key, decode)
    check_same_classes(class_names, test_names)
    return Source(_name(source["train"]), train, test, class_names)


def from_pair(
    images: Tensor | np.ndarray, labels: Tensor | np.ndarray, known_names: Sequence[str] = (), split_name: str = "train"
) -> Split:
    """Return the Items of images (N, C, H, W) or (N, H, W) and labels (N,), after checking their shapes and dtypes."""
    images = _tensor(images, f"{split_name} images", "convert them to uint8, or to float32 in [0, 1]")
    renumber = "number the classes: names, labels = numpy.unique(labels, return_inverse=True)"
    labels = _tensor(labels, f"{split_name} labels", renumber)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[1] not in (1, 3)):
        hint = "; move the channels: images.permute(0, 3, 1, 2)" if images.shape[-1] in (1, 3) else ""
        raise DataError(
            f"{split_name} images must have shape (N, C, H, W) with 1 or 3 channels, or (N, H, W); "
            f"got {tuple(images.shape)}{hint}"
        )
    if labels.shape != (len(images),):
        hint = "; for one-hot rows pass labels.argmax(1)" if labels.ndim == 2 and len(labels) == len(images) else ""
        raise DataError(
            f"{split_name} labels must have shape ({len(images)},), one for each image; got {tuple(labels.shape)}{hint}"
        )
    class_names = _class_names(labels, known_names, split_name)
    keys = range(len(images))
    items = Items(images.__getitem__, labels.long(), [f"{split_name} images[{i}]" for i in keys])
    return items, class_names


def _tensor(values: Tensor | np.ndarray, what: str, remedy: str) -> Tensor:
    if isinstance(values, np.ndarray) and min(values.strides, default=0) < 0:  # flipped, which tensors cannot be
        values = values.copy()
    try:
        return torch.as_tensor(values).cpu()
    except (TypeError, ValueError) as error:  # strings, objects, another byte order
        raise DataError(f"{what} must be numbers that torch knows, got dtype {values.dtype}; {remedy}") from error


def _class_names(labels: Tensor, known_names: Sequence[str], split_name: str) -> tuple[str, ...]:
    """Check that the labels are 0…K-1, all present, and name the classes: the first K known names, else digits."""
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise DataError(f"{split_name} labels must be integers, got {labels.dtype}; pass labels.long()")
    if not len(labels):
        raise DataError(f"the {split_name} split is empty; expected at least one image for each class")
    found = labels.unique().tolist()
    if found != list(range(len(found))):
        shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
        raise DataError(
            f"{split_name} labels must be 0…K-1, each of them in use; found {shown}; "
            "renumber them: classes, labels = labels.unique(return_inverse=True)"
        )
    names = known_names if len(known_names) >= len(found) else found
    return tuple(map(str, names))[: len(found)]


def _split(source: object, split_name: str, decode: Decode) -> Split:
    if isinstance(source, tuple | list) and len(source) == 2:
        if all(isinstance(part, Tensor | np.ndarray) for part in source):
            return from_pair(*source, split_name=split_name)
    elif _is_hugging_face(source):
        return _hugging_face(source, split_name)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, _NOT_MAP_STYLE):
        return _map_style(source, split_name, decode)
    raise DataError(
        f"cannot read a {type(source).__name__} as the {split_name} split; expected 'builtin', the path of a folder or "
        "zip, a pair of tensors (images, labels), a torch Dataset with a length, or a datasets.Dataset, not a stream"
    )


def _map_style(dataset: object, split_name: str, decode: Decode) -> Split:
    labels = torch.full((len(dataset),), -1, dtype=torch.int64)

    def read(position: int) -> object:
        item = dataset[position]
        try:
            image, label = item[:2]
            labels[position] = operator.index(label)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{split_name}[{position}] must be a pair (image, integer label); unpacking it failed: {error}"
            ) from error
        return image

    items = Items(read, labels, [f"{split_name}[{i}]" for i in range(len(dataset))])  # may not be safe in threads
    images, kept, _ = decode(items, split_name=split_name)
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):  # torch.utils.data.Subset
        dataset = dataset.dataset
    return from_pair(images, labels[kept], getattr(dataset, "classes", ()), split_name)


def _is_hugging_face(source: object) -> bool:
    """Whether it is a datasets.Dataset. Only who imported `datasets` has one; a module of that name may be another."""
    kind = getattr(sys.modules.get("datasets"), "Dataset", ())
    return isinstance(source, kind) and hasattr(source, "features")


def _is_unlabelled(source: object) -> bool:
    """Whether it is a datasets.Dataset with -1 for every label, as where the answers are kept secret."""
    if not _is_hugging_face(source):
        return False
    label = next((name for name in _LABEL_COLUMNS if name in source.features), None)
    return label is not None and all(value == -1 for value in source.with_format(None)[label][:])


def _hugging_face(dataset: object, split_name: str) -> Split:
    features = dataset.features
    image = next((name for name in _IMAGE_COLUMNS if name in features), None)
    label = next((name for name in _LABEL_COLUMNS if name in features), None)
    if image is None or label is None:
        raise DataError(
            f"the {split_name} split has the columns {list(features)}; expected one of {list(_IMAGE_COLUMNS)} and one "
            f"of {list(_LABEL_COLUMNS)}; use dataset.rename_column"
        )
    names = getattr(features[label], "names", None) or ()
    try:
        values = np.asarray(dataset.with_format(None)[label][:])
        if values.dtype.kind == "U":
            names, values = np.unique(values, return_inverse=True)
        labels = torch.as_tensor(values)
    except (TypeError, ValueError) as error:  # None, or lists of several labels
        raise DataError(f"column {label!r} of the {split_name} split must hold one label an image: {error}") from error
    if labels.shape != (len(dataset),):
        raise DataError(f"column {label!r} of the {split_name} split must hold one label an image")
    keys = [f"{split_name}[{i}]" for i in range(len(dataset))]
    return Items(lambda i: dataset[i][image], labels, keys), _class_names(labels, names, split_name)


def _name(source: object) -> str:
    if isinstance(source, tuple | list):
        return "tensors"
    info = getattr(source, "info", None)
    return getattr(info, "dataset_name", None) or type(source).__name__.lower()
