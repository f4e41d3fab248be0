"""Noise and a class, nothing else: what a prior makes without looking at the data, the baseline of every selector."""

from collections.abc import Iterable

from torch import Tensor

from ld3m.config.sample import ResolvedSampleConfig
from ld3m.priors.base import Prior
from ld3m.sampling.statistics import ClassStatistics, noise_of


def standard_statistics(
    prior: Prior, batches: Iterable[Tensor], conditioning: Tensor, config: ResolvedSampleConfig, seed: int
) -> ClassStatistics:
    """Return N(0, 1) at the noisiest point of the grid; no image is encoded."""
    side = config.resolution // prior.downsample
    return noise_of((prior.latent_channels, side, side), config)
