"""Timesteps, injection weights and the scalars of every step.

A DDIM step (η = 0) with an injection is affine in the state z, the noise prediction ε̂ and the injected tensor:

    x̂ = (z − √(1−ᾱ) ε̂) / √ᾱ                       clean estimate
    "x0":   z ← √ᾱ' ((1−w) x̂ + w q(Z)) + √(1−ᾱ') ε̂    released LD3M: quantised latents enter the clean estimate
    "mean": z ← (1−w) z_ddim + w z_start              eq. 6 of arXiv 2403.03881
    "none": z ← √ᾱ' x̂ + √(1−ᾱ') ε̂                     plain DDIM

so each is z ← a z + b ε̂ + d · injected, with a, b, d from a float64 table.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.config import check_steps
from ld3m.errors import ConfigError, InputError

INJECTIONS = ("x0", "mean", "none")

Schedule = str | Callable[[int, int], float]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "cosine": lambda s: 1 - math.cos(math.pi * s / 2),
    "quadratic": lambda s: s**2,
    "exponential": lambda s: math.expm1(3 * s) / math.expm1(3),
}


@dataclass(frozen=True)
class ChainTable:
    """Scalars of a chain of T steps, index i = T−1 (noisiest, first) … 0 (last).

    Args:
        timesteps: τ_i, ascending in i.
        start: (√ᾱ, √(1−ᾱ)) of the first executed step: z_start = start[0] Z + start[1] noise.
        latent, noise, injected: a_i, b_i, d_i of z ← a z + b ε̂ + d · injected.
    """

    timesteps: tuple[int, ...]
    start: tuple[float, float]
    latent: tuple[float, ...]
    noise: tuple[float, ...]
    injected: tuple[float, ...]


def timesteps(steps: int) -> tuple[int, ...]:
    """Return τ_i = min(1 + ⌊1000 i / T⌋, 999) for i = 0 … T−1: CompVis's "uniform" steps where T divides 1000."""
    check_steps(steps, error=InputError)
    return tuple(min(1 + 1000 * i // steps, 999) for i in range(steps))


SPACINGS: dict[str, Callable[[int, int], int]] = {  # t_i of (i, N)
    "leading": lambda i, n: i * (1000 // n),
    "linspace": lambda i, n: round(i * 999 / max(1, n - 1)),
    "trailing": lambda i, n: round((i + 1) * 1000 / n) - 1,
}


def spaced_timesteps(steps: int, spacing: str = "leading") -> tuple[int, ...]:
    """Return t_i for i = 0 … N−1.

    Args:
        steps: N.
        spacing: "leading", i ⌊1000/N⌋, from 0 on; "linspace", from 0 to 999, as DiT's and guided diffusion's samplers
            respace; "trailing", up to 999, with as much noise at t_0 as lies between two points (Lin et al. 2023).
    """
    check_steps(steps, error=InputError)
    if spacing not in SPACINGS:
        raise ConfigError(f"spacing is one of {', '.join(SPACINGS)}, got {spacing!r}")
    return tuple(SPACINGS[spacing](i, steps) for i in range(steps))


def injection_weights(steps: int, schedule: Schedule) -> tuple[float, ...]:
    """Return w_i for i = 0 … T−1; w_0 = 0 always, so that a single step is plain DDIM."""
    if callable(schedule):
        weights = [float(schedule(i, steps)) for i in range(1, steps)]
    elif schedule in SCHEDULES:
        weights = [SCHEDULES[schedule](i / (steps - 1)) for i in range(1, steps)]
    else:
        raise ConfigError(f"schedule is one of {', '.join(SCHEDULES)} or a callable (i, T) -> weight, got {schedule!r}")
    if any(not math.isfinite(weight) for weight in weights):
        raise InputError(f"schedule gave a weight that is not finite: {weights}; return numbers, usually in [0, 1]")
    return (0.0, *weights)


def ddim_scalars(current: Tensor, previous: Tensor, kept: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Return a, b of the DDIM step z' = √ᾱ' · kept · x̂ + √(1−ᾱ') ε̂ = a z + b ε̂ from ᾱ to ᾱ', elementwise."""
    a = kept * previous.sqrt() / current.sqrt()
    return a, (1 - previous).sqrt() - kept * previous.sqrt() * (1 - current).sqrt() / current.sqrt()


def chain_table(alphas_cumprod: Tensor, steps: int, injection: str = "x0", schedule: Schedule = "linear") -> ChainTable:
    """Tabulate a chain in float64.

    Args:
        alphas_cumprod: ᾱ (1000,).
        steps: T, 1 … 1000.
        injection: "x0", "mean" or "none".
        schedule: name in `SCHEDULES`, or a callable (i, T) -> w_i, called for i ≥ 1 only.
    """
    if injection not in INJECTIONS:
        raise ConfigError(f"injection is one of {', '.join(INJECTIONS)}, got {injection!r}")
    taus = timesteps(steps)
    alphas = alphas_cumprod.double()
    current = alphas[list(taus)]
    last = current.tolist()[-1]
    previous = torch.cat([alphas[:1], current[:-1]])  # ᾱ'(0) = ᾱ[0], not 1: a little noise stays in z_0
    weights = torch.tensor(injection_weights(steps, schedule), dtype=torch.float64)

    if injection == "none":
        weights = torch.zeros_like(weights)
    kept = 1 - weights
    if injection == "mean":
        a, b = (kept * scalar for scalar in ddim_scalars(current, previous))
        d = weights
    else:
        a, b = ddim_scalars(current, previous, kept)
        d = weights * previous.sqrt()
    return ChainTable(
        timesteps=taus,
        start=(math.sqrt(last), math.sqrt(1 - last)),
        latent=tuple(a.tolist()),
        noise=tuple(b.tolist()),
        injected=tuple(d.tolist()),
    )
