"""Latents drawn from the class's Gaussian: what every choice among them is to be compared with."""

import torch

from ld3m.chain import NoisyLatents
from ld3m.config.sample import SampleConfig
from ld3m.runtime import seeds
from ld3m.sampling.statistics import ClassStatistics


def select(
    statistics: ClassStatistics, config: SampleConfig, seed: int, device: torch.device
) -> tuple[NoisyLatents, dict[str, object]]:
    """Draw the latents of a class, one from each Gaussian where there are several."""
    shape = (config.ipc, *statistics.mean.shape[1:])
    return statistics.noisy(torch.randn(shape, generator=seeds.generator(seed, "random"))), {}
