"""Sampling noisy latents back to those of images, by the samplers of `ld3m.chain.samplers`.

`compat="d3hr"` samples as the published code of D3HR does: it takes a state for one grid point noisier than it is, it
steps to timestep 1 where the grid says 0, and it evaluates the denoiser once more at timestep 0.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ld3m.chain.checks import check_inputs
from ld3m.chain.inversion import STEPS, NoisyLatents, check_point
from ld3m.chain.predictor import Predictor
from ld3m.chain.samplers import SAMPLERS, VARIANCES, Move, Pull, Step, clean_estimate, steps_from
from ld3m.chain.schedule import spaced_timesteps
from ld3m.config import is_count
from ld3m.errors import ConfigError, InputError
from ld3m.priors.base import Prior
from ld3m.runtime import seeds

Steer = Callable[[int, slice, Callable[[], Tensor]], Tensor | None]


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
    sampler: str = "ddim",
    variance: str = "fixed-small",
    noise_seed: int = 0,
    guided_channels: int | None = None,
    pull: Pull | None = None,
    steer: Steer | None = None,
) -> Tensor:
    """Sample noisy latents back to an image's latents, without gradient.

    Args:
        latents: what `invert` returned, or the latents (N, c, h, w) alone, and then with `start`. Of pure noise N(0, 1)
            the point is the noisiest, N − 1.
        conditioning: (N, tokens, dim), or None for an unconditional prior.
        steps: N, points of the grid; those of the noisy latents, 50 for latents alone.
        start: i of the point where sampling starts, 1 … steps − 1, as `stop` of `invert`. Noisy latents know it.
        guidance_scale: as of `invert`.
        compat: "d3hr" for the published pairing and end (above); a `start` is taken as it is.
        micro_batch: images evaluated at once; all when None.
        sampler: "ddim", or "ddpm" for ancestral steps.
        variance: of ancestral steps: "fixed-small", "fixed-large", or "learned" by the denoiser.
        noise_seed: of the noise of ancestral steps, drawn for all images, by point of the grid.
        guided_channels: of the latents' first channels that are guided, as DiT's samplers guide 3 of 4; all when None.
        pull: towards targets, in a window of steps.
        steer: called at each step of n images with the point of the grid, which images they are, and a function that
            returns their clean estimates x̂₀ (n, c, h, w); what it returns, (n, c, h, w) or None, is added to the step.

    Returns:
        Latents (N, c, h, w), to be decoded.

    Raises:
        InputError: a shape or range is not as above, or `start` is missing or said twice.
        ConfigError: a sampler, variance or compat that there is not.
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
        sampler=sampler,
        variance=variance,
        noise_seed=noise_seed,
        guided_channels=guided_channels,
        pull=pull,
        steer=steer,
    )
    return deque(states, maxlen=1).pop()


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
    sampler: str = "ddim",
    variance: str = "fixed-small",
    noise_seed: int = 0,
    guided_channels: int | None = None,
    pull: Pull | None = None,
    steer: Steer | None = None,
) -> Iterator[Tensor]:
    """Yield every state of `sample` as it is reached, the noisy latents themselves first."""
    _check_words(sampler, variance, compat)
    noisy, start = _placed(latents, start, steps, compat)
    state = noisy.latents
    check_inputs(prior, state, conditioning, guidance_scale, micro_batch)
    _check_shapes(state, guided_channels, pull)
    kind, taus = SAMPLERS[sampler], spaced_timesteps(noisy.steps, noisy.spacing)
    walk = steps_from(prior.alphas_cumprod, taus, start, kind)
    if compat == "d3hr":
        walk = _published(prior, taus, start)
    predict = Predictor(
        prior,
        conditioning,
        guidance_scale,
        micro_batch or len(state),
        guided_channels=guided_channels,
        has_variance=kind.is_random and variance == "learned",
    )
    yield state
    for step in walk:
        noise = None
        if kind.is_random and not step.is_last:
            noise = torch.randn(state.shape, generator=seeds.generator(noise_seed, "step", step.point)).to(state)
        parts = []
        for block in predict.blocks(len(state)):
            move = Move(state[block], *predict(state[block], step.timestep, block), predict.guidance_scale)
            if noise is not None:
                move = replace(move, noise=noise[block])
            if pull is not None and pull.is_at(step.point):
                move = replace(move, target=pull.targets[block].to(state), strength=pull.strength)
            stepped = kind.advance(step, move, variance)
            shift = None if steer is None else steer(step.point, block, partial(clean_estimate, step, move))
            parts.append(stepped if shift is None else stepped + shift)
        state = torch.cat(parts)
        yield state


def _published(prior: Prior, taus: tuple[int, ...], start: int) -> list[Step]:
    pairs = [*((i, taus[i], taus[i - 1]) for i in range(start, 0, -1)), (0, 0, 0)]
    alphas = prior.alphas_cumprod
    return [Step(i, timestep, alphas[timestep], alphas[max(1, following)]) for i, timestep, following in pairs]


def _placed(
    latents: NoisyLatents | Tensor, start: int | None, steps: int | None, compat: str | None
) -> tuple[NoisyLatents, int]:
    """Return the latents on their grid, and the point to start from."""
    if not isinstance(latents, NoisyLatents):
        if start is None:
            raise InputError(
                "sample needs start=, the point of the grid whose noise the latents carry; or pass what invert returned"
            )
        steps = STEPS if steps is None else steps
        return NoisyLatents(latents, check_point("start", start, steps), steps), start
    if start is not None or steps not in (None, latents.steps):
        raise InputError(
            f"the latents stand at point {latents.step} of {latents.steps}; leave start and steps out, got start "
            f"{start!r} and steps {steps!r} (latents alone are .latents)"
        )
    start = latents.step + 1 if compat == "d3hr" else latents.step  # the published pairing is off by one
    return latents, check_point("start", start, latents.steps)


def _check_words(sampler: str, variance: str, compat: str | None) -> None:
    if compat not in (None, "d3hr"):
        raise ConfigError(f'compat is None or "d3hr", got {compat!r}')
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler is one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if variance not in VARIANCES:
        raise ConfigError(f"variance is one of {', '.join(VARIANCES)}, got {variance!r}")
    if compat is not None and sampler != "ddim":
        raise ConfigError(f"compat {compat!r} is of DDIM, and the sampler is {sampler!r}; leave one of the two out")


def _check_shapes(state: Tensor, guided_channels: int | None, pull: Pull | None) -> None:
    if guided_channels is not None and not is_count(guided_channels, 1, state.shape[1]):
        raise InputError(
            f"guided_channels is from 1 to the latents' {state.shape[1]} channels, got {guided_channels!r}"
        )
    if pull is not None and pull.targets.shape != state.shape:
        raise InputError(f"pull needs a target for each image, {tuple(state.shape)}, got {tuple(pull.targets.shape)}")
