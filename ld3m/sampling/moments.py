"""One group drawn from the class's Gaussian, then shifted and scaled at every coordinate to its mean and deviation."""

import torch

from ld3m.chain import NoisyLatents
from ld3m.config.sample import SampleConfig
from ld3m.runtime import seeds
from ld3m.sampling.statistics import ClassStatistics


def select(
    statistics: ClassStatistics, config: SampleConfig, seed: int, device: torch.device
) -> tuple[NoisyLatents, dict[str, object]]:
    """Make the latents of a class, with mean and unbiased standard deviation exact; a single one is the mean."""
    shape = (config.ipc, *statistics.mean.shape[1:])
    noise = torch.randn(shape, generator=seeds.generator(seed, "moments"), dtype=torch.float64)
    noise = noise - noise.mean(0)
    if config.ipc > 1:
        noise = noise / noise.std(0)
    return statistics.noisy(noise.float()), {}
