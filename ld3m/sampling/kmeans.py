"""Prototypes of a class, noised and sampled back, after D4M (Su et al. 2024, arXiv 2407.15138)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ld3m.chain import NoisyLatents
from ld3m.config.sample import SampleConfig
from ld3m.data.clustering import cell_sizes, kmeans, shares
from ld3m.priors.base import Prior
from ld3m.runtime import seeds
from ld3m.sampling.statistics import ClassStatistics, noised


def prototype_statistics(
    prior: Prior, batches: Iterable[Tensor], conditioning: Tensor, config: SampleConfig, seed: int
) -> ClassStatistics:
    """Find k-means centres x of the latents themselves, and noise them: Gaussians of mean √ᾱ x and deviation √(1−ᾱ).

    The shares of their cells are the weights of the images (DDOQ, arXiv 2501.07681).
    """
    latents = torch.cat([part.cpu() for part in batches])  # (n, c, h, w) of one class
    points = latents.flatten(1).double()
    centres = kmeans(points, config.ipc, seeds.generator(seed, "kmeans")).unflatten(1, latents.shape[1:])
    timestep = NoisyLatents(latents, config.stop, config.steps, config.spacing).timestep
    weights = shares(cell_sizes(points, centres.flatten(1)))
    return noised(centres, prior.alphas_cumprod[timestep], config, weights)
