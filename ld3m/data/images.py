"""A loaded data set: two splits of uint8 images, their classes and their pixel statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ld3m.errors import DataError
from ld3m.runtime.fingerprints import fingerprint


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split.

    Args:
        images: (N, 3, H, W) uint8, on the CPU, perhaps backed by a memory map.
        labels: (N,) int64, each in 0…num_classes-1.
        class_names: one a class, in label order.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def of_class(self, label: int) -> Tensor:
        """Return the positions of the images of a class, (n,) int64, ascending."""
        return self._by_class[label]

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        return by_class(self.labels, self.num_classes)

    def only(self, positions: Tensor) -> "ImageSet":
        """Return a copy of the images at these positions, as a split of the same classes."""
        return ImageSet(self.images[positions], self.labels[positions], self.class_names)

    def batch(self, indices: Tensor | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Return the images at `indices` as float32 (B, 3, H, W) in [0, 1], on a device."""
        return to_unit(self.at(indices).to(device))  # moved as bytes, a quarter of the floats

    def at(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the images at `indices` as they are, (B, 3, H, W)."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[positions.to(self.images.device, non_blocking=True)]

    def require_per_class(self, minimum: int, argument: str) -> None:
        """Raise DataError when a class has fewer than `minimum` images; `argument` is what asked for them: "--ipc"."""
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        smallest = int(counts.argmin())
        if counts[smallest] < minimum:
            raise DataError(
                f"class {self.class_names[smallest]!r} has {int(counts[smallest])} images, "
                f"{argument} {minimum} asks for more; lower {argument} or add images to the class"
            )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set at one resolution.

    Args:
        mean, std: (3,) float32, over all pixels of the training images in [0, 1].
        class_names: readable names; a folder named by a known wnid gets its ILSVRC name.
        wnids: per class the WordNet id its folder was named by, or None.
    """

    name: str
    train: ImageSet
    test: ImageSet | None
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]
    wnids: tuple[str | None, ...]
    resolution: int

    @cached_property
    def fingerprint(self) -> str:
        """A key of this data and this split of it: labels, and statistics of all training pixels."""
        facts = self.class_names, self.resolution, 0 if self.test is None else len(self.test)
        return fingerprint((self.mean, self.std, self.train.labels), *facts)

    def normalize(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std of (…, 3, H, W) images in [0, 1], on their device and in their dtype."""
        where = images.device, images.dtype
        if where not in self._statistics:  # moved once: a GPU would be waited for each time
            self._statistics[where] = tuple(each.to(images)[:, None, None] for each in (self.mean, self.std))
        mean, std = self._statistics[where]
        return (images - mean) / std

    @cached_property
    def _statistics(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]]:
        """Mean and standard deviation (3, 1, 1) by where they have been needed, and in what dtype."""
        return {}

    def normalise(self, images: Tensor) -> Tensor:
        """Deprecated name of `normalize`."""
        return self.normalize(images)


def by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Return for each class the positions of its labels (N,), ascending: all of them by one sort."""
    sizes = torch.bincount(labels, minlength=num_classes).tolist()
    small = labels.numpy().astype(np.uint16) if num_classes <= 2**16 else labels.numpy()  # which NumPy sorts by digits
    return torch.from_numpy(small.argsort(kind="stable")).split(sizes)


def closed_up(images: Tensor, positions: Tensor, chunk: int = 1024) -> Tensor:
    """Move the images at ascending positions (n,) to the front, in place; return them, a view of their memory."""
    count = len(positions)
    moved = (positions != torch.arange(count)).nonzero()
    for start in range(int(moved[0]) if len(moved) else count, count, chunk):
        end = min(start + chunk, count)
        images[start:end] = images[positions[start:end]]
    return images[:count]


def to_unit(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]: bytes are divided by 255, floats are there already."""
    return images.float() if images.is_floating_point() else images.float().div_(255)


def channel_statistics(images: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Return the mean and population standard deviation of each channel of uint8 (N, 3, H, W), in units of [0, 1].

    Counted in histograms, so they are exact and do not depend on the order of the images. A constant channel gets
    the standard deviation 1, since one divides by it.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for block in images.split(chunk):
        for channel in range(3):
            counts[channel] += torch.bincount(block[:, channel].flatten(), minlength=256)
    weights = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ levels
    std = (weights * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()
