"""Data sets that are objects of a program: tensor pairs, map-style torch Datasets, Hugging Face datasets."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ld3m.data.huggingface import is_hugging_face, preferred_splits, read_hugging_face
from ld3m.data.items import Items, Source, check_same_classes, decode
from ld3m.data.naming import named, role_of, spelled
from ld3m.errors import DataError

_NOT_MAP_STYLE = (IterableDataset, Tensor, np.ndarray, list, tuple, str)
_LABEL_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Decode = Callable[..., tuple[Tensor, Tensor, dict[int, str]]]  # `items.decode` with the options of the load bound
Split = tuple[Items, tuple[str, ...]]  # with class names


def read_object(source: object, decode: Decode) -> Source:
    """Turn a pair, a torch Dataset, a Hugging Face dataset, or a mapping of those by split into a Source."""
    if not isinstance(source, Mapping):
        items, class_names = _split(source, "train", decode)
        return Source(_name(source), items, None, class_names, _wnids(source, class_names))
    keys = [key for key in source if isinstance(key, str)]
    train_key = next((key for key in ("train", *keys) if key in keys and role_of(key) == "train"), None)
    if train_key is None:
        raise DataError(f"a mapping of splits needs the key 'train', found {list(source)}; rename the training split")
    given = source[train_key]
    train, class_names = _split(given, train_key, decode)
    test_key = next(iter(preferred_splits(source)), None)
    wnids = _wnids(given, class_names)
    if test_key is None:
        return Source(_name(given), train, None, class_names, wnids)
    test, test_names = _split(source[test_key], test_key, decode)
    return Source(_name(given), train, renumbered(test, test_names, class_names), class_names, wnids)


def renumbered(test: Items, test_names: Sequence[str], class_names: Sequence[str]) -> Items:
    """Give a test split the labels of the training split, by name: its classes may stand in another order."""
    check_same_classes(class_names, test_names)
    order = torch.tensor([list(class_names).index(name) for name in test_names])
    return replace(test, labels=order[test.labels])


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
    if labels.shape == (len(images), 1):  # as MedMNIST and Keras keep them
        labels = labels[:, 0]
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
    if labels.dtype not in _LABEL_TYPES:
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


def _split(source: Any, split_name: str, decode: Decode) -> Split:
    if isinstance(source, tuple | list) and len(source) == 2:
        if all(isinstance(part, Tensor | np.ndarray) for part in source):
            return from_pair(*source, split_name=split_name)
    elif is_hugging_face(source):
        return _hugging_face(source, split_name)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, _NOT_MAP_STYLE):
        return _map_style(source, split_name, decode)
    raise DataError(
        f"cannot read a {type(source).__name__} as the {split_name} split; expected 'builtin', the path of a folder or "
        "zip, a pair of tensors (images, labels), a torch Dataset with a length, or a datasets.Dataset, not a stream"
    )


def _map_style(dataset: Any, split_name: str, decode: Decode) -> Split:
    labels = torch.full((len(dataset),), -1, dtype=torch.int64)

    def read(position: int) -> object:
        item = dataset[position]
        try:
            image, label = item[:2]
            labels[position] = _integer(label)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{split_name}[{position}] must be a pair (image, integer label); unpacking it failed: {error}"
            ) from error
        return image

    items = Items(read, labels, [f"{split_name}[{i}]" for i in range(len(dataset))])  # may not be safe in threads
    images, kept, _ = decode(items, split_name=split_name)
    found, class_names = from_pair(images, labels[kept], _known_names(dataset), split_name)
    return replace(found, decoded=images), class_names


def _integer(label: Any) -> int:
    """Return an integer label; one alone in an array or a list is one, as MedMNIST gives them."""
    if isinstance(label, list | tuple | np.ndarray | Tensor):
        array = np.asarray(label)
        if array.size != 1:
            raise TypeError(f"it holds {array.size} labels; for one-hot rows take the position of the one")
        label = array.reshape(-1)[0]
    return operator.index(label)


def _owner(dataset: Any) -> Any:
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):  # torch.utils.data.Subset
        dataset = dataset.dataset
    return dataset


def _known_names(dataset: Any) -> tuple[str, ...]:
    owner = _owner(dataset)
    names, wnids = spelled(getattr(owner, "classes", ()), getattr(owner, "wnids", ()))
    if wnids is None and names and all(name[:1] == "n" and name[1:].isdecimal() for name in names):
        return named(names)[0]
    return names


def _wnids(source: Any, class_names: Sequence[str]) -> tuple[str | None, ...] | None:
    """Return the WordNet ids that an object has beside its classes, as torchvision's ImageNet does."""
    if isinstance(source, tuple | list | Mapping) or is_hugging_face(source):
        return None
    owner = _owner(source)
    names, wnids = spelled(getattr(owner, "classes", ()), getattr(owner, "wnids", ()))
    if wnids is None:
        wnids = named(names)[1] if names else None
    return wnids[: len(class_names)] if wnids and any(wnids) and len(wnids) >= len(class_names) else None


def _hugging_face(dataset: object, split_name: str) -> Split:
    items, values, names = read_hugging_face(dataset, split_name)
    if values.dtype.kind == "U":
        strings, values = np.unique(values, return_inverse=True)
        names = strings.tolist()
    labels = torch.as_tensor(values)
    return replace(items, labels=labels), _class_names(labels, names, split_name)


def read_splits(content: object) -> Source:
    """Return a datasets.Dataset, or a mapping of those by split, as a Source, without reading pictures."""
    return read_object(content, decode)


def _name(source: object) -> str:
    if isinstance(source, tuple | list):
        return "tensors"
    info = getattr(source, "info", None)
    return getattr(info, "dataset_name", None) or type(source).__name__.lower()
