"""DDIM inversion of real latents to a nearly Gaussian level, and plain DDIM sampling back (arXiv 2505.18399).

Both walk the "leading" grid t_i = i ⌊1000/N⌋, i = 0 … N−1, on which the image's own latents stand at i = 0. Between
t_{i−1} and t_i both evaluate the denoiser at t_i, so that with a, b of the DDIM step from t_i to t_{i−1}

    sampling    z_{i−1} = a z_i + b ε̂(z_i, t_i)
    inversion   z_i = (z_{i−1} − b ε̂(z_{i−1}, t_i)) / a

are each other's inverse but for the state that the denoiser sees: an error of first order in 1/N.

`compat="d3hr"` samples as the published code of D3HR does: it takes a state for one grid point noisier than it is, it
steps to timestep 1 where the grid says 0, and it evaluates the denoiser once more at timestep 0.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.chain.checks import check_inputs
from ld3m.chain.schedule import ddim_scalars, leading_timesteps
from ld3m.config import check_steps, is_count
from ld3m.errors import ConfigError, InputError
from ld3m.ops.reverse_step import reverse_step
from ld3m.priors.base import Prior

_STEPS = 50  # N where nothing says otherwise


@dataclass(frozen=True, eq=False)
class NoisyLatents:
    """Latents and the point of the grid whose noise they carry, so that sampling starts where inversion ended.

    Args:
        latents: (N, c, h, w).
        step: i, 0 (the image's own latents) … steps − 1 (noisiest).
        steps: N, the points of the grid.
    """

    latents: Tensor
    step: int
    steps: int = _STEPS

    def __post_init__(self) -> None:
        _check_step("step", self.step, self.steps, lowest=0)

    @property
    def timestep(self) -> int:
        """t_i, an index into `alphas_cumprod`."""
        return leading_timesteps(self.steps)[self.step]


def invert(
    prior: Prior,
    latents: Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int = _STEPS,
    stop: int = 30,
    guidance_scale: float = 4.0,
    micro_batch: int | None = None,
) -> NoisyLatents:
    """Invert latents by DDIM to point `stop` of a grid of `steps` points, without gradient.

    Args:
        latents: (N, c, h, w), of images: `prior.encode(images)`.
        conditioning: (N, tokens, dim), or None for an unconditional prior.
        steps: N, 2 … 1000 points from timestep 0 up.
        stop: i of the last point, 1 … steps − 1; the default's timestep is 600.
        guidance_scale: g in ε̂ = ε_u + g (ε_c − ε_u); exactly 1 makes one evaluation, every other value two. Images come
            back only with the same g in `sample`. Of 1, 1.5 and 4, 4 leaves the embedded prior's latents closest to
            N(0, 1); other priors may differ (benchmarks/NOTES.md).
        micro_batch: images evaluated at once; all when None.

    Returns:
        The noisy latents with their point of the grid, to be given to `sample` as they are.

    Raises:
        InputError: a shape or range is not as above.
    """
    states = inversion_states(
        prior,
        latents,
        conditioning,
        steps=steps,
        stop=stop,
        guidance_scale=guidance_scale,
        micro_batch=micro_batch,
    )
    return deque(states, maxlen=1).pop()


def sample(
    prior: Prior,
    latents: NoisyLatents | Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int | None = None,
    start: int | None = None,
    guidance_scale: float = 4.0,
    compat: str | None = None,
    micro_batch: int | None = None,
) -> Tensor:
    """Sample noisy latents back to an image's latents by DDIM, without gradient.

    Args:
        latents: what `invert` returned, or the latents (N, c, h, w) alone, and then with `start`.
        conditioning: (N, tokens, dim), or None for an unconditional prior.
        steps: N, points of the grid; those of the noisy latents, 50 for latents alone.
        start: i of the point where sampling starts, 1 … steps − 1, as `stop` of `invert`. Noisy latents know it.
        guidance_scale: as of `invert`.
        compat: "d3hr" for the published pairing and end (above); a `start` is taken as it is.
        micro_batch: images evaluated at once; all when None.

    Returns:
        Latents (N, c, h, w), to be decoded.

    Raises:
        InputError: a shape or range is not as above, or `start` is missing or said twice.
    """
    states = sampling_states(
        prior,
        latents,
        conditioning,
        steps=steps,
        start=start,
        guidance_scale=guidance_scale,
        compat=compat,
        micro_batch=micro_batch,
    )
    return deque(states, maxlen=1).pop()


@torch.no_grad()
def inversion_states(
    prior: Prior,
    latents: Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int = _STEPS,
    stop: int = 30,
    guidance_scale: float = 4.0,
    micro_batch: int | None = None,
) -> Iterator[NoisyLatents]:
    """Yield every state of `invert` as it is reached, `stop` + 1 of them, the latents themselves first."""
    if isinstance(latents, NoisyLatents):
        raise InputError("invert takes the latents of images, a tensor; got NoisyLatents, which are inverted already")
    check_inputs(prior, latents, conditioning, guidance_scale, micro_batch)
    _check_step("stop", stop, steps)
    taus = leading_timesteps(steps)
    evaluate = _Step(prior, conditioning, guidance_scale, micro_batch or len(latents))
    yield NoisyLatents(latents, 0, steps)
    for i in range(1, stop + 1):
        a, b = _scalars(prior, taus[i], taus[i - 1])
        latents = evaluate(latents, taus[i], 1 / a, -b / a)
        yield NoisyLatents(latents, i, steps)


@torch.no_grad()
def sampling_states(
    prior: Prior,
    latents: NoisyLatents | Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int | None = None,
    start: int | None = None,
    guidance_scale: float = 4.0,
    compat: str | None = None,
    micro_batch: int | None = None,
) -> Iterator[Tensor]:
    """Yield every state of `sample` as it is reached, the noisy latents themselves first."""
    if compat not in (None, "d3hr"):
        raise ConfigError(f'compat is None or "d3hr", got {compat!r}')
    latents, start, steps = _placed(latents, start, steps, compat)
    check_inputs(prior, latents, conditioning, guidance_scale, micro_batch)
    taus = leading_timesteps(steps)
    pairs = [(taus[i], taus[i - 1]) for i in range(start, 0, -1)]
    if compat == "d3hr":
        pairs = [(timestep, max(1, following)) for timestep, following in [*pairs, (0, 0)]]
    evaluate = _Step(prior, conditioning, guidance_scale, micro_batch or len(latents))
    yield latents
    for timestep, following in pairs:
        latents = evaluate(latents, timestep, *_scalars(prior, timestep, following))
        yield latents


class _Step:
    """z ← a z + b ε̂(z, t) on all images, some at a time."""

    def __init__(self, prior: Prior, conditioning: Tensor | None, guidance_scale: float, micro_batch: int) -> None:
        self.prior, self.conditioning = prior, conditioning
        self.guidance_scale, self.micro_batch = float(guidance_scale), micro_batch
        self.null = None
        if conditioning is not None and guidance_scale != 1:
            self.null = prior.null_conditioning(1).to(conditioning.dtype)

    def __call__(self, state: Tensor, timestep: int, a: float, b: float) -> Tensor:
        stepped: list[Tensor] = []
        for first in range(0, len(state), self.micro_batch):
            block = slice(first, first + self.micro_batch)
            predictions = self._predict(state[block], timestep, block)
            stepped.append(reverse_step(state[block], predictions, a=a, b=b, guidance_scale=self.guidance_scale))
        return torch.cat(stepped)

    def _predict(self, state: Tensor, timestep: int, block: slice) -> Tensor:
        if self.conditioning is None:
            return self.prior.predict_noise(state, timestep)
        conditioning = self.conditioning[block]
        if self.null is not None:  # rows [null, conditional]
            state = torch.cat([state, state])
            conditioning = torch.cat([self.null.expand_as(conditioning), conditioning])
        return self.prior.predict_noise(state, timestep, conditioning)


def _scalars(prior: Prior, timestep: int, following: int) -> tuple[float, float]:
    a, b = ddim_scalars(prior.alphas_cumprod[timestep], prior.alphas_cumprod[following])
    return a.item(), b.item()


def _placed(
    latents: NoisyLatents | Tensor, start: int | None, steps: int | None, compat: str | None
) -> tuple[Tensor, int, int]:
    """Return the latents, the point of the grid to start from and the number of its points."""
    if not isinstance(latents, NoisyLatents):
        if start is None:
            raise InputError(
                "sample needs start=, the point of the grid whose noise the latents carry; or pass what invert returned"
            )
        steps = _STEPS if steps is None else steps
        return latents, _check_step("start", start, steps), steps
    if start is not None or steps not in (None, latents.steps):
        raise InputError(
            f"the latents stand at point {latents.step} of {latents.steps}; leave start and steps out, got start "
            f"{start!r} and steps {steps!r} (latents alone are .latents)"
        )
    start = latents.step + 1 if compat == "d3hr" else latents.step  # the published pairing is off by one
    return latents.latents, _check_step("start", start, latents.steps), latents.steps


def _check_step(name: str, step: object, steps: int, lowest: int = 1) -> int:
    check_steps(steps, error=InputError)
    if not is_count(step, lowest, steps - 1):
        raise InputError(
            f"{name} is a point of the grid of {steps} steps, {lowest} to {steps - 1}; got {step!r}. "
            f"Choose one of them, or more steps"
        )
    return step
