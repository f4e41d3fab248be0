"""Weights of images in a loss."""

import csv
import os
from pathlib import Path

import torch
from torch import Tensor

from ld3m.data.sources import look
from ld3m.data.tensor_files import is_tensor_file
from ld3m.errors import DataError
from ld3m.runs.exporting import WEIGHTS_FILE
from ld3m.runs.result import WEIGHTS
from ld3m.runtime.storage import load_tensors


def relative(weights: Tensor | None, labels: Tensor) -> Tensor | None:
    """Return weights (N,) scaled to a mean of 1 over each class, (N,) float32; None where all images count alike.

    A class whose weights are all 0 counts for nothing.
    """
    if weights is None:
        return None
    own = weights.double()
    sums = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, own)
    scaled = (own * torch.bincount(labels)[labels] / sums.clamp_min(torch.finfo(torch.float64).tiny)[labels]).float()
    return None if bool((scaled == 1).all()) else scaled


def weights_beside(source: object, count: int) -> Tensor | None:
    """Return the weights (N,) that an export has for its `count` images, in their order; None where there are none.

    Raises:
        DataError: they are not one number, 0 or more, for each image.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    path = Path(source)
    if path.suffix.casefold() == ".safetensors" and is_tensor_file(path):
        weights = load_tensors(path)[0].get(WEIGHTS)
    elif (path / WEIGHTS_FILE).is_file():
        weights = _of_files(path)
    else:
        return None
    if weights is None:
        return None
    if weights.shape != (count,) or not bool(weights.isfinite().all()) or bool((weights < 0).any()):
        raise DataError(f"the weights of {path} are not a number, 0 or more, for each of {count} images; export again")
    return weights.float()


def _of_files(folder: Path) -> Tensor:
    """Read `weights.csv` in the order of the files as they are read as data."""
    train = look(folder).train
    try:
        with open(folder / WEIGHTS_FILE, encoding="utf-8", newline="") as file:
            by_file = {row["file"]: float(row["weight"]) for row in csv.DictReader(file)}
        return torch.tensor([by_file[str(key)] for key in train.keys])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / WEIGHTS_FILE} has no weight for some file, or is damaged ({error}); export again, or remove it"
        ) from error
