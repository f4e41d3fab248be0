"""The outcome of a distillation: images, labels and what made them, in memory and as a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.errors import CheckpointError
from ld3m.runs import pictures
from ld3m.runs.folder import DISTILLED, GRID
from ld3m.runtime.storage import load_tensors, save_tensors

PARAMETERS = ("latents", "conditioning", "features", "codes")  # pixels are the images themselves

_GRID_CLASSES, _GRID_PER_CLASS = 100, 10


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
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    config: Mapping[str, Any]
    mean: Tensor
    std: Tensor
    path: Path | None = None

    @property
    def latents(self) -> Tensor | None:
        """Latents as optimised, where the space has them."""
        return self.parameters.get("latents")

    @property
    def conditioning(self) -> Tensor | None:
        """Conditioning as optimised, where the space has it."""
        return self.parameters.get("conditioning")

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.labels) // len(self.class_names)

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
                    left.unlink()
        self.draw_grid(folder)
        tensors = {"images": self.images, "labels": self.labels, "mean": self.mean, "std": self.std, **self.parameters}
        about = {"class_names": json.dumps(self.class_names), "config": json.dumps(dict(self.config), sort_keys=True)}
        save_tensors(folder / DISTILLED, tensors, about)
        return folder

    def draw_grid(self, folder: Path) -> None:
        """Write `grid.png`, class by class in rows of ten: at most 100 classes, and 10 images of each."""
        per_class = min(self.ipc, _GRID_PER_CLASS)
        labels = torch.arange(min(len(self.class_names), _GRID_CLASSES))
        shown = (labels[:, None] * self.ipc + torch.arange(per_class)).flatten()
        pictures.save_png(folder / GRID, pictures.grid(self.images[shown], _GRID_PER_CLASS))


def load(folder: str | Path) -> Result:
    """Load what `Result.save` or `ld3m.distill(out=folder)` wrote.

    Raises:
        CheckpointError: the folder or its `distilled.safetensors` is missing, damaged or of something else.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; pass the output folder of a distillation")
    if not (folder / DISTILLED).is_file():
        raise CheckpointError(f"{folder} has no {DISTILLED}: not a finished run; go on with it by --resume")
    tensors, about = load_tensors(folder / DISTILLED)
    missing = {"images", "labels", "mean", "std"} - tensors.keys() | {"class_names", "config"} - about.keys()
    if missing:
        raise CheckpointError(f"{folder / DISTILLED} lacks {', '.join(sorted(missing))}; it is not a distilled set")
    return Result(
        images=tensors["images"],
        labels=tensors["labels"].to(torch.int64),
        class_names=tuple(json.loads(about["class_names"])),
        parameters={name: tensors[name] for name in PARAMETERS if name in tensors},
        config=json.loads(about["config"]),
        mean=tensors["mean"],
        std=tensors["std"],
        path=folder,
    )


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for each class, all different even where upper and lower case are the same.

    What no file system takes becomes "-"; a name that is taken already gets its label behind it.
    """
    names, taken = [], {"readme.md"}
    for label, class_name in enumerate(class_names):
        cleaned = "".join("-" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in class_name)
        name = cleaned.strip(" .") or "-"
        while name.casefold() in taken:
            name += f"-{label}"
        taken.add(name.casefold())
        names.append(name)
    return names
