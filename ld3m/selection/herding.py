"""Images whose mean feature follows that of the class (herding, Welling 2009, as in iCaRL, Rebuffi et al. 2017)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ld3m.config import SelectConfig
from ld3m.selection.base import Candidates, Measured


def measure(
    networks: Sequence[nn.Module], candidates: Candidates, config: SelectConfig, generator: torch.Generator
) -> Measured:
    """Return the place of each image in the herding order of the teacher's features."""
    (teacher,) = networks
    embed: Any = teacher.embed  # of every network of `ld3m.networks`
    device = next(teacher.parameters()).device
    with torch.inference_mode():
        features = [embed(batch).double().cpu() for batch in candidates.batches(device)]
    order = herding_order(torch.cat(features))
    return {"score": order.argsort().float()}


def herding_order(features: Tensor) -> Tensor:
    """Order rows (n, D): each next one brings the mean of those so far as near to the mean of all as any can.

    With m the mean of all, S the sum of k chosen ones, the next f minimises ‖m − (S + f)/(k + 1)‖, which is
    ‖f − r‖ for r = (k + 1) m − S. Of equally good ones the first is taken.
    """
    mean, squares = features.mean(0), features.square().sum(1)
    rest, left, order = mean.clone(), torch.ones(len(features), dtype=torch.bool), list[int]()
    for _ in range(len(features)):
        distances = squares - 2 * features @ rest  # + ‖r‖², the same for all
        order.append(int(distances.masked_fill(~left, torch.inf).argmin()))
        left[order[-1]] = False
        rest += mean - features[order[-1]]
    return torch.tensor(order)
