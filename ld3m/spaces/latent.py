"""Latents of a frozen prior, through its reverse chain ("ld3m") or through its decoder alone ("autoencoder")."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ld3m.chain import reverse_chain
from ld3m.priors.base import Prior
from ld3m.runtime import seeds
from ld3m.spaces.base import to_pixels


@dataclass(frozen=True)
class ChainSettings:
    """How the reverse chain of the "ld3m" space is run; see `ld3m.reverse_chain`."""

    steps: int
    guidance_scale: float
    injection: str
    schedule: str
    noise: str
    retain: float
    micro_batch: int | None
    seed: int


class LatentSpace:
    """Latents, and conditioning where the prior has one, as parameters.

    Args:
        latents: (N, c, h, w).
        conditioning: (N, tokens, dim), or None.
        learn: which of "latents" and "conditioning" are optimised.
        resolution: of the rendered images; decoded ones of another size are resized with antialiasing.
        chain: settings of the reverse chain; None decodes the latents as they are.
        decoder_batch: images decoded at a time, with the decoder's activations recomputed in the backward pass, so that
            those of one batch are held at once; None decodes all and keeps them.
    """

    def __init__(
        self,
        prior: Prior,
        latents: Tensor,
        conditioning: Tensor | None,
        *,
        learn: tuple[str, ...],
        resolution: int,
        chain: ChainSettings | None,
        decoder_batch: int | None = None,
    ) -> None:
        self.prior, self.resolution, self.chain, self.decoder_batch = prior, resolution, chain, decoder_batch
        self._drawn: tuple[tuple[object, ...], Tensor] | None = None  # purpose and noise of the last draw
        tensors = {"latents": latents, "conditioning": conditioning}
        self.parameters = {
            name: tensor.detach().clone().requires_grad_(name in learn)
            for name, tensor in tensors.items()
            if tensor is not None
        }

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        latents = self.parameters["latents"][rows]
        if self.chain is not None:
            latents = self._run_chain(latents, rows, noise_seed)
        if self.decoder_batch is None:
            return self._show(latents)
        return torch.cat([_Recomputed.apply(self._show, part) for part in latents.split(self.decoder_batch)])

    def hold(self, *, retain: float, micro_batch: int, decoder_batch: int | None) -> None:
        if self.chain is not None:
            self.chain = replace(self.chain, retain=retain, micro_batch=micro_batch)
        self.decoder_batch = decoder_batch
        if self.prior.frozen.graphs is not None:  # recorded for what was held before
            self.prior.frozen.graphs.release()

    def _show(self, latents: Tensor) -> Tensor:
        return to_pixels(self.prior.decode(latents), self.resolution)

    def _run_chain(self, latents: Tensor, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        chain, noise = self.chain, self.noise(rows, noise_seed)
        conditioning = self.parameters.get("conditioning")
        return reverse_chain(
            self.prior,
            latents,
            None if conditioning is None else conditioning[rows],
            steps=chain.steps,
            guidance_scale=chain.guidance_scale,
            injection=chain.injection,
            schedule=chain.schedule,
            noise=noise,
            retain=chain.retain,
            micro_batch=chain.micro_batch,
        )

    def noise(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        """Draw the noise (n, c, h, w) of the rows' chains."""
        latents, purpose = self.parameters["latents"], () if self.chain.noise == "fixed" else noise_seed
        # Drawn for all images, so that an image's noise does not depend on which others are rendered with it; and once
        # for all groups of rows that are rendered one after the other.
        if self._drawn is None or self._drawn[0] != purpose:
            draw = seeds.generator(self.chain.seed, "noise", *purpose)
            self._drawn = purpose, torch.randn(latents.shape, generator=draw)
        return self._drawn[1][rows.cpu()].to(latents)

    def project(self) -> None:
        """Latents and conditioning may go anywhere."""


class _Recomputed(torch.autograd.Function):
    """A function of one tensor whose activations are not kept but recomputed in the backward pass.

    It draws nothing at random, so there is no generator to rewind, as `torch.utils.checkpoint` would; and what it holds
    in the backward pass is seen by saved-tensor hooks, as everything else is.
    """

    @staticmethod
    def forward(ctx, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor) -> tuple[None, Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            result = ctx.function(x)
        (gradient,) = torch.autograd.grad(result, x, cotangent)
        return None, gradient
