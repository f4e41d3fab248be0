"""Sets that are made class by class: sampled from a prior (D3HR, D4M), or chosen among real images.

To sample: statistics of a class, then latents chosen by them.

A selector is two functions:

    gather(prior, batches of a class's latents, conditioning, config, seed) -> ClassStatistics
    select(statistics, config, seed, device) -> (noisy latents (ipc, c, h, w), what is worth a line in the log)
"""

from collections.abc import Callable
from dataclasses import dataclass

from ld3m.config.sample import SampleConfig, resolve
from ld3m.sampling import group, kmeans, moments, random
from ld3m.sampling.statistics import ClassStatistics, Moments, inverted_statistics

__all__ = ["SELECTORS", "ClassStatistics", "Moments", "SampleConfig", "Selector", "resolve"]


@dataclass(frozen=True)
class Selector:
    """A way to gather a class's statistics, and to choose its latents by them."""

    gather: Callable[..., ClassStatistics]
    select: Callable[..., tuple]
    is_weighted: bool = False  # the images have weights


SELECTORS = {
    "group": Selector(inverted_statistics, group.select),
    "moments": Selector(inverted_statistics, moments.select),
    "random": Selector(inverted_statistics, random.select),
    "kmeans": Selector(kmeans.prototype_statistics, random.select, is_weighted=True),  # one image from each prototype
}
