"""A pull of the images of a class, one after the other, to where its clusters still lack mass (DMGD).

The clusters k_j of the class, with masses m_j, are compared with the images that are finished and the clean estimate x̂₀
of the one that is sampled, all of equal mass. With C the Euclidean distances and γ the entropic transport plan, held
fixed, a step moves by −ρ Σ_j γ_ij (x̂₀ − k_j)/C_ij: the gradient of Σ_j γ_ij C_ij. The paper leaves open at which level
of noise the two are compared; here they are compared without any.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ld3m.chain import NoisyLatents
from ld3m.config.sample import ResolvedSampleConfig, SampleConfig
from ld3m.data.clustering import cell_sizes, kmeans
from ld3m.priors.base import Prior
from ld3m.runtime import seeds
from ld3m.sampling.statistics import ClassStatistics, noise_of
from ld3m.sampling.together import sample_chosen

CLUSTERS = 10
_ENTROPY, _ITERATIONS = 0.1, 5
_LEAST = 1e-12


def cluster_statistics(
    prior: Prior, batches: Iterable[Tensor], conditioning: Tensor, config: SampleConfig, seed: int
) -> ClassStatistics:
    """Find k-means centres of the latents of a class, ten or as many as it has images, and their masses."""
    latents = torch.cat([part.cpu() for part in batches])
    points = latents.flatten(1).double()
    centres = kmeans(points, min(CLUSTERS, len(points)), seeds.generator(seed, "transport"))
    masses = (cell_sizes(points, centres).double() / len(points)).float()
    return noise_of(latents.shape[1:], config, centres.unflatten(1, latents.shape[1:]).float(), masses=masses)


def sample_one_by_one(
    prior: Prior,
    chosen: NoisyLatents,
    statistics: ClassStatistics,
    conditioning: Tensor,
    config: ResolvedSampleConfig,
    seed: int,
) -> Tensor:
    """Sample each image with those before it finished."""
    assert statistics.targets is not None and statistics.masses is not None  # of the clusters
    centres = statistics.targets.flatten(1).to(chosen.latents)
    masses = statistics.masses.to(centres)
    first, last = config.pull_steps
    done: list[Tensor] = []

    def steer(point: int, block: slice, clean: Callable[[], Tensor]) -> Tensor | None:
        if not config.pull or not last <= point <= first:
            return None
        points = torch.cat([*done, clean()]).flatten(1)
        return (config.pull * direction(points, centres, masses)).view_as(chosen.latents[:1])

    for k in range(len(chosen.latents)):
        one = NoisyLatents(chosen.latents[k : k + 1], chosen.step, chosen.steps, chosen.spacing)
        done.append(sample_chosen(prior, one, conditioning, config, seeds.derive(seed, k), steer=steer))
    return torch.cat(done)


def direction(points: Tensor, centres: Tensor, masses: Tensor) -> Tensor:
    """Return where the last of points (n, D) of equal mass is to move, (D,), so that the cost of transport falls.

    Args:
        centres, masses: (K, D) and (K,) of the clusters.
    """
    distances = torch.cdist(points, centres).clamp_min(_LEAST)
    shares = sinkhorn(distances, masses)[-1] / distances[-1]
    return (shares[:, None] * (centres - points[-1])).sum(0)


def sinkhorn(distances: Tensor, masses: Tensor) -> Tensor:
    """Return the entropic transport plan (n, K) from n points of equal mass to K clusters, by logarithms.

    Args:
        distances: (n, K).
        masses: (K,), of sum 1.
    """
    kernel, points = -distances / _ENTROPY, distances.new_full((len(distances),), 1 / len(distances))
    rows, columns = torch.zeros_like(points), torch.zeros_like(masses)
    for _ in range(_ITERATIONS):
        columns = masses.log() - (kernel + rows[:, None]).logsumexp(0)
        rows = points.log() - (kernel + columns).logsumexp(1)
    return (kernel + rows[:, None] + columns).exp()
