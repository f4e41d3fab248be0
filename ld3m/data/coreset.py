"""A few real images of each class, chosen at random or by k-means: to start from, and to compare with."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.data.clustering import cell_sizes, kmeans
from ld3m.data.images import ImageSet

_SIDE = 32  # images are compared at no more than this many pixels a side
_CHUNK = 512


def random_images(train: ImageSet, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw counts[k] distinct images of each class k; return their positions in `train`, class by class."""
    return torch.cat([random_of(train.of_class(label), count, generator) for label, count in enumerate(counts)])


def random_of(members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw distinct positions out of those of one class."""
    return members[torch.randperm(len(members), generator=generator)[:count]]


def kmeans_images(train: ImageSet, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Choose the distinct images of each class k nearest to its counts[k] k-means centres; return their positions."""
    chosen = [kmeans_of(train, train.of_class(label), count, generator) for label, count in enumerate(counts)]
    return torch.cat([positions for positions, _ in chosen])


def kmeans_of(train: ImageSet, members: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the distinct images of one class nearest to its k-means centres; return positions and sizes of the cells.

    Distances are Euclidean, between pixels of images averaged down to 32 px where they are larger: no network's
    features, which would be one more choice. A single centre is the mean of the class.
    """
    points = torch.cat([_pixels(train.batch(block)) for block in members.split(_CHUNK)])
    centres = kmeans(points, count, generator)
    distances, chosen = torch.cdist(points, centres), list[int]()  # (n, count)
    for centre in range(count):
        nearest = int(distances[:, centre].argmin())
        chosen.append(int(members[nearest]))
        distances[nearest] = math.inf  # an image serves one centre
    return torch.tensor(chosen, dtype=torch.int64), cell_sizes(points, centres)


def _pixels(images: Tensor) -> Tensor:
    if images.shape[-1] > _SIDE:
        images = F.adaptive_avg_pool2d(images, _SIDE)  # (n, 3, H, W) -> (n, 3, 32, 32)
    return images.flatten(1).double()  # (n, D)
