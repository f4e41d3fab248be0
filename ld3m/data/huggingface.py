"""Hugging Face datasets that are objects of a program.

Pictures are decoded by ld3m's own door, `open_image`, whatever the column's type: its formats start no other program.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ld3m.data.items import Items
from ld3m.data.naming import held_out_first
from ld3m.data.pixels import open_image
from ld3m.errors import DataError

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
_SHOWN_IMAGE, _SHOWN_LABEL = ["image", "img"], ["label", "labels", "fine_label"]
_MAX_BYTES = 2**28


def is_hugging_face(source: object) -> bool:
    """Whether it is a datasets.Dataset. Only who imported `datasets` has one; a module of that name may be another."""
    kind = getattr(sys.modules.get("datasets"), "Dataset", ())
    return isinstance(source, kind) and hasattr(source, "features")


def is_unlabelled(source: Any) -> bool:
    """Whether it is a datasets.Dataset with no label column, or -1 or nothing for every label: they are kept secret."""
    if not is_hugging_face(source):
        return False
    label = _column(source, _LABEL_COLUMNS)
    return label is None or all(value in (-1, None) for value in source.with_format(None)[label][:])


def read_hugging_face(dataset: Any, split_name: str) -> tuple[Items, np.ndarray, Sequence[str]]:
    """Return pictures, labels as they are, and the names of the classes where the column has them."""
    image, label = _column(dataset, _IMAGE_COLUMNS), _column(dataset, _LABEL_COLUMNS)
    if image is None or label is None:
        raise DataError(
            f"the {split_name} split has the columns {list(dataset.features)}; expected one of {_SHOWN_IMAGE} and one "
            f"of {_SHOWN_LABEL}; use dataset.rename_column"
        )
    names = getattr(dataset.features[label], "names", None) or ()
    try:
        values = np.asarray(dataset.with_format(None)[label][:])
        if values.dtype.kind not in "iubU":
            raise TypeError(f"its values are {values.dtype}")
    except (TypeError, ValueError) as error:  # None, or lists of several labels
        raise DataError(f"column {label!r} of the {split_name} split must hold one label an image: {error}") from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (len(dataset),):
        raise DataError(f"column {label!r} of the {split_name} split must hold one label an image")
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    rows = _undecoded(dataset, image)
    keys = [f"{split_name}[{i}]" for i in range(len(dataset))]
    labels, is_plain = torch.zeros(len(dataset), dtype=torch.int64), rows is not dataset  # no code of the user's is run
    return Items(lambda i: _picture(rows[i][image]), labels, keys, is_threadsafe=is_plain), values, names


def _column(dataset: Any, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in dataset.features), None)


def _undecoded(dataset: Any, image: str) -> Any:
    """Return the data set with the bytes of its pictures instead of what `datasets` would decode of them."""
    import datasets

    if isinstance(dataset.features[image], getattr(datasets, "Image", ())):
        return dataset.cast_column(image, datasets.Image(decode=False)).with_format(None)
    return dataset


def _picture(value: object) -> object:
    """Return what `quantise` takes of {"bytes", "path"}, of bytes, or of a picture that is there already."""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is None and isinstance(path, str):
            file = Path(path)
            if not file.is_file() or file.stat().st_size > _MAX_BYTES:
                raise ValueError(f"there is no picture {path!r}")
            data = file.read_bytes()
        value = data
    return open_image(bytes(value)) if isinstance(value, bytes | bytearray | memoryview) else value


def preferred_splits(source: Mapping[str, object]) -> list[str]:
    """Return the keys of held-out splits: those with labels first, test before val."""
    keys = held_out_first([key for key in source if isinstance(key, str)])
    return sorted(keys, key=lambda key: is_unlabelled(source[key]))
