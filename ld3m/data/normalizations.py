"""Means and standard deviations by which published sets and protocols normalize images in [0, 1]."""

import torch
from torch import Tensor

from ld3m.config import one_of

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

# As in the code of Zhao et al. (DC, DSA, DM)
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": _CIFAR10,
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),
    "fashion-mnist": ((0.2861,) * 3, (0.3530,) * 3),
    "tiny-imagenet": _IMAGENET,
    "imagenet": _IMAGENET,
    "half": ((0.5,) * 3, (0.5,) * 3),
}


def moments(name: str, argument: str) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, each (3,), of a normalization by its name."""
    one_of(name, argument, NORMALIZATIONS)
    mean, std = NORMALIZATIONS[name]
    return torch.tensor(mean), torch.tensor(std)
