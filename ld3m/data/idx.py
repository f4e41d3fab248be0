"""IDX files of the MNIST family: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not."""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ld3m.data.items import Items, Source, check_same_classes
from ld3m.data.tensors import from_pair
from ld3m.errors import DataError

_BLOCK = 2**20
FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def is_idx_folder(path: Path) -> bool:
    return _find(path, "train-images-idx3-ubyte") is not None


def read_idx_folder(path: Path) -> Source:
    """Read a folder of IDX files. A path with "fashion" in its last two names gets Fashion-MNIST's class names."""
    is_fashion = any("fashion" in part.casefold() for part in path.resolve().parts[-2:])
    names = FASHION_NAMES if is_fashion else ()
    train, class_names = _read_split(path, "train", names)
    if _find(path, "t10k-images-idx3-ubyte") is None:
        return Source(path.resolve().name, train, None, class_names, is_published=True)
    test, test_names = _read_split(path, "t10k", names)
    check_same_classes(class_names, test_names)
    return Source(path.resolve().name, train, test, class_names, is_published=True)


def _read_split(path: Path, prefix: str, names: tuple[str, ...]) -> tuple[Items, tuple[str, ...]]:
    images = _read(path, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read(path, f"{prefix}-labels-idx1-ubyte", 1)
    return from_pair(images, labels, names, prefix)


def _find(path: Path, stem: str) -> Path | None:
    return next((file for file in (path / f"{stem}.gz", path / stem) if file.is_file()), None)


def _read(folder: Path, stem: str, num_dims: int) -> Tensor:
    """Return the array of an IDX file: two zero bytes, 8 for uint8, the number of sizes, the sizes, the values."""
    file = _find(folder, stem)
    if file is None:
        raise DataError(f"{folder} has no {stem}.gz, which belongs to its other IDX files; add it")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(4 + 4 * num_dims)
            sizes = struct.unpack(f">{num_dims}I", head[4:]) if len(head) == 4 + 4 * num_dims else (0,)
            values = _at_most(stream, math.prod(sizes) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({error}); fetch it again") from error
    if head[:4] != bytes((0, 0, 8, num_dims)) or len(head) < 4 + 4 * num_dims:
        raise DataError(f"{file} is not an IDX file of {num_dims}-dimensional uint8: it starts with {head[:4]!r}")
    if len(values) != math.prod(sizes):
        found = f"{len(values)}" if len(values) < math.prod(sizes) else "more"
        raise DataError(f"{file} should hold {math.prod(sizes)} bytes for {sizes}, holds {found}; fetch it again")
    return torch.from_numpy(np.ndarray(sizes, np.uint8, values))


def _at_most(stream: io.BufferedIOBase, count: int) -> bytearray:
    """Read so many bytes, or all that there are, however many a header promised."""
    values = bytearray()
    while block := stream.read(min(_BLOCK, count - len(values))):
        values += block
    return values
