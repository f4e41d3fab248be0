"""The outcome of a distillation: images, labels and what made them, in memory and as a folder."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ld3m.errors import CheckpointError
from ld3m.runs import display, pictures
from ld3m.runs.folder import DISTILLED, GRID
from ld3m.runtime.storage import load_tensors, save_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

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

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        method = [str(self.config[key]) for key in ("algorithm", "selector", "space") if key in self.config]
        parts = [self._summary(), "-".join(method), "" if self.path is None else str(self.path)]
        return f"Result({', '.join(filter(None, parts))})"

    def _repr_html_(self) -> str:
        picture = display.inline_picture(self.grid(), self._summary())
        return f"<p>{html.escape(repr(self))}</p>{picture}"

    def _summary(self) -> str:
        height, width = self.images.shape[-2:]
        return f"{len(self)} images of {len(self.class_names)} classes, {width} × {height} px"

    def grid(self) -> "Image":
        """Draw the images with the names of their classes: at most 100 classes, and 10 images of each."""
        shown = enumerate(self.class_names[:_GRID_CLASSES])
        return display.named_grid([(name, self.images[self.labels == k][:_GRID_PER_CLASS]) for k, name in shown])

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
                    left.unlink()
        self.draw_grid(folder)
        tensors = {"images": self.images, "labels": self.labels, "mean": self.mean, "std": self.std, **self.parameters}
        about = {"class_names": json.dumps(self.class_names), "config": json.dumps(dict(self.config), sort_keys=True)}
        save_tensors(folder / DISTILLED, tensors, about)
        return folder

    def draw_grid(self, folder: Path) -> None:
        """Write `grid.png`."""
        pictures.save_png(folder / GRID, self.grid())


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
