"""What selectors share: the candidates of a class, the choice among them, and the images it stands for."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ld3m.config import SelectConfig
from ld3m.data import Dataset
from ld3m.data.images import ImageSet
from ld3m.data.ranges import resize
from ld3m.errors import DataError

Measured = dict[str, Tensor]
_CHUNK_PIXELS = 128 * 64**2


@dataclass(frozen=True, eq=False)
class Candidates:
    """The real images of one class.

    Args:
        members: their positions in the training split, (n,).
    """

    data: Dataset
    label: int

    @property
    def members(self) -> Tensor:
        return self.data.train.of_class(self.label)

    def require(self, count: int, by: str, ipc: int, tiles: int) -> None:
        """Raise DataError where the class has fewer than `count` images."""
        if (have := len(self.members)) >= count:
            return
        each = "" if tiles == 1 else f", {tiles**2} images in each,"
        raise DataError(
            f"class {self.data.class_names[self.label]!r} has {have} images, --by {by} --ipc {ipc}{each} asks for "
            f"{count}; lower --ipc or add images to the class"
        )

    def batches(self, device: torch.device | str) -> Iterator[Tensor]:
        """Yield the images, normalized as networks see them, some at a time."""
        for part in self.members.split(max(1, _CHUNK_PIXELS // self.data.resolution**2)):
            yield self.data.normalize(self.data.train.batch(part, device))


@dataclass(frozen=True, eq=False)
class Choice:
    """Images to be made of real ones: whole, or tiles of several.

    Args:
        positions: in the training split, (N, tiles²), row by row of the tiles.
        boxes: (N, tiles², 3) int64, top, left and side of the square that a tile shows; None for the whole image.
        weights: (N,) float32 of the loss, of mean 1 over a class; None where all count alike.
    """

    positions: Tensor
    boxes: Tensor | None = None
    weights: Tensor | None = None

    @property
    def tiles(self) -> int:
        """Tiles per side."""
        return math.isqrt(self.positions.shape[1])

    @staticmethod
    def joined(parts: "list[Choice]") -> "Choice":
        """Return the choices of several classes as one."""
        boxes = [part.boxes for part in parts if part.boxes is not None]
        weights = [part.weights for part in parts if part.weights is not None]
        return Choice(
            torch.cat([part.positions for part in parts]),
            torch.cat(boxes) if boxes else None,
            torch.cat(weights) if weights else None,
        )


def lowest(
    candidates: Candidates, measured: Mapping[str, Tensor], count: int, config: SelectConfig, generator: torch.Generator
) -> Choice:
    """Choose the images of the lowest score, lowest first; of equal ones the first."""
    return Choice(candidates.members[measured["score"].argsort(stable=True)[:count]][:, None])


def render(train: ImageSet, choice: Choice) -> Tensor:
    """Return the images of a choice, uint8 (N, 3, H, H)."""
    if choice.tiles == 1 and choice.boxes is None:
        return train.images[choice.positions[:, 0]]
    side = train.images.shape[-1]
    sheet = torch.empty(len(choice.positions), 3, side, side, dtype=torch.uint8)
    spans = list(pairwise(tile_edges(side, choice.tiles)))
    for image, row in enumerate(choice.positions.tolist()):
        for k, position in enumerate(row):
            (top, bottom), (left, right) = spans[k // choice.tiles], spans[k % choice.tiles]
            part = train.batch([position])
            if choice.boxes is not None:
                y, x, size = choice.boxes[image, k].tolist()
                part = part[..., y : y + size, x : x + size]
            tile = resize(part, max(bottom - top, right - left))[0, :, : bottom - top, : right - left]
            sheet[image, :, top:bottom, left:right] = (tile * 255).round().to(torch.uint8)
    return sheet


def tile_edges(side: int, tiles: int) -> list[int]:
    """Return where tiles begin and end along a side."""
    return [round(k * side / tiles) for k in range(tiles + 1)]


@torch.inference_mode()
def losses_and_errors(network: nn.Module, images: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy (B,) of normalized images of a class, and their errors ‖softmax − onehot‖₂ (B,)."""
    logs = network(images).double().log_softmax(1)
    errors = logs.exp()
    errors[:, label] -= 1
    return -logs[:, label].cpu(), errors.norm(dim=1).cpu()
