"""The images that networks early in training are least wrong about (EL2N, Paul et al. 2021, arXiv 2107.07075)."""

from collections.abc import Sequence

import torch
from torch import nn

from ld3m.config import SelectConfig
from ld3m.selection.base import Candidates, Measured, losses_and_errors


def measure(
    networks: Sequence[nn.Module], candidates: Candidates, config: SelectConfig, generator: torch.Generator
) -> Measured:
    """Return for each image the mean over the networks of ‖softmax − onehot‖₂."""
    device = next(networks[0].parameters()).device
    parts = [
        torch.stack([losses_and_errors(network, batch, candidates.label)[1] for network in networks]).mean(0)
        for batch in candidates.batches(device)
    ]
    return {"score": torch.cat(parts)}
