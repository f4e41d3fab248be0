"""The outcome of a distillation: images, labels and what made them, in memory and as a folder."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ld3m.errors import CheckpointError
from ld3m.runs import display, pictures
from ld3m.runs.folder import DISTILLED, GRID
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.reading import is_there, listing, mapping, optional, parse_json, shown, text
from ld3m.runtime.storage import load_tensors, remove, save_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

PARAMETERS = ("latents", "conditioning", "features", "codes")  # pixels are the images themselves

WEIGHTS = "weights"  # of the images, where they differ
_LONGEST = 200  # bytes of a name; file systems take 255, of which an export may need some for marks
_SLACK = 1e-3  # of a value's range, a quarter of a grey level
_METADATA = {"class_names": listing(text(), least=1), "config": mapping({}, {"network": optional(text())})}
_LABELS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_AGAIN = "restore it from a copy, or make it again by `ld3m distill --overwrite`"


@dataclass(frozen=True, eq=False)
class Result:
    """A distilled set.

    Args:
        images: (N, 3, H, W) float32 in [0, 1].
        labels: (N,) int64, class-major.
        class_names: name of each label.
        parameters: float32 tensors that the images were rendered from, by name: latents (N, c, h, w), conditioning
            (N, tokens, dim); or features (N, C, h, w), codes (N, layers, dim); none in pixel space.
        config: every setting of the run, resolved.
        mean, std: (3,) of the training images in [0, 1]; networks see (image − mean) / std.
        path: the run's folder, where there is one.
        weights: (N,) float32 of the images' losses in a training, 0 or more, about 1 on average over a class; None
            where all count alike.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    config: Mapping[str, Any]
    mean: Tensor
    std: Tensor
    path: Path | None = None
    weights: Tensor | None = None

    @property
    def latents(self) -> Tensor | None:
        """Latents as optimised, where the space has them."""
        return self.parameters.get("latents")

    @property
    def conditioning(self) -> Tensor | None:
        """Conditioning as optimised, where the space has it."""
        return self.parameters.get("conditioning")

    @property
    def set_name(self) -> str:
        """What the set is called in the rows of an evaluation."""
        plain = "selected" if "by" in self.config else "distilled"
        return str(self.config.get("set", self.config.get("space", plain)))

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.labels) // len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        method = [str(self.config[key]) for key in ("algorithm", "selector", "by", "space") if key in self.config]
        parts = [self._summary(), "-".join(method), "" if self.path is None else str(self.path)]
        return f"Result({', '.join(filter(None, parts))})"

    def _repr_html_(self) -> str:
        picture = display.inline_picture(self.grid(), self._summary())
        return f"<p>{html.escape(repr(self))}</p>{picture}"

    def _summary(self) -> str:
        height, width = self.images.shape[-2:]
        return f"{len(self)} images of {len(self.class_names)} classes, {width} × {height} px"

    def grid(self) -> "Image":
        """Draw the images with the names of their classes: at most 100 classes, and 10 images of each; of large images
        fewer and smaller."""
        num_classes, count, side = pictures.fitting(len(self.class_names), self.ipc, self.images.shape[-1])
        shown = ((name, self.images[self.labels == k]) for k, name in enumerate(self.class_names[:num_classes]))
        return display.named_grid([(name, pictures.shrunk(images[:count], side)) for name, images in shown])

    def dataset(self) -> TensorDataset:
        """Return a torch data set of (image, label), the images (3, H, W) normalized as networks are to see them."""
        mean, std = (moments.view(3, 1, 1) for moments in (self.mean, self.std))
        return TensorDataset((self.images - mean) / std, self.labels)

    def save(self, folder: str | Path) -> Path:
        """Write `distilled.safetensors`, `images/<class>/<k>.png` and `grid.png` into `folder`; return it.

        The tensors are written last and whole, so that a folder that has them has the rest.
        """
        folder = Path(folder)
        for label, name in enumerate(folder_names(self.class_names)):
            images = self.images[self.labels == label]
            pictures.save_numbered(folder / "images" / name, images)
            for left in (folder / "images" / name).glob("*.png"):  # of a set with more images
                if left.stem.isdecimal() and int(left.stem) >= len(images):
                    remove(left)
        self.draw_grid(folder)
        tensors = {"images": self.images, "labels": self.labels, "mean": self.mean, "std": self.std, **self.parameters}
        tensors |= {} if self.weights is None else {WEIGHTS: self.weights}
        about = {"class_names": json.dumps(self.class_names), "config": json.dumps(dict(self.config), sort_keys=True)}
        save_tensors(folder / DISTILLED, tensors, about)
        return folder

    def detached(self) -> "Result":
        """Return the set without its folder, not holding on to the file that it was loaded from."""
        own = {name: getattr(self, name).clone() for name in ("images", "labels", "mean", "std")}
        parameters = {name: tensor.clone() for name, tensor in self.parameters.items()}
        weights = None if self.weights is None else self.weights.clone()
        return replace(self, **own, parameters=parameters, weights=weights, path=None)

    def fingerprint(self) -> str:
        """Return a fingerprint of the images, and of what they were rendered from."""
        return fingerprint((self.images, self.labels, *(self.parameters[name] for name in sorted(self.parameters))))

    def draw_grid(self, folder: Path) -> None:
        """Write `grid.png`."""
        pictures.save_png(folder / GRID, self.grid())


def load(folder: str | Path) -> Result:
    """Load what `Result.save` or `ld3m.distill(out=folder)` wrote.

    Raises:
        CheckpointError: the folder or its `distilled.safetensors` is missing, damaged or of something else.
    """
    folder = Path(folder)
    if not is_there(folder) or not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; pass the output folder of a distillation")
    path = folder / DISTILLED
    if not is_there(path):
        raise CheckpointError(f"{folder} has no {DISTILLED}: not a finished run; go on with it by --resume")
    tensors, about = load_tensors(path, _AGAIN)
    missing = {"images", "labels", "mean", "std"} - tensors.keys() | {"class_names", "config"} - about.keys()
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; it is not a distilled set")
    class_names, config = (
        parse_json(about[name], check, source=f"{name} in {path}", remedy=_AGAIN) for name, check in _METADATA.items()
    )
    result = Result(
        images=tensors["images"],
        labels=tensors["labels"],
        class_names=tuple(class_names),
        parameters={name: tensors[name] for name in PARAMETERS if name in tensors},
        config=config,
        mean=tensors["mean"],
        std=tensors["std"],
        path=folder,
        weights=tensors.get(WEIGHTS),
    )
    if fault := _fault_of(result):
        raise CheckpointError(f"{path} is no distilled set: {fault}; {_AGAIN}")
    return replace(result, labels=result.labels.to(torch.int64))


def _fault_of(result: Result) -> str:
    """Say what of a set is not as `Result` declares it; "" for a whole one."""
    images, labels, names = result.images, result.labels, result.class_names
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel() or not images.is_floating_point():
        return f"images are floating point of shape (N, 3, H, W), got {tuple(images.shape)} {images.dtype}"
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -_SLACK and high <= 1 + _SLACK) or not bool(images.isfinite().all()):
        return f"images are finite and from 0 to 1, got {low:.4g} to {high:.4g}"
    if labels.shape != images.shape[:1] or labels.dtype not in _LABELS:
        return f"labels are integers, one for each of {len(images)} images, got {tuple(labels.shape)} {labels.dtype}"
    if len(set(names)) != len(names):
        return "two classes have the same name"
    ipc, rest = divmod(len(labels), len(names))
    if rest or not torch.equal(labels.long(), torch.arange(len(names)).repeat_interleave(ipc)):
        return f"labels count up from 0 to {len(names) - 1}, as many of each, got {shown(labels.unique().tolist())}"
    for name, tensor in {"mean": result.mean, "std": result.std, **result.parameters}.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            return f"{name} holds finite floating-point values, got {tensor.dtype} with others"
        if name in ("mean", "std") and tensor.shape != (3,):
            return f"{name} has 3 values, got {tuple(tensor.shape)}"
        if name in PARAMETERS and (not tensor.ndim or len(tensor) != len(images)):
            return f"{name} has a row for each of {len(images)} images, got {tuple(tensor.shape)}"
    if result.weights is not None and (fault := _fault_of_weights(result.weights, len(images))):
        return fault
    return "" if bool((result.std > 0).all()) else f"std is above 0, got {shown(result.std.tolist())}"


def _fault_of_weights(weights: Tensor, count: int) -> str:
    if weights.shape != (count,) or not weights.is_floating_point() or not bool(weights.isfinite().all()):
        return f"weights are finite numbers, one for each of {count} images, got {tuple(weights.shape)} {weights.dtype}"
    return "" if bool((weights >= 0).all()) and bool(weights.any()) else "weights are 0 or more, and not all 0"


def _cut(name: str, most: int) -> str:
    """Return the start of a name that has no more than so many bytes."""
    return name.encode()[:most].decode(errors="ignore").rstrip(" .") or "-"


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for each class, all different even where upper and lower case are the same.

    What no file system takes becomes "-"; what is too long is cut; a name that is taken gets its label behind it.
    """
    names, taken = [], {"readme.md"}
    for label, class_name in enumerate(class_names):
        cleaned = "".join(
            "-" if c in '/\\:*?"<>|' or ord(c) < 32 or "\ud800" <= c <= "\udfff" else c for c in class_name
        )
        whole, more = cleaned.strip(" .") or "-", ""
        while (name := _cut(whole, _LONGEST - len(more)) + more).casefold() in taken:
            more += f"-{label}"
        taken.add(name.casefold())
        names.append(name)
    return names
