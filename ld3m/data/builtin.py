"""The embedded set: 600 training and 100 test images of each class of Fashion-MNIST, as two contact sheets."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ld3m.data.idx import FASHION_NAMES
from ld3m.data.items import Source
from ld3m.data.tensors import from_pair

FOLDER = Path(__file__).with_name("embedded")
SIDE, COLUMNS = 28, 50  # pixels of an image, images in a row of a sheet
PER_CLASS = {"train": 600, "test": 100}  # a multiple of COLUMNS: no row mixes classes


def read_builtin() -> Source:
    """Read the embedded set."""
    splits = []
    for name, per_class in PER_CLASS.items():
        labels = torch.arange(len(FASHION_NAMES)).repeat_interleave(per_class)
        splits.append(from_pair(_read_sheet(FOLDER / f"{name}.png"), labels, FASHION_NAMES, name))
    (train, class_names), (test, _) = splits
    return Source("builtin", train, test, class_names, is_published=True)


def _read_sheet(path: Path) -> Tensor:
    with Image.open(path) as sheet:
        pixels = np.array(sheet)
    images = pixels.reshape(-1, SIDE, COLUMNS, SIDE).swapaxes(1, 2)  # (rows, SIDE, COLUMNS, SIDE) -> row by row
    return torch.from_numpy(images.reshape(-1, SIDE, SIDE))
