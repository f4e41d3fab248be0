"""Modes of a class, towards which an image each is pulled while it is sampled from noise (MGD3, arXiv 2505.18963)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ld3m.config.sample import SampleConfig
from ld3m.data.clustering import cell_sizes, gaussian_mixture, kmeans, shares
from ld3m.priors.base import Prior
from ld3m.runtime import seeds
from ld3m.sampling.statistics import ClassStatistics, noise_of


def mode_statistics(
    prior: Prior, batches: Iterable[Tensor], conditioning: Tensor, config: SampleConfig, seed: int
) -> ClassStatistics:
    """Find a mode for each image to be made, in the latents of a class; noise at the noisiest point goes with them.

    The shares of the modes are the weights of the images.
    """
    latents = torch.cat([part.cpu() for part in batches])  # (n, c, h, w) of one class
    points = latents.flatten(1).double()
    modes, weights = MODES[config.modes](points, config.ipc, seeds.generator(seed, "modes"))
    return noise_of(latents.shape[1:], config, modes.unflatten(1, latents.shape[1:]).float(), weights)


def _centres(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    centres = kmeans(points, count, generator)
    return centres, shares(cell_sizes(points, centres))


def _nearest(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the point nearest to each centre."""
    centres, weights = _centres(points, count, generator)
    return points[torch.cdist(centres, points).argmin(1)], weights


def _mixture(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    means, masses = gaussian_mixture(points, count, generator)
    return means, (masses * count).float()


MODES: dict[str, Callable[[Tensor, int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "kmeans": _centres,
    "gmm": _mixture,
    "nearest": _nearest,
}
