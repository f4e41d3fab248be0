"""NumPy archives (.npz) of images and labels, as MedMNIST and Keras keep them; pickled objects are not read."""

import re
from pathlib import Path

import numpy as np

from ld3m.data.items import Source, check_same_classes
from ld3m.data.listing import ODD
from ld3m.data.naming import Role, hinted_role
from ld3m.data.tensors import Split, from_pair
from ld3m.errors import DataError
from ld3m.runtime.reading import shown_text

_IMAGES = ("images", "image", "imgs", "x", "data", "arr_0")
_HELD_OUT: tuple[Role, ...] = ("test", "val")
_LABELS = ("labels", "label", "targets", "y", "arr_1")


def is_npz(path: Path) -> bool:
    return path.suffix.casefold() == ".npz" and path.is_file()


def read_npz(path: Path) -> Source:
    """Read `train_images`, `train_labels` and the same of test or val; x_train, y_train …; or images and labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {name: _meaning(name) for name in archive.files}
            found = {role for role, kind in names.values() if kind}
            role: Role | None = "train" if "train" in found else None
            held_out: Role | None = next((role for role in _HELD_OUT if role in found), None)
            if role is None and (held_out or None not in found):
                raise DataError(
                    f"{path} holds {', '.join(archive.files)}; expected train_images and train_labels, x_train and "
                    "y_train, or images and labels"
                )
            train = _split(path, archive, names, role)
            test = _split(path, archive, names, held_out) if role and held_out else None
    except (OSError, *ODD) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as arrays ({shown_text(str(error))}); fetch it again") from error
    if test is None:
        return Source(path.stem, train[0], None, train[1])
    check_same_classes(train[1], test[1])
    return Source(path.stem, train[0], test[0], train[1])


def _meaning(name: str) -> tuple[Role | None, str]:
    plain = name.casefold()
    words = set(re.split(r"[\W_]+", plain))
    kind = "images" if plain in _IMAGES or words & set(_IMAGES) else ""
    kind = "labels" if plain in _LABELS or words & set(_LABELS) else kind
    return hinted_role(name), kind


def _split(
    path: Path, archive: np.lib.npyio.NpzFile, names: dict[str, tuple[Role | None, str]], role: Role | None
) -> Split:
    arrays = {kind: archive[name] for name, (of, kind) in names.items() if of == role and kind}
    if arrays.keys() != {"images", "labels"}:
        raise DataError(f"{path} needs images and labels of the {role or 'train'} split, holds {', '.join(names)}")
    images = arrays["images"]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)
    return from_pair(images, arrays["labels"], split_name=role or "train")
