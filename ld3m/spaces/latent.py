"""Latents of a frozen prior, through its reverse chain ("ld3m") or through its decoder alone ("autoencoder")."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ld3m.chain import reverse_chain
from ld3m.config import ResolvedDistillConfig
from ld3m.data import Dataset
from ld3m.data.ranges import to_pixels
from ld3m.errors import ConfigError
from ld3m.memory.costs import Workload
from ld3m.memory.diffusion import plan_work
from ld3m.memory.plan import Plan
from ld3m.priors import Prior
from ld3m.priors.classes import warn_of_unknown
from ld3m.runtime import seeds
from ld3m.spaces.base import DiffusionSetup
from ld3m.spaces.start import initial_conditioning, initial_images, initial_latents


class LatentSpace:
    """Latents, and conditioning where the prior has one, as parameters.

    Args:
        latents: (N, c, h, w).
        conditioning: (N, tokens, dim), or None.
        learn: which of "latents" and "conditioning" are optimised.
        resolution: of the rendered images; decoded ones of another size are resized with antialiasing.
        chain: settings of a distillation, of which those of the reverse chain hold; None decodes the latents as they
            are.
        retain, micro_batch: as of `reverse_chain`.
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
        chain: ResolvedDistillConfig | None,
        retain: float = 0.0,
        micro_batch: int | None = None,
        decoder_batch: int | None = None,
    ) -> None:
        self.prior, self.resolution, self.chain = prior, resolution, chain
        self.retain, self.micro_batch, self.decoder_batch = retain, micro_batch, decoder_batch
        self._drawn: tuple[tuple[object, ...], Tensor] | None = None  # purpose and noise of the last draw
        self.rows, self.num_rows = torch.arange(len(latents)), len(latents)
        tensors = {"latents": latents, "conditioning": conditioning}
        self.parameters = {
            name: tensor.detach().clone().requires_grad_(name in learn)
            for name, tensor in tensors.items()
            if tensor is not None
        }

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        index = rows.to(self.parameters["latents"].device, non_blocking=True)
        latents = self.parameters["latents"][index]
        if self.chain is not None:
            latents = self._run_chain(latents, index, self.noise(rows, noise_seed))
        if self.decoder_batch is None:
            return self._show(latents)
        return torch.cat([_Recomputed.apply(self._show, part) for part in latents.split(self.decoder_batch)])

    def apply_plan(self, plan: Plan) -> None:
        self.retain, self.micro_batch, self.decoder_batch = plan.retain, plan.micro_batch, plan.decoder_batch
        if self.prior.frozen.graphs is not None:  # recorded for the plan before
            self.prior.frozen.graphs.release()

    def _show(self, latents: Tensor) -> Tensor:
        return to_pixels(self.prior.decode(latents), self.resolution)

    def _run_chain(self, latents: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        chain, conditioning = self.chain, self.parameters.get("conditioning")
        assert chain is not None
        return reverse_chain(
            self.prior,
            latents,
            None if conditioning is None else conditioning[index],
            steps=chain.steps,
            guidance_scale=chain.guidance_scale,
            injection=chain.injection,
            schedule=chain.schedule,
            noise=noise,
            retain=self.retain,
            micro_batch=self.micro_batch,
        )

    def noise(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        """Draw the noise (n, c, h, w) of the rows' chains."""
        assert self.chain is not None
        latents, purpose = self.parameters["latents"], () if self.chain.noise == "fixed" else noise_seed
        # Drawn for all images, so that an image's noise does not depend on which others are rendered with it; and once
        # for all groups of rows that are rendered one after the other.
        if self._drawn is None or self._drawn[0] != purpose:
            generator = seeds.generator(self.chain.seed, "noise", *purpose)
            self._drawn = purpose, torch.randn((self.num_rows, *latents.shape[1:]), generator=generator)
        names = rows if rows.device == self.rows.device else rows.cpu()
        return self._drawn[1][self.rows[names]].to(latents.device, latents.dtype, non_blocking=True)

    def project(self) -> None:
        """Latents and conditioning may go anywhere."""


class LatentSetup(DiffusionSetup):
    """The set-up of a distillation in one of these two spaces."""

    def __init__(self, *, has_chain: bool) -> None:
        self.has_chain = has_chain
        shared = {"memory_budget", "retain", "micro_batch", "decoder_batch", "real_chunk", "latent_size", "attention"}
        self.settings = frozenset(shared | {"cuda_graphs"} if has_chain else shared)

    def check(self, config: ResolvedDistillConfig, prior: Prior) -> None:
        if config.latent_size is None:
            prior.require_resolution(config.resolution)
        latent_size = config.latent_size or config.resolution // prior.downsample
        if self.has_chain:
            check_latent_size(latent_size, prior)
        else:
            _check_norms(latent_size, prior, has_chain=False)
        super().check(config, prior)

    def plan(self, config: ResolvedDistillConfig, prior: Prior, dataset: Dataset) -> Plan:
        num_classes, most_images = dataset.train.num_classes, int(torch.bincount(dataset.train.labels).max())
        real_batch = min(config.real_batch, most_images)
        work = Workload.of(config, has_chain=self.has_chain, num_classes=num_classes, real_batch=real_batch)
        return plan_work(prior, work, config.memory_budget, config.retain)

    def build(
        self, config: ResolvedDistillConfig, prior: Prior, dataset: Dataset, plan: Plan | None, device: torch.device
    ) -> LatentSpace:
        assert plan is not None
        images = initial_images(config, dataset)
        if not self.has_chain:  # with one, matching the classes says it
            warn_of_unknown(prior, dataset.class_names)
        return LatentSpace(
            prior,
            initial_latents(config, prior, images, min(plan.micro_batch, plan.decoder_batch or 16, 16)),
            initial_conditioning(config, prior, dataset) if self.has_chain else None,
            learn=config.learn if self.has_chain else ("latents",),
            resolution=config.resolution,
            chain=config if self.has_chain else None,
            retain=plan.retain,
            micro_batch=plan.micro_batch,
            decoder_batch=plan.decoder_batch,
        )


def check_latent_size(latent_size: int, prior: Prior) -> None:
    """Raise unless the denoiser takes latents of that side."""
    if latent_size % prior.latent_multiple:
        raise ConfigError(
            f"{prior.name} takes latents whose side is a multiple of {prior.latent_multiple}, got {latent_size}; "
            f"choose a resolution divisible by {prior.latent_multiple * prior.downsample}, or latent_size"
        )
    _check_norms(latent_size, prior, has_chain=True)


def _check_norms(latent_size: int, prior: Prior, *, has_chain: bool) -> None:
    """Raise where a norm of a network would see a single value a group, of which it leaves nothing."""
    decoder = prior.first_stage.config
    seen = [(decoder, latent_size, decoder.block_out_channels[-1])]  # the innermost part of the first stage
    if has_chain:
        config = prior.denoiser.config
        levels = enumerate(config.block_out_channels if "block_out_channels" in config else ())
        seen += [(config, -(-latent_size // 2**level), channels) for level, channels in levels]
    for config, side, channels in seen:
        if side == 1 and channels == config.norm_num_groups:
            raise ConfigError(
                f"{prior.name} normalizes each channel by its own values, of which latents of {latent_size} × "
                f"{latent_size} leave one; choose a larger latent_size or resolution"
            )


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
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # as `once_differentiable` types it
        ctx, cotangent: Tensor
    ) -> tuple[None, Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            result = ctx.function(x)
        (gradient,) = torch.autograd.grad(result, x, cotangent)
        return None, gradient
