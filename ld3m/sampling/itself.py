"""The images of a class themselves, noised to a level and sampled back, each pulled to what it was (DIVER)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ld3m.chain import NoisyLatents
from ld3m.config.sample import SampleConfig
from ld3m.errors import DataError
from ld3m.priors.base import Prior
from ld3m.sampling.statistics import ClassStatistics, noised


def own_statistics(
    prior: Prior, batches: Iterable[Tensor], conditioning: Tensor, config: SampleConfig, seed: int
) -> ClassStatistics:
    """Return Gaussians of mean √ᾱ x and deviation √(1−ᾱ) of the latents x, which are the targets as well.

    Raises:
        DataError: a class has not as many images as are to be made.
    """
    latents = torch.cat([part.cpu() for part in batches]).float()  # (n, c, h, w) of one class
    if len(latents) != config.ipc:
        raise DataError(f"each image is sampled anew: ipc is {config.ipc}, and a class has {len(latents)} images")
    timestep = NoisyLatents(latents, config.stop, config.steps, config.spacing).timestep
    return noised(latents, prior.alphas_cumprod[timestep], config, targets=latents)
