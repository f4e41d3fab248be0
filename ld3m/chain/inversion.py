"""DDIM inversion of real latents to a nearly Gaussian level (arXiv 2505.18399).

On a grid t_0 < … < t_{N−1} the image's own latents stand at i = 0. Between t_{i−1} and t_i inversion and DDIM sampling
both evaluate the denoiser at t_i, so that with a, b of the DDIM step from t_i to t_{i−1}

    sampling    z_{i−1} = a z_i + b ε̂(z_i, t_i)
    inversion   z_i = (z_{i−1} − b ε̂(z_{i−1}, t_i)) / a

are each other's inverse but for the state that the denoiser sees: an error of first order in 1/N.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.chain.checks import check_inputs
from ld3m.chain.predictor import Predictor
from ld3m.chain.schedule import ddim_scalars, spaced_timesteps
from ld3m.config import check_steps, is_count
from ld3m.errors import InputError
from ld3m.ops.reverse_step import reverse_step
from ld3m.priors.base import Prior

STEPS = 50  # N where nothing says otherwise


@dataclass(frozen=True, eq=False)
class NoisyLatents:
    """Latents and the point of the grid whose noise they carry, so that sampling starts where inversion ended.

    Args:
        latents: (N, c, h, w).
        step: i, 0 (the image's own latents) … steps − 1 (noisiest).
        steps: N, the points of the grid.
        spacing: of the grid, as of `spaced_timesteps`.
    """

    latents: Tensor
    step: int
    steps: int = STEPS
    spacing: str = "leading"

    def __post_init__(self) -> None:
        check_point("step", self.step, self.steps, lowest=0)

    @property
    def timestep(self) -> int:
        """t_i, an index into `alphas_cumprod`."""
        return spaced_timesteps(self.steps, self.spacing)[self.step]


def invert(
    prior: Prior,
    latents: Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int = STEPS,
    stop: int = 30,
    guidance_scale: float = 4.0,
    spacing: str = "leading",
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
        spacing: of the grid, as of `spaced_timesteps`; one that begins at timestep 0.
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
        spacing=spacing,
        micro_batch=micro_batch,
    )
    return deque(states, maxlen=1).pop()


@torch.no_grad()
def inversion_states(
    prior: Prior,
    latents: Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int = STEPS,
    stop: int = 30,
    guidance_scale: float = 4.0,
    spacing: str = "leading",
    micro_batch: int | None = None,
) -> Iterator[NoisyLatents]:
    """Yield every state of `invert` as it is reached, `stop` + 1 of them, the latents themselves first."""
    if isinstance(latents, NoisyLatents):
        raise InputError("invert takes the latents of images, a tensor; got NoisyLatents, which are inverted already")
    check_inputs(prior, latents, conditioning, guidance_scale, micro_batch)
    check_point("stop", stop, steps)
    taus = spaced_timesteps(steps, spacing)
    if taus[0]:
        raise InputError(
            f"spacing {spacing!r} begins at timestep {taus[0]}, and images are inverted from timestep 0; choose "
            "leading or linspace"
        )
    predict = Predictor(prior, conditioning, guidance_scale, micro_batch or len(latents))
    yield NoisyLatents(latents, 0, steps, spacing)
    for i in range(1, stop + 1):
        a, b = (scalar.item() for scalar in ddim_scalars(*prior.alphas_cumprod[[taus[i], taus[i - 1]]]))
        parts = []
        for block in predict.blocks(len(latents)):
            noise, _ = predict(latents[block], taus[i], block)
            parts.append(reverse_step(latents[block], noise, a=1 / a, b=-b / a, guidance_scale=predict.guidance_scale))
        latents = torch.cat(parts)
        yield NoisyLatents(latents, i, steps, spacing)


def check_point(name: str, step: object, steps: int, lowest: int = 1) -> int:
    """Return a point of the grid; raise InputError where it is none."""
    check_steps(steps, error=InputError)
    if not is_count(step, lowest, steps - 1):
        raise InputError(
            f"{name} is a point of the grid of {steps} steps, {lowest} to {steps - 1}; got {step!r}. "
            f"Choose one of them, or more steps"
        )
    return step
