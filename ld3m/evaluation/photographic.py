"""Augmentations of photographs as published evaluations have them: color jitter and PCA lighting, shuffled patches.

Jitter and lighting are those of Kim et al. 2022 (IDC), which Gu et al. 2024 (Minimax) evaluate with: no values are
clipped, brightness and contrast included.
"""

import torch
from torch import Tensor

from ld3m.data.normalizations import moments

JITTER, LIGHTING = 0.4, 0.1
_GRAY = (0.299, 0.587, 0.114)
_EIGENVALUES = (0.2175, 0.0188, 0.0045)  # of the colors of ImageNet, Krizhevsky et al. 2012
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def jitter_and_light(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image in an order of its own, then its lighting.

    Args:
        images: (B, 3, H, W), normalized by the mean and standard deviation of ImageNet, as are those returned.
    """
    mean, std = (part.to(images)[:, None, None] for part in moments("imagenet", "normalization"))
    x, count = images * std + mean, len(images)
    amounts = JITTER * (2 * torch.rand(3, count, generator=generator) - 1)
    order = torch.rand(count, 3, generator=generator).argsort(1)  # (B, 3): which of the three comes when
    for place in range(3):
        turn = order[:, place]
        amount = amounts[turn, torch.arange(count)].to(x)[:, None, None, None]
        x = torch.lerp(x, _towards(x, turn), amount)
    alphas = LIGHTING * torch.randn(count, 3, generator=generator)
    return (x + lighting(alphas).to(x)[:, :, None, None] - mean) / std


def lighting(alphas: Tensor) -> Tensor:
    """Return what is added to each channel, (B, 3), for draws (B, 3) along the principal colors."""
    return (alphas * torch.tensor(_EIGENVALUES)) @ torch.tensor(_EIGENVECTORS).T


def _towards(images: Tensor, turn: Tensor) -> Tensor:
    """Return what each image is moved to or from: black (0), its mean gray (1), its own gray (2)."""
    gray = (images * torch.tensor(_GRAY).to(images)[:, None, None]).sum(1, keepdim=True)  # (B, 1, H, W)
    means = gray.mean((2, 3), keepdim=True).expand_as(gray)
    kind = turn.to(images.device)[:, None, None, None]
    return torch.where(kind == 0, torch.zeros_like(gray), torch.where(kind == 1, means, gray)).expand_as(images)


def shuffle_patches(images: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """Cut each image into factor x factor patches and shuffle the columns and the rows of patches (Sun et al. 2024)."""
    count, side = len(images), images.shape[-1]
    cut = side // factor
    starts = torch.tensor([k * cut for k in range(factor)])
    sizes = [cut] * (factor - 1) + [side - cut * (factor - 1)]
    shuffled = images
    for axis in (3, 2):
        order = torch.rand(count, factor, generator=generator).argsort(1)
        rows = [torch.cat([starts[k] + torch.arange(sizes[k]) for k in one]) for one in order.tolist()]
        index = torch.stack(rows).to(images.device)  # (B, H): which column, or row, comes where
        index = index[:, None, None, :] if axis == 3 else index[:, None, :, None]
        shuffled = shuffled.gather(axis, index.expand_as(shuffled))
    return shuffled


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left and right half of the time."""
    is_flipped = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(is_flipped[:, None, None, None], images.flip(3), images)
