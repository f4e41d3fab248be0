"""Samplers: a step from a point of the grid to the next less noisy one, with fresh noise or without.

With ᾱ at a point, ᾱ' at the next one (1 after the last), x̂₀ = (z − √(1−ᾱ) ε̂)/√ᾱ and ξ ~ N(0, 1):

    ddim    z' = √ᾱ' x̂₀ + √(1−ᾱ') ε̂                               (Song et al. 2021, η = 0)
    ddpm    z' = μ + σ ξ,  μ = (√ᾱ' β x̂₀ + √(1−β) (1−ᾱ') z)/(1−ᾱ)    (Ho et al. 2020, on respaced β = 1 − ᾱ/ᾱ')

with σ² = β̃ = β (1−ᾱ')/(1−ᾱ) ("fixed-small"), β ("fixed-large"), or log σ² = f log β + (1−f) log β̃, f = (v+1)/2, by the
channels v that a network has learned ("learned"; Nichol & Dhariwal 2021). After the last point nothing is random.

A pull of strength λ towards targets m (MGD3, arXiv 2505.18963):

    ddim    x̂₀ ← x̂₀ + λ (m − x̂₀), and ε̂ such that z stays what it is
    ddpm    z' = μ + σ (ξ + λ (m − x̂₀)), x̂₀ of the conditional prediction alone
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.chain.schedule import ddim_scalars
from ld3m.ops.reverse_step import reverse_step

VARIANCES = ("fixed-small", "fixed-large", "learned")


@dataclass(frozen=True)
class Step:
    """A step of the grid.

    Args:
        point: i of the point that it starts from.
        timestep: t_i, at which the denoiser is evaluated.
        current, following: ᾱ and ᾱ', () as the prior has them.
        is_last: whether it leads to the clean estimate.
    """

    point: int
    timestep: int
    current: Tensor
    following: Tensor
    is_last: bool = False


@dataclass(frozen=True, eq=False)
class Pull:
    """A pull towards targets in a window of steps.

    Args:
        targets: (N, c, h, w), clean latents, one for each image.
        strength: λ; 0 pulls nowhere.
        first, last: points of the grid, from the noisier to the less noisy one, both included.
    """

    targets: Tensor
    strength: float
    first: int
    last: int

    def is_at(self, point: int) -> bool:
        """Whether images are pulled at this point of the grid."""
        return self.strength != 0 and self.last <= point <= self.first


@dataclass(frozen=True)
class Move:
    """What a step sees of a block of images.

    Args:
        predictions: ε̂ (n, …), or (2n, …) with the rows [null, conditional].
        variance: v (n, …), where it has been learned and is asked for.
        noise: ξ (n, …), where the sampler draws any.
        target: m (n, …), where there is a pull.
        strength: λ.
    """

    state: Tensor
    predictions: Tensor
    variance: Tensor | None
    guidance_scale: float
    noise: Tensor | None = None
    target: Tensor | None = None
    strength: float = 0.0


@dataclass(frozen=True)
class Sampler:
    """A way to step.

    Args:
        advance: makes a step of a block.
        is_random: whether it draws noise.
        ends_clean: whether the last step, from t_0, leads to the clean estimate also where t_0 is 0.
    """

    advance: Callable[[Step, Move, str], Tensor]
    is_random: bool = False
    ends_clean: bool = False


def clean_estimate(step: Step, move: Move) -> Tensor:
    """Return x̂₀ (n, …) of the guided prediction."""
    signal, noise = step.current.sqrt().item(), (1 - step.current).sqrt().item()
    return reverse_step(
        move.state, move.predictions, a=1 / signal, b=-noise / signal, guidance_scale=move.guidance_scale
    )


def _ddim(step: Step, move: Move, variance: str) -> Tensor:
    a, b = (scalar.item() for scalar in ddim_scalars(step.current, step.following))
    d = 0.0
    if move.target is not None:  # as x̂₀ is affine in z and ε̂, so is the pulled step
        strength, kept = move.strength, math.sqrt((1 - step.following.item()) / (1 - step.current.item()))
        d = strength * (step.following.sqrt().item() - kept * step.current.sqrt().item())
        a, b = (1 - strength) * a + strength * kept, (1 - strength) * b
    return reverse_step(move.state, move.predictions, move.target, a=a, b=b, d=d, guidance_scale=move.guidance_scale)


def _ddpm(step: Step, move: Move, variance: str) -> Tensor:
    current, following = step.current.double(), step.following.double()
    beta = 1 - current / following
    of_clean = following.sqrt() * beta / (1 - current)
    of_state = (1 - beta).sqrt() * (1 - following) / (1 - current)
    a, b = of_state + of_clean / current.sqrt(), -of_clean * ((1 - current) / current).sqrt()
    mean = reverse_step(move.state, move.predictions, a=a.item(), b=b.item(), guidance_scale=move.guidance_scale)
    if move.noise is None:  # at the last step
        return mean
    push = move.noise
    if move.target is not None:
        conditional = Move(move.state, move.predictions[-len(move.state) :], None, 1.0)
        push = push + move.strength * (move.target - clean_estimate(step, conditional))
    small = beta * (1 - following) / (1 - current)
    return mean + _deviation(variance, small, beta, move.variance) * push


def _deviation(variance: str, small: Tensor, large: Tensor, learned: Tensor | None) -> Tensor | float:
    if variance != "learned":
        return (small if variance == "fixed-small" else large).sqrt().item()
    assert learned is not None
    share = (learned + 1) / 2
    return (0.5 * (share * large.log().item() + (1 - share) * small.log().item())).exp()


SAMPLERS = {
    "ddim": Sampler(_ddim),
    "ddpm": Sampler(_ddpm, is_random=True, ends_clean=True),
}


def steps_from(alphas_cumprod: Tensor, taus: tuple[int, ...], start: int, sampler: Sampler) -> list[Step]:
    """Return the steps from point `start` of the grid down.

    Without noise, a grid that begins at timestep 0 ends there, where the image's own latents stand.
    """
    points = [Step(i, taus[i], alphas_cumprod[taus[i]], alphas_cumprod[taus[i - 1]]) for i in range(start, 0, -1)]
    if sampler.ends_clean or taus[0]:
        last = alphas_cumprod[taus[0]]
        points.append(Step(0, taus[0], last, torch.ones_like(last), is_last=True))
    return points
