"""Weights of images in a loss."""

import torch
from torch import Tensor


def relative(weights: Tensor | None, labels: Tensor) -> Tensor | None:
    """Return weights (N,) scaled to a mean of 1 over each class, (N,) float32; None where all images count alike.

    A class whose weights are all 0 counts for nothing.
    """
    if weights is None:
        return None
    own = weights.double()
    sums = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, own)
    scaled = (own * torch.bincount(labels)[labels] / sums.clamp_min(torch.finfo(torch.float64).tiny)[labels]).float()
    return None if bool((scaled == 1).all()) else scaled
