"""The differentiable reverse chain, one generation for the image and its gradient.

With λ the cotangent of the state after a step z ← a z + b ε̂(z, c) + d · injected,

    cotangent of ε̂        b λ, split over the two guidance rows as (1−g) b λ and g b λ
    cotangent of injected  += d λ
    λ                      ← a λ + J_zᵀ, conditioning += J_cᵀ

where Jᵀ is one vector-Jacobian product of the frozen denoiser. The forward pass keeps the state of every step, which is
small, and for a chosen number of (step, image) evaluations the activations of the denoiser; the others are recomputed
in the backward pass. Memory with nothing kept is that of one evaluation, whatever T is.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ld3m.chain.checks import check_inputs
from ld3m.chain.schedule import ChainTable, Schedule, chain_table
from ld3m.config import check_fraction
from ld3m.errors import InputError
from ld3m.ops.reverse_step import reverse_step, reverse_step_vjp
from ld3m.priors.base import Prior
from ld3m.priors.denoiser_call import DenoiserCall
from ld3m.priors.frozen import GraphedCall


def reverse_chain(
    prior: Prior,
    latents: Tensor,
    conditioning: Tensor | None = None,
    *,
    steps: int = 10,
    guidance_scale: float = 3.0,
    injection: str = "x0",
    schedule: Schedule = "linear",
    noise: Tensor,
    retain: float = 0.0,
    micro_batch: int | None = None,
) -> Tensor:
    """Noise latents to the first timestep and run the skip-injected DDIM chain back (arXiv 2403.03881, §3).

    The gradient to `latents` and `conditioning` is that of plain autograd through the same chain, whatever `retain` and
    `micro_batch` are; `noise` and the prior's weights get none. Gradients of gradients are refused.

    Args:
        latents: (N, c, h, w).
        conditioning: (N, tokens, dim), or None for an unconditional prior.
        steps: T, 1 … 1000.
        guidance_scale: g in ε̂ = ε_u + g (ε_c − ε_u); exactly 1 makes one evaluation, every other value two. Ignored by
            an unconditional prior.
        injection: "x0" (released code), "mean" (eq. 6) or "none" (plain DDIM).
        schedule: weight of the injection over the steps, a name in `SCHEDULES` or a callable (i, T).
        noise: like `latents`; the only randomness there is.
        retain: fraction of the T · N evaluations whose activations are kept for the backward pass, [0, 1].
        micro_batch: images evaluated at once; all when None.

    Returns:
        z_0 (N, c, h, w), to be decoded.

    Raises:
        InputError: a shape, dtype or range is not as above.
    """
    check_inputs(prior, latents, conditioning, guidance_scale, micro_batch)
    _check(latents, noise, retain)
    table = chain_table(prior.alphas_cumprod, steps, injection, schedule)
    is_guided = conditioning is not None and guidance_scale != 1
    null = None
    if conditioning is not None:
        # What depends on the conditioning alone is computed once, and differentiated once by autograd outside.
        null = prior.null_conditioning(1).to(conditioning.dtype)
        projected = prior.project(torch.cat([null, conditioning]))
        null, conditioning = projected[:1].detach(), projected[1:]
    can_differentiate = torch.is_grad_enabled()  # not to be seen inside the Function, where it is always off
    chain = _Chain(
        prior=prior,
        table=table,
        injection=injection,
        guidance_scale=float(guidance_scale),
        null=null if is_guided else None,
        num_kept=round(retain * steps * len(latents)),
        micro_batch=micro_batch or len(latents),
        wants_latents=can_differentiate and latents.requires_grad,
        wants_conditioning=can_differentiate and conditioning is not None and conditioning.requires_grad,
    )
    return _ReverseChain.apply(latents, conditioning, noise.detach(), chain)


class _Scalars(TypedDict):
    a: float
    b: float
    d: float
    guidance_scale: float


@dataclass(frozen=True)
class _Chain:
    """The constants of a chain: prior, scalars, how evaluations are cut and kept, the gradients that are wanted."""

    prior: Prior
    table: ChainTable
    injection: str
    guidance_scale: float
    null: Tensor | None  # (1, ...) as the denoiser reads it, when guided
    num_kept: int
    micro_batch: int
    wants_latents: bool
    wants_conditioning: bool

    @property
    def steps(self) -> int:
        return len(self.table.timesteps)

    def scalars(self, step: int) -> _Scalars:
        """Return the scalars of a step and of its vector-Jacobian product."""
        a, b, d = self.table.latent[step], self.table.noise[step], self.table.injected[step]
        return {"a": a, "b": b, "d": d, "guidance_scale": self.guidance_scale}

    def wants_state(self, step: int) -> bool:
        """Whether a step's state needs a gradient; the first executed state depends on the latents alone."""
        return self.wants_latents or (self.wants_conditioning and step < self.steps - 1)

    def blocks(self, step: int, num_images: int) -> list[tuple[slice, bool]]:
        """Cut the images of a step into (block, is kept) pairs; what the backward pass meets first is kept."""
        num_kept = min(max(self.num_kept - step * num_images, 0), num_images)
        edges = [*range(0, num_kept, self.micro_batch), *range(num_kept, num_images, self.micro_batch), num_images]
        return [(slice(low, high), low < num_kept) for low, high in pairwise(edges)]

    def evaluate(
        self, step: int, state: Tensor, conditioning: Tensor | None, block: slice, is_differentiable: bool
    ) -> DenoiserCall | GraphedCall:
        """Call the denoiser on a block of images, with the rows [null, conditional] where the chain is guided."""
        state = state[block]
        if conditioning is not None:
            conditioning = conditioning[block]
            if self.null is not None:  # (B, ...) -> (2B, ...)
                state = torch.cat([state, state])
                conditioning = torch.cat([self.null.expand_as(conditioning), conditioning])
        wants = (is_differentiable and self.wants_state(step), is_differentiable and self.wants_conditioning)
        return self.prior.evaluate(state, self.table.timesteps[step], conditioning, wants=wants)

    def pull_back(self, call: DenoiserCall | GraphedCall, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Pull a cotangent of a call's predictions back to (state, conditioning); None where it is not wanted."""
        state, conditioning = call.vjp(cotangent)
        if self.null is not None and state is not None:
            state = state.unflatten(0, (2, -1)).sum(0)  # both guidance rows read the same state
        if self.null is not None and conditioning is not None:
            conditioning = conditioning.chunk(2)[1]  # the null row is a constant
        return state, conditioning

    def injected(self, latents: Tensor, start: Tensor) -> Tensor | None:
        """Return the tensor that every step injects."""
        if self.injection == "none":
            return None
        return start if self.injection == "mean" else self.prior.quantize(latents)


class _ReverseChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, conditioning: Tensor | None, noise: Tensor, chain: _Chain) -> Tensor:
        ctx.chain, ctx.kept = chain, {}
        is_differentiable = chain.wants_latents or chain.wants_conditioning
        state = start = chain.table.start[0] * latents + chain.table.start[1] * noise
        injected = chain.injected(latents, start)
        states: list[Tensor] = []
        for step in reversed(range(chain.steps)):
            states.append(state)
            stepped: list[Tensor] = []
            for block, is_kept in chain.blocks(step, len(latents)):
                call = chain.evaluate(step, state, conditioning, block, is_kept and is_differentiable)
                skip = None if injected is None else injected[block]
                stepped.append(reverse_step(state[block], call.predictions, skip, **chain.scalars(step)))
                if is_kept and is_differentiable:
                    ctx.kept[step, block.start] = call
            state = torch.cat(stepped)
        if is_differentiable:
            ctx.save_for_backward(conditioning, *states)
        return state

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the names of arguments
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        chain, kept = cast(_Chain, ctx.chain), cast("dict[tuple[int, int], DenoiserCall | GraphedCall]", ctx.kept)
        conditioning, *states = ctx.saved_tensors
        [cotangent] = grad_outputs
        grad_injected = torch.zeros_like(cotangent)
        grad_conditioning = torch.zeros_like(conditioning) if chain.wants_conditioning else None
        for step, state in enumerate(reversed(states)):
            through, rows, to_injected = reverse_step_vjp(
                cotangent, **chain.scalars(step), is_guided=chain.null is not None
            )
            assert through is not None and rows is not None and to_injected is not None  # all three are asked for
            rows = rows.unflatten(0, (-1, len(state)))  # (B, ...) or (2B, ...) -> (1 or 2, B, ...)
            pulled: list[Tensor] = []
            for block, _ in chain.blocks(step, len(state)):
                # Taken out, so that its activations go before the next block is met; a second backward pass over the
                # same graph finds nothing here and evaluates again.
                call = kept.pop((step, block.start), None) or chain.evaluate(step, state, conditioning, block, True)
                block_state, block_conditioning = chain.pull_back(call, rows[:, block].flatten(0, 1))
                del call
                if block_state is not None:
                    pulled.append(block_state)
                if grad_conditioning is not None and block_conditioning is not None:
                    grad_conditioning[block] += block_conditioning
            grad_injected += to_injected
            if pulled:
                cotangent = through + torch.cat(pulled)
        if not chain.wants_latents:
            return None, grad_conditioning, None, None
        if chain.injection == "mean":
            cotangent = cotangent + grad_injected  # z_start is what was injected
        grad_latents = chain.table.start[0] * cotangent
        if chain.injection == "x0":
            grad_latents = grad_latents + grad_injected  # straight through the quantiser
        return grad_latents, grad_conditioning, None, None


def _check(latents: Tensor, noise: Tensor, retain: float) -> None:
    if noise.shape != latents.shape or noise.dtype != latents.dtype:
        raise InputError(
            f"noise is like latents {tuple(latents.shape)} {latents.dtype}, got {tuple(noise.shape)} {noise.dtype}; "
            "draw it with torch.randn_like(latents)"
        )
    check_fraction(retain, "retain", InputError)
