"""The inputs of an evaluation: a distilled set from a result, a folder or a pair of tensors, and its data."""

import os
from pathlib import Path

import torch
from torch import Tensor

from ld3m.data import Dataset
from ld3m.data import load as load_data
from ld3m.data.images import to_unit
from ld3m.errors import DataError, InputError
from ld3m.runs.result import Result
from ld3m.runs.result import load as load_result


def open_inputs(inputs: object, data: object) -> tuple[Result, Dataset, Path | None]:
    """Return the distilled set, the data at its resolution, and the folder that was given.

    Args:
        inputs: a Result, the folder of one, or a pair (images, labels).
        data: a Dataset, or any source that `ld3m.data.load` reads.

    Raises:
        CheckpointError: there is no such folder, or it holds no distilled set.
        DataError: classes differ, or there is nothing to test on.
        InputError: the images or labels are not such.
    """
    folder = Path(inputs) if isinstance(inputs, str | os.PathLike) else None
    result = load_result(folder) if folder else inputs
    images, labels = _images_and_labels(result)
    config = result.config if isinstance(result, Result) else {}
    # Where the data has no test split, the part that is held out follows from the settings of the distillation.
    holdout = None if isinstance(data, Dataset) else config.get("holdout")
    data = load_data(data, resolution=images.shape[-1], holdout=holdout)
    if not isinstance(result, Result):
        result = Result(images, labels, data.class_names, {}, {}, data.mean, data.std)
    _check_classes(result, data)
    if data.test is None or not len(data.test):
        raise DataError(
            f"data {data.name!r} has no test split to evaluate on; load it with holdout=0.1, or add test/ or val/"
        )
    return result, data, folder


def _images_and_labels(inputs: object) -> tuple[Tensor, Tensor]:
    if isinstance(inputs, Result):
        images, labels = inputs.images, inputs.labels
    elif isinstance(inputs, tuple | list) and len(inputs) == 2:
        images, labels = map(torch.as_tensor, inputs)
    else:
        raise InputError(
            "evaluate needs a Result, the folder of one, or a pair (images, labels) of tensors, "
            f"got {type(inputs).__name__}"
        )
    if images.dtype == torch.uint8:
        images = to_unit(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.is_floating_point():
        raise InputError(
            "images must be square, (N, 3, H, H), floating point in [0, 1] or uint8; "
            f"got {tuple(images.shape)} {images.dtype}"
        )
    if labels.shape != (len(images),) or labels.is_floating_point() or not len(labels):
        raise InputError(
            f"labels must be integers, one for each of {len(images)} images; got {tuple(labels.shape)} {labels.dtype}"
        )
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinite values; evaluate a set from before the run diverged")
    return images.cpu(), labels.long().cpu()


def _check_classes(result: Result, data: Dataset) -> None:
    if len(result.class_names) != len(data.class_names):
        raise DataError(
            f"the distilled set has {len(result.class_names)} classes, data {data.name!r} has {len(data.class_names)}; "
            "evaluate on the data it was distilled from"
        )
    differing = [pair for pair in zip(result.class_names, data.class_names, strict=True) if pair[0] != pair[1]]
    if differing:
        raise DataError(
            "the distilled set and the data name their classes differently, first {!r} and {!r} ({} of {} differ); "
            "evaluate on the data it was distilled from".format(*differing[0], len(differing), len(data.class_names))
        )
    counts = torch.bincount(result.labels.clamp_min(0), minlength=len(data.class_names))
    if result.labels.min() < 0 or len(counts) > len(data.class_names) or not counts.all():
        raise InputError(
            f"labels must be 0…{len(data.class_names) - 1}, with at least one image of each class; "
            f"found {result.labels.unique().tolist()}"
        )
