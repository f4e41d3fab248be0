"""From the chosen latents of a class to those of its images."""

from torch import Tensor

from ld3m.chain import NoisyLatents, Pull, sample
from ld3m.chain.sampling import Steer
from ld3m.config.sample import ResolvedSampleConfig
from ld3m.priors.base import Prior
from ld3m.sampling.statistics import ClassStatistics


def sample_together(
    prior: Prior,
    chosen: NoisyLatents,
    statistics: ClassStatistics,
    conditioning: Tensor,
    config: ResolvedSampleConfig,
    seed: int,
) -> Tensor:
    """Sample all images of a class, each pulled to its target where the statistics have targets.

    Args:
        conditioning: (1, tokens, dim) of the class.
        seed: of the noise of ancestral steps.
    """
    pull = None
    if statistics.targets is not None:
        pull = Pull(statistics.targets, config.pull, *config.pull_steps)
    return sample_chosen(prior, chosen, conditioning, config, seed, pull=pull)


def sample_chosen(
    prior: Prior,
    chosen: NoisyLatents,
    conditioning: Tensor,
    config: ResolvedSampleConfig,
    seed: int,
    *,
    pull: Pull | None = None,
    steer: Steer | None = None,
) -> Tensor:
    """Sample as the settings say."""
    return sample(
        prior,
        chosen,
        conditioning.expand(len(chosen.latents), -1, -1),
        guidance_scale=config.guidance_scale,
        compat=config.compat,
        micro_batch=config.micro_batch,
        sampler=config.sampler,
        variance=config.variance,
        noise_seed=seed,
        guided_channels=config.guided_channels,
        pull=pull,
        steer=steer,
    )
