"""The inputs of an evaluation: a set, ld3m's own or any other, and the data that it stands for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.config import EvaluateConfig
from ld3m.data import Dataset
from ld3m.data import load as load_data
from ld3m.data.images import to_unit
from ld3m.data.normalizations import moments
from ld3m.errors import CheckpointError, DataError, InputError
from ld3m.evaluation.class_match import labels_in
from ld3m.evaluation.foreign import in_unit_range, open_foreign, sized
from ld3m.evaluation.weights import weights_beside
from ld3m.runs.folder import CONFIG, DISTILLED
from ld3m.runs.marker import MARKER
from ld3m.runs.result import Result
from ld3m.runs.result import load as load_result
from ld3m.runtime.reading import is_there

RANGES = ("unit", "signed", "bytes", "normalized")
_SLACK = 1e-3  # a quarter of a grey level


@dataclass(frozen=True)
class Reading:
    """How an evaluation reads its set and its data.

    Args:
        strict, bit_range, classes, per_class, per_class_seed: of the data, as of `ld3m.data.load`.
        match: how the classes of a foreign set are matched, "name" or "order".
        resolution: of set and data; the set's own when not given.
        normalization: mean and standard deviation, each (3,), that the images of the set were normalized by.
    """

    image_range: str = "unit"
    strict: bool = False
    bit_range: str | int | None = None
    classes: str | None = None
    per_class: int | None = None
    per_class_seed: int | None = None
    match: str = "name"
    resolution: int | None = None
    normalization: tuple[Tensor, Tensor] | None = None


def reading_of(config: EvaluateConfig, image_range: str) -> Reading:
    """Return how the settings of an evaluation have set and data read."""
    mean, std, normalization = config.set_mean, config.set_std, None
    if config.set_normalized is not None:
        normalization = moments(config.set_normalized, "set_normalized")
    elif mean is not None and std is not None:
        normalization = _three(mean), _three(std)
    names = ("strict", "bit_range", "classes", "per_class", "per_class_seed", "match", "resolution")
    return Reading(image_range, **{name: getattr(config, name) for name in names}, normalization=normalization)


def _three(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).expand(3).clone()


def open_inputs(
    inputs: object,
    data: object,
    image_range: str = "unit",
    *,
    reading: Reading | None = None,
) -> tuple[Result, Dataset, Path | None]:
    """Return the distilled set, the data at its resolution, and the folder that was given.

    Args:
        inputs: a Result, the folder of one, a pair (images, labels), or any other set, see `foreign`.
        data: a Dataset, or any source that `ld3m.data.load` reads.
        image_range: what floating-point images are given in: "unit" for [0, 1], "signed" for [-1, 1], "bytes" for
            0…255, "normalized" by the mean and standard deviation of the data.
        reading: that, and how the rest is read; bit_range is that of the distillation when not given.

    Raises:
        CheckpointError: there is no such folder, or it holds no distilled set.
        DataError: classes differ, or there is nothing to test on.
        InputError: the images or labels are not such.
    """
    reading = reading or Reading(image_range)
    if reading.image_range not in RANGES:
        raise InputError(f"image_range is one of {', '.join(RANGES)}, got {reading.image_range!r}")
    folder = Path(inputs) if is_run(inputs) and isinstance(inputs, str | os.PathLike) else None
    if folder is None and not isinstance(inputs, Result) and not _is_pair(inputs):
        return _open_foreign(inputs, data, reading)
    if folder and not is_there(folder):
        raise CheckpointError(f"{folder} is not a folder of a run, and no other set is there; check the path")
    result = load_result(folder) if folder else inputs
    images, labels = _images_and_labels(result)
    config: Mapping[str, Any] = result.config if isinstance(result, Result) else {}
    if (side := reading.resolution) and side != images.shape[-1]:
        images, _ = sized(images, side)
    data = load_for(data, images.shape[-1], reading, config)
    if reading.normalization is not None:
        images = in_unit_range(images, *reading.normalization)
    else:
        images = _in_unit_range(images, data, reading.image_range)
    if isinstance(result, Result):  # one that a program made may hold anything
        result = replace(result, images=images, labels=labels)
    else:
        result = Result(images, labels, data.class_names, {}, {}, data.mean, data.std)
    if reading.match == "order":
        result = _matched(result, (None,) * len(result.class_names), data, "order", True)
    result = _in_order_of(data, result)
    _check_classes(result, data)
    require_test(data)
    return result, data, folder


def is_run(inputs: object) -> bool:
    """Whether a path is the folder of a run, finished or not, or stands for no other set."""
    if not isinstance(inputs, str | os.PathLike):
        return False
    name = os.fspath(inputs)
    if name == "builtin" or str(name).startswith("hf:"):
        return False
    path = Path(str(name))
    if path.is_file():
        return False
    if not path.is_dir() or any((path / own).exists() for own in (DISTILLED, CONFIG, MARKER)):
        return True
    return all(entry.name.startswith(".") for entry in path.iterdir())


def load_for(data: object, side: int, reading: Reading, config: Mapping[str, Any]) -> Dataset:
    """Return the data at a resolution; what is held out, which classes, and how deep pictures are read, follows from
    the distillation where that is not said."""
    subset = {"classes": reading.classes or config.get("classes"), "per_class": reading.per_class}
    subset["per_class_seed"] = reading.per_class_seed
    if isinstance(data, Dataset):
        given = {name: value for name, value in subset.items() if value is not None and name != "per_class_seed"}
        given = {} if given == {"classes": config.get("classes")} else given  # which the distillation has narrowed
        return load_data(data, resolution=side, strict=reading.strict, bit_range=reading.bit_range, **given)
    if reading.per_class is None:
        subset |= {name: config.get(name) for name in ("per_class", "per_class_seed")}
    bit_range = reading.bit_range or config.get("bit_range")
    return load_data(
        data, resolution=side, holdout=config.get("holdout"), strict=reading.strict, bit_range=bit_range, **subset
    )


def require_test(data: Dataset) -> None:
    """Raise DataError unless there is something to test on."""
    if data.test is None or not len(data.test):
        raise DataError(
            f"data {data.name!r} has no test split to evaluate on; load it with holdout=0.1, or add test/ or val/"
        )


def _open_foreign(inputs: object, data: object, reading: Reading) -> tuple[Result, Dataset, None]:
    side = data.resolution if isinstance(data, Dataset) and reading.resolution is None else reading.resolution
    given = open_foreign(inputs, side, strict=reading.strict, bit_range=reading.bit_range)
    images = given.images.expand(-1, 3, -1, -1)
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinite values; repair the set, or leave them out")
    dataset = load_for(data, images.shape[-1], reading, {})
    if reading.normalization is not None:
        if not given.is_raw:
            raise InputError(f"{given.name!r} holds pictures, which are not normalized; leave the normalization out")
        images = in_unit_range(images, *reading.normalization)
    elif given.is_raw:
        images = _in_unit_range(to_unit(images), dataset, reading.image_range)
    about = {"set": given.name, "foreign": True, "data": dataset.name, "match": reading.match}
    about |= {"resized": given.rule} if given.rule else {}
    own = given.labels, given.class_names, {}, about, dataset.mean, dataset.std
    result = Result(images, *own, weights=weights_beside(inputs, len(images)))
    result = _matched(result, given.wnids, dataset, reading.match, given.is_named)
    require_test(dataset)
    return result, dataset, None


def _matched(result: Result, wnids: Sequence[str | None], data: Dataset, match: str, is_named: bool) -> Result:
    """Return a set with the classes, and the labels, of the data."""
    places = labels_in(result.class_names, wnids, data.class_names, data.wnids, match=match, is_named=is_named)
    if result.labels.min() < 0 or result.labels.max() >= len(places):
        raise InputError(f"labels must be 0…{len(places) - 1}; found {result.labels.unique().tolist()}")
    labels = torch.tensor(places)[result.labels]
    return _relabelled(result, labels, data)


def _is_pair(inputs: object) -> bool:
    """Whether it is two arrays, or nothing that could be a set."""
    is_source = isinstance(inputs, str | os.PathLike | Mapping | Dataset) or hasattr(inputs, "__getitem__")
    return isinstance(inputs, tuple | list | Tensor) or not is_source


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
    return _relabelled(result, labels, data)


def _relabelled(result: Result, labels: Tensor, data: Dataset) -> Result:
    """Return a set with the classes of the data and these labels, in their order."""
    order = labels.argsort(stable=True)
    weights = None if result.weights is None else result.weights[order]
    images = result.images[order]
    return replace(result, images=images, labels=labels[order], class_names=data.class_names, weights=weights)


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
