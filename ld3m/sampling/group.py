"""Of many groups drawn from the class's Gaussian, the one whose statistics are nearest to it (D3HR)."""

import torch
from torch import Tensor

from ld3m.chain import NoisyLatents
from ld3m.config.sample import SampleConfig
from ld3m.ops.group_select import group_noise, group_select, score_noise
from ld3m.sampling.statistics import ClassStatistics

_PUBLISHED_CHUNK, _SCORED = 10_000, 500  # groups drawn at once, and scored at once


def select(
    statistics: ClassStatistics, config: SampleConfig, seed: int, device: torch.device
) -> tuple[NoisyLatents, dict[str, object]]:
    """Choose the latents of a class; say which group they are, and from which seed it was drawn.

    `group_noise` makes a group again from number and `group_seed`; one as published is row number modulo 10,000 of
    torch.randn after torch.manual_seed(`chunk_seed`).
    """
    std = statistics.std[0].flatten()
    if config.compat == "d3hr":
        index, score, noise = _published(std, config)
        drawn = {"chunk_seed": _chunk_seed(index)}
    else:
        index, score = group_select(
            std.to(device), ipc=config.ipc, groups=config.groups, seed=seed, weights=config.weights
        )
        noise = group_noise(torch.tensor([index]), ipc=config.ipc, dim=len(std), seed=seed)[0]
        drawn = {"group_seed": seed}
    facts = {"group": index, **drawn, "score": round(score, 6)}
    return statistics.noisy(noise.unflatten(1, statistics.std.shape[1:])), facts


def _published(std: Tensor, config: SampleConfig) -> tuple[int, float, Tensor]:
    """Return (index, score, noise) of the best group, all of them drawn and stored 10,000 at a time.

    The seed is that of the chunk, so that all classes draw the same noise.
    """
    best = -1, float("inf"), torch.empty(0)
    for first in range(0, config.groups, _PUBLISHED_CHUNK):
        generator = torch.Generator().manual_seed(_chunk_seed(first))
        count = min(_PUBLISHED_CHUNK, config.groups - first)
        noise = torch.randn((count, config.ipc, len(std)), generator=generator)
        scores = torch.cat([score_noise(part, std, config.weights) for part in noise.split(_SCORED)])
        found = int(scores.argmin())
        if float(scores[found]) < best[1]:
            best = first + found, float(scores[found]), noise[found].clone()
    return best


def _chunk_seed(group: int) -> int:
    return 12345 * (group // _PUBLISHED_CHUNK + 1)
