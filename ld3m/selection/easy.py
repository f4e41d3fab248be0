"""The images that a teacher has the lowest loss on (loss pruning, Moser et al. 2024, arXiv 2411.12115)."""

from collections.abc import Sequence

import torch
from torch import nn

from ld3m.config import SelectConfig
from ld3m.selection.base import Candidates, Measured, losses_and_errors


def measure(
    networks: Sequence[nn.Module], candidates: Candidates, config: SelectConfig, generator: torch.Generator
) -> Measured:
    """Return the teacher's cross-entropy of each image."""
    (teacher,) = networks
    device = next(teacher.parameters()).device
    parts = [losses_and_errors(teacher, batch, candidates.label)[0] for batch in candidates.batches(device)]
    return {"score": torch.cat(parts)}
