"""The images nearest to the k-means centres of the class's pixels, each with the share of its cell as weight.

The weights are those of DDOQ (arXiv 2501.07681), which has them for prototypes in latent space.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ld3m.config import SelectConfig
from ld3m.data.clustering import shares
from ld3m.data.coreset import kmeans_of
from ld3m.selection.base import Candidates, Choice


def choose(
    candidates: Candidates, measured: Mapping[str, Tensor], count: int, config: SelectConfig, generator: torch.Generator
) -> Choice:
    """Choose distinct images of the class, one for each centre."""
    positions, sizes = kmeans_of(candidates.data.train, candidates.members, count, generator)
    return Choice(positions[:, None], weights=shares(sizes))
