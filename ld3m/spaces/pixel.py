"""Pixels themselves: the baseline without a generator."""

import torch
from torch import Tensor

from ld3m.config import ResolvedDistillConfig
from ld3m.data import Dataset
from ld3m.memory.pixel import plan_pixels
from ld3m.memory.plan import Plan
from ld3m.priors import Prior
from ld3m.spaces.base import DiffusionSetup
from ld3m.spaces.start import initial_images


class PixelSpace:
    """Images as parameters, in the data set's normalised units, where learning rates are quoted.

    Args:
        images: (N, 3, H, W) in [0, 1].
        mean, std: (3,) of the data set.
    """

    def __init__(self, images: Tensor, mean: Tensor, std: Tensor) -> None:
        self._mean, self._std = mean.view(3, 1, 1).to(images), std.view(3, 1, 1).to(images)
        self._least, self._most = self._limit(0.0), self._limit(1.0)
        self.parameters = {"pixels": ((images - self._mean) / self._std).requires_grad_(True)}
        self.project()

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        pixels = self.parameters["pixels"]
        return (pixels[rows.to(pixels.device, non_blocking=True)] * self._std + self._mean).clamp(0, 1)

    @torch.no_grad()
    def project(self) -> None:
        """Clamp to what a picture can show: beyond it, the clamp in `render` would stop the gradient for good."""
        self.parameters["pixels"].clamp_(self._least, self._most)

    def apply_plan(self, plan: Plan) -> None:
        """A picture costs as much as its gradient: what is planned is the matching."""

    def _limit(self, shown: float) -> Tensor:
        """Return the pixels (3, 1, 1) that are shown as black or white, moved inwards where rounding leads outside."""
        limit, middle = (shown - self._mean) / self._std, (0.5 - self._mean) / self._std
        while not (is_inside := (color := limit * self._std + self._mean) == color.clamp(0, 1)).all():
            limit = torch.where(is_inside, limit, torch.nextafter(limit, middle))
        return limit


class PixelSetup(DiffusionSetup):
    """The set-up of a distillation of pixels; of the prior, the resolution alone is asked for."""

    settings = frozenset({"memory_budget", "real_chunk"})

    def plan(self, config: ResolvedDistillConfig, prior: Prior, dataset: Dataset) -> Plan | None:
        num_classes, most_images = dataset.train.num_classes, int(torch.bincount(dataset.train.labels).max())
        return plan_pixels(config, num_classes, min(config.real_batch, most_images), prior.device)

    def build(
        self, config: ResolvedDistillConfig, prior: Prior, dataset: Dataset, plan: Plan | None, device: torch.device
    ) -> PixelSpace:
        return PixelSpace(initial_images(config, dataset).to(device), dataset.mean, dataset.std)
