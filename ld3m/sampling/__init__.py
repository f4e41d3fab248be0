"""Sets that are made class by class: sampled from a prior (D3HR, D4M), or chosen among real images.

To sample: statistics of a class, then latents chosen by them.

A selector is three functions, the last of them mostly the common one:

    gather(prior, batches of a class's latents, conditioning, config, seed) -> ClassStatistics
    select(statistics, config, seed, device) -> (noisy latents (ipc, c, h, w), what is worth a line in the log)
    sample(prior, noisy latents, statistics, conditioning, config, seed) -> latents (ipc, c, h, w)
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ld3m.config.sample import SampleConfig, resolve
from ld3m.sampling import group, itself, kmeans, modes, moments, plain, random, transport
from ld3m.sampling.statistics import ClassStatistics, Moments, inverted_statistics
from ld3m.sampling.together import sample_together

__all__ = ["SELECTORS", "ClassStatistics", "Moments", "SampleConfig", "Selector", "resolve"]


def _inverted(config: SampleConfig) -> dict[str, object]:
    return {"inversion_guidance": float(config.inversion_guidance)}


@dataclass(frozen=True)
class Selector:
    """A way to gather a class's statistics, to choose its latents by them, and to sample from there.

    Args:
        follows: says what statistics follow from beside data, prior, precision and grid.
        sample: makes the latents of the images.
        is_weighted: whether the images have weights.
        is_seeded: whether the statistics follow from the seed.
        fewest: real images of a class that are needed; None for as many as are made.
        is_from_noise: whether sampling starts at the noisiest point of the grid, not at `stop`.
        pull: the default strength of a pull, 0 where there is none.
        window: its first and last point by default, as shares of the grid; the noisier half of it when None.
    """

    gather: Callable[..., ClassStatistics]
    select: Callable[..., tuple]
    follows: Callable[[SampleConfig], dict[str, object]] = _inverted
    sample: Callable[..., Tensor] = sample_together
    is_weighted: bool = False
    is_seeded: bool = False
    fewest: int | None = 2
    is_from_noise: bool = False
    pull: float = 0.0
    window: tuple[float, float] | None = None


SELECTORS = {
    "group": Selector(inverted_statistics, group.select),
    "moments": Selector(inverted_statistics, moments.select),
    "random": Selector(inverted_statistics, random.select),
    "kmeans": Selector(  # one image from each prototype
        kmeans.prototype_statistics,
        random.select,
        lambda config: {"prototypes": config.ipc, "shares": "kept"},  # earlier releases did not keep them
        is_weighted=True,
        is_seeded=True,
        fewest=None,
    ),
    "plain": Selector(plain.standard_statistics, random.select, lambda _: {}, fewest=0, is_from_noise=True),
    "modes": Selector(
        modes.mode_statistics,
        random.select,
        lambda config: {"modes": config.modes, "number": config.ipc},
        is_weighted=True,
        is_seeded=True,
        fewest=None,
        is_from_noise=True,
        pull=0.1,
    ),
    "itself": Selector(itself.own_statistics, random.select, lambda _: {}, fewest=None, pull=0.1, window=(0.5, 0.25)),
    "transport": Selector(
        transport.cluster_statistics,
        random.select,
        lambda _: {"clusters": transport.CLUSTERS},
        transport.sample_one_by_one,
        is_seeded=True,
        fewest=1,
        is_from_noise=True,
        pull=0.5,
        window=(0.9, 0.6),
    ),
}
