"""The statistics of a class before its images are sampled: Gaussians of its latents at a level of noise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.chain import NoisyLatents, invert
from ld3m.config.sample import SampleConfig
from ld3m.errors import DataError
from ld3m.priors.base import Prior

OPTIONAL = ("weights", "targets", "masses")  # of the tensors of a class's statistics


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Diagonal Gaussians of the noisy latents of one class.

    Args:
        mean, std: (K, c, h, w) float32: one Gaussian, or one for each image to be made.
        step, steps: point of the DDIM grid whose noise the latents carry, and the points it has.
        weights: (K,) of the images, of mean 1; None where all count alike.
        spacing: of the grid.
        targets: (K, c, h, w) float32, clean latents towards which images are pulled; None where they are not.
        masses: (K,) of the targets, of sum 1, where they are no image's own.
    """

    mean: Tensor
    std: Tensor
    step: int
    steps: int
    weights: Tensor | None = None
    spacing: str = "leading"
    targets: Tensor | None = None
    masses: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored."""
        more = {name: getattr(self, name) for name in OPTIONAL}
        return {"mean": self.mean, "std": self.std, **{k: v for k, v in more.items() if v is not None}}

    def noisy(self, noise: Tensor) -> NoisyLatents:
        """Return latents mean + std · noise, for noise (N, c, h, w), at their point of the grid."""
        return NoisyLatents(self.mean + self.std * noise, self.step, self.steps, self.spacing)


def noise_of(
    shape: Sequence[int],
    config: SampleConfig,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    masses: Tensor | None = None,
) -> ClassStatistics:
    """Return N(0, 1) of latents (c, h, w) at the noisiest point of the grid, with what pulls them from there."""
    mean = torch.zeros(1, *shape)
    step, steps = config.steps - 1, config.steps
    return ClassStatistics(mean, torch.ones_like(mean), step, steps, weights, config.spacing, targets, masses)


def noised(
    latents: Tensor,
    alpha: Tensor,
    config: SampleConfig,
    weights: Tensor | None = None,
    targets: Tensor | None = None,
) -> ClassStatistics:
    """Return a Gaussian for each of clean latents (K, c, h, w) noised to `stop`, where ᾱ is `alpha`."""
    mean = (alpha.sqrt() * latents).float()
    std = torch.full_like(mean, (1 - alpha).sqrt().item())
    return ClassStatistics(mean, std, config.stop, config.steps, weights, config.spacing, targets)


class Moments:
    """Mean and standard deviation over rows that come in batches, in float64 and in one pass.

    Welford's update for a batch instead of a row (Chan, Golub, LeVeque 1979): of n rows with mean m and sum of squared
    deviations S, and of n', m', S' of the batch, with d = m' − m

        m ← m + d n' / (n + n')        S ← S + S' + d² n n' / (n + n')
    """

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Count rows (B, …) in."""
        rows = rows.detach().cpu().double()
        count, mean = len(rows), rows.mean(0)
        difference, total = mean - self._mean, self.count + count
        self._squares = self._squares + (rows - mean).square().sum(0) + difference**2 * (self.count * count / total)
        self._mean = self._mean + difference * (count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def std(self) -> Tensor:
        """Unbiased."""
        if self.count < 2:
            raise DataError(f"a standard deviation needs at least 2 images of a class, got {self.count}; add images")
        return (self._squares / (self.count - 1)).sqrt()


def inverted_statistics(
    prior: Prior, batches: Iterable[Tensor], conditioning: Tensor, config: SampleConfig, seed: int
) -> ClassStatistics:
    """Invert the latents of a class batch by batch, and take one Gaussian over all of them.

    Args:
        batches: latents (B, c, h, w) of real images.
        conditioning: (1, tokens, dim) of the class.
        seed: not needed here: inversion draws nothing.
    """
    moments = Moments()
    for latents in batches:
        state = invert(
            prior,
            latents,
            conditioning.expand(len(latents), -1, -1),
            steps=config.steps,
            stop=config.stop,
            guidance_scale=config.inversion_guidance,
            spacing=config.spacing,
        )
        moments.add(state.latents)
    mean, std = moments.mean.float()[None], moments.std.float()[None]
    return ClassStatistics(mean, std, config.stop, config.steps, spacing=config.spacing)
