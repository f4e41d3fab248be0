"""The memory plan of pixel space: how many classes are matched at once, and how many real images a call of the network.

There is no chain and no decoder, so that more at once gains nothing once the network is busy: a small share of the
budget is enough for that, and what is planned stays within it where it can.
"""

import math
from dataclasses import dataclass

import torch

from ld3m.config import ResolvedDistillConfig
from ld3m.errors import ConfigError
from ld3m.matching import LOSSES, LossCosts, Work
from ld3m.matching.gradient import sees_whole_batches
from ld3m.memory.costs import Workload, map_elements, matched_network
from ld3m.memory.plan import Plan, budget_of, even_size, real_chunks, size_text
from ld3m.runtime import seeds
from ld3m.runtime.footprint import size_of

_SHARE, _LEAST = 32, 2**26  # part of the budget, and bytes, that keep a network busy
_COPIES = 4  # of a synthetic image: shown, normalized, augmented, its gradient


def plan_pixels(config: ResolvedDistillConfig, num_classes: int, real_batch: int, device: torch.device) -> Plan | None:
    """Choose the classes in flight and the chunk of real images; None where all images are matched at once.

    Raises:
        ConfigError: not even one class with one real image at a time fits the budget.
    """
    loss = LOSSES[config.algorithm]
    if not loss.is_streamed:
        return None
    work = Workload.of(config, has_chain=False, num_classes=num_classes, real_batch=real_batch)
    network = matched_network(work, device)
    with seeds.scoped_global_rng(0, "costs"):  # dropout
        images = Work(work.resolution, num_classes, work.ipc, work.student_steps)
        costs, real_map = loss.costs(network, images), map_elements(network, images)
    picture = 4 * 3 * work.resolution**2
    resident = size_of(network) + 5 * num_classes * work.ipc * picture
    planner = PixelPlanner(work, costs, picture, resident, real_map, not sees_whole_batches(network))
    return planner.plan(budget_of(config.memory_budget, device))


@dataclass(frozen=True)
class PixelPlanner:
    """Planner of pixel space.

    Args:
        picture: bytes of an image.
        resident: of the network, and of all images with gradient, momentum and the last good copy of both.
        real_map: elements of the network's largest map of an image.
        cuts_real_batch: whether the real images may go through the network in chunks.
    """

    work: Workload
    costs: LossCosts
    picture: int
    resident: int
    real_map: int
    cuts_real_batch: bool
    retain: float | None = None

    def plan(self, budget: int) -> Plan:
        """Return the plan with the most classes and real images at once in a share of the budget, or else in all."""
        smallest = self.smallest.peak_bytes
        if smallest > budget:
            raise ConfigError(
                f"memory_budget of {size_text(budget)} does not hold the smallest plan, which needs "
                f"{size_text(smallest)}, {size_text(self.resident)} of it for images and their gradients; raise it, or "
                "lower ipc or resolution"
            )
        for most in (min(budget, self.resident + max(budget // _SHARE, _LEAST)), budget):
            for classes in self._sizes:
                fitting = (chunk for chunk in self._chunks(classes) if self._peak(classes, chunk) <= most)
                if (chunk := next(fitting, 0)) != 0:
                    return self._rated(classes, chunk, budget)
        raise AssertionError("the smallest plan is among those looked at")

    @property
    def smallest(self) -> Plan:
        return self._rated(1, 1 if self.cuts_real_batch else None, 0)

    @property
    def _sizes(self) -> list[int]:
        """Return numbers of classes in flight, the most first, in groups of about equal sizes."""
        count = self.work.num_classes
        return sorted({even_size(count, math.ceil(count / groups)) for groups in range(1, count + 1)}, reverse=True)

    def _chunks(self, classes: int) -> list[int | None]:
        """Return the chunks of the real batch that are looked at, the largest first."""
        size = self.work.real_batch * (classes if self.work.joins_classes else 1)
        return list(real_chunks(size, self.real_map, only_large=classes > 1)) if self.cuts_real_batch else [None]

    def _peak(self, classes: int, chunk: int | None) -> int:
        work, costs = self.work, self.costs
        real = classes * work.real_batch * self.picture
        together = (classes if work.joins_classes else 1) * work.real_batch
        sides = max(costs.real(min(chunk or math.inf, together)), costs.synthetic(classes)) + classes * costs.gradients
        return self.resident + classes * work.ipc * _COPIES * self.picture + real + max(real, sides)

    def _rated(self, classes: int, chunk: int | None, budget: int) -> Plan:
        images, peak = classes * self.work.ipc, self._peak(classes, chunk)
        return Plan(1.0, images, classes, None, chunk, peak, budget_bytes=budget, planner=self)
