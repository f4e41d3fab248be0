"""Images drawn at random: what every choice is to be compared with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ld3m.config import SelectConfig
from ld3m.data.coreset import random_of
from ld3m.selection.base import Candidates, Choice


def choose(
    candidates: Candidates, measured: Mapping[str, Tensor], count: int, config: SelectConfig, generator: torch.Generator
) -> Choice:
    """Draw distinct images of the class."""
    return Choice(random_of(candidates.members, count, generator)[:, None])
