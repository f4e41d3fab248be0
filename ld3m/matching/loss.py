"""The entry of the table of losses: the loss itself, and what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ld3m.config import ResolvedDistillConfig
from ld3m.runtime.footprint import peak_bytes


@dataclass(frozen=True)
class Line:
    """Bytes that grow with the number of images."""

    fixed: float = 0
    each: float = 0

    def __call__(self, images: float) -> int:
        return int(self.fixed + self.each * images)


@dataclass(frozen=True)
class LossCosts:
    """Bytes that matching takes beyond the images themselves.

    Args:
        real: the network on real images, by those that are in it at once.
        synthetic: the network on synthetic images, by the classes in flight.
        gradients: of the network on a class's real images, where these are kept.
    """

    real: Line
    synthetic: Line
    gradients: int = 0


@dataclass(frozen=True)
class Work:
    """The images that a network matches: of `num_classes` classes, `ipc` each.

    Args:
        resolution: side of the images in pixels.
        student_steps: of a trajectory.
    """

    resolution: int
    num_classes: int
    ipc: int
    student_steps: int

    def images(self, network: nn.Module, *count: int) -> Tensor:
        """Return black images (*count, 3, H, W) on the network's device."""
        side, device = self.resolution, next(network.parameters()).device
        return torch.zeros(*count, 3, side, side, device=device)


@dataclass(frozen=True)
class Loss:
    """A way of matching.

    Args:
        of_classes: called as of_classes(network, real, synthetic, labels, config, real_chunk), the images as of
            `dc_loss`; returns losses (C,) whose sum counts, so that classes are rendered, matched and freed a few at a
            time. None where all images are needed at once, for the trajectories of `mtt_loss`.
        costs: counts on the device of the network.
        joins_classes: whether the real images of all classes in flight are in the network together, which are
            otherwise met class by class.
    """

    of_classes: (
        Callable[[nn.Module, Tensor | Sequence[Tensor], Tensor, Tensor, ResolvedDistillConfig, int | None], Tensor]
        | None
    )
    costs: Callable[[nn.Module, Work], LossCosts]
    joins_classes: bool = False

    @property
    def is_streamed(self) -> bool:
        """Whether a few classes may be matched at a time."""
        return self.of_classes is not None


def count_line(call: Callable[[Tensor], object], images: Callable[[int], Tensor]) -> Line:
    """Count the most bytes that a call takes on two and on four images, and draw a line through both."""
    two, four = (peak_bytes(partial(call, images(count)), images(1).device) for count in (2, 4))
    each = (four - two) / 2
    return Line(two - 2 * each, each)
