"""The inputs of an evaluation: a distilled set from a result, a folder or a pair of tensors, and its data."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.data import Dataset
from ld3m.data import load as load_data
from ld3m.data.images import to_unit
from ld3m.errors import DataError, InputError
from ld3m.runs.result import Result
from ld3m.runs.result import load as load_result

RANGES = ("unit", "signed", "bytes", "normalized")
_SLACK = 1e-3  # a quarter of a grey level


def open_inputs(
    inputs: object,
    data: object,
    image_range: str = "unit",
    *,
    strict: bool = False,
    bit_range: str | int | None = None,
) -> tuple[Result, Dataset, Path | None]:
    """Return the distilled set, the data at its resolution, and the folder that was given.

    Args:
        inputs: a Result, the folder of one, or a pair (images, labels).
        data: a Dataset, or any source that `ld3m.data.load` reads.
        image_range: what floating-point images are given in: "unit" for [0, 1], "signed" for [-1, 1], "bytes" for
            0…255, "normalized" by the mean and standard deviation of the data.
        strict, bit_range: as of `ld3m.data.load`; the latter is that of the distillation when not given.

    Raises:
        CheckpointError: there is no such folder, or it holds no distilled set.
        DataError: classes differ, or there is nothing to test on.
        InputError: the images or labels are not such.
    """
    if image_range not in RANGES:
        raise InputError(f"image_range is one of {', '.join(RANGES)}, got {image_range!r}")
    folder = Path(inputs) if isinstance(inputs, str | os.PathLike) else None
    result = load_result(folder) if folder else inputs
    images, labels = _images_and_labels(result)
    config: Mapping[str, Any] = result.config if isinstance(result, Result) else {}
    if not isinstance(data, Dataset):  # what is held out, and how deep pictures are read, follows from the distillation
        bit_range = bit_range or config.get("bit_range")
        reading = {"holdout": config.get("holdout"), "strict": strict, "bit_range": bit_range}
        data = load_data(data, resolution=images.shape[-1], **reading)
    else:
        data = load_data(data, resolution=images.shape[-1], strict=strict, bit_range=bit_range)
    images = _in_unit_range(images, data, image_range)
    if isinstance(result, Result):  # one that a program made may hold anything
        result = replace(result, images=images, labels=labels)
    else:
        result = Result(images, labels, data.class_names, {}, {}, data.mean, data.std)
    result = _in_order_of(data, result)
    _check_classes(result, data)
    if data.test is None or not len(data.test):
        raise DataError(
            f"data {data.name!r} has no test split to evaluate on; load it with holdout=0.1, or add test/ or val/"
        )
    return result, data, folder


def _in_unit_range(images: Tensor, data: Dataset, image_range: str) -> Tensor:
    """Return images in [0, 1] by what they are said to be in; raise InputError where the values say something else."""
    mean, std = (moments.to(images)[:, None, None] for moments in (data.mean, data.std))
    readings = {
        "unit": images,
        "signed": (images + 1) / 2,
        "bytes": images / 255,
        "normalized": images * std + mean,
    }
    if _is_unit(readings[image_range]):
        return readings[image_range]
    low, high = images.min().item(), images.max().item()
    likely = next((name for name in RANGES if name != image_range and _is_unit(readings[name])), None)
    if likely == "bytes" and (low < 0 or high < 2):
        likely = None
    looks = {"signed": "images in [-1, 1]", "bytes": "0…255", "unit": "images in [0, 1]"}
    look = (
        f"they look like {looks.get(likely, 'normalized images')}" if likely else "they look normalized, by other data"
    )
    remedy = (
        f"say so by image_range={likely!r}" if likely else "undo it: images * std + mean, of the data they came from"
    )
    raise InputError(f"images go from {low:.4g} to {high:.4g}, not {image_range}: {look}; {remedy}")


def _is_unit(images: Tensor) -> bool:
    return bool(images.min() >= -_SLACK) and bool(images.max() <= 1 + _SLACK)


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
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),) or labels.is_floating_point() or not len(labels):
        raise InputError(
            f"labels must be integers, one for each of {len(images)} images; got {tuple(labels.shape)} {labels.dtype}"
        )
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinite values; evaluate a set from before the run diverged")
    return images.cpu(), labels.long().cpu()


def _in_order_of(data: Dataset, result: Result) -> Result:
    """Give a set whose classes are the data's, in another order, the labels that the data has, by name."""
    names = list(data.class_names)
    if result.class_names == data.class_names or sorted(result.class_names) != sorted(names):
        return result
    labels = torch.tensor([names.index(name) for name in result.class_names])[result.labels]
    order = labels.argsort(stable=True)
    return replace(result, images=result.images[order], labels=labels[order], class_names=data.class_names)


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
