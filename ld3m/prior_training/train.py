"""Train a small prior: a KL first stage, then a class-conditional U-Net on its latents.

Made for small sets on modest machines: latents are computed once and held; every draw comes from (seed, phase,
step), so that a resumed run goes on as if it had not stopped.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld3m.data import Dataset
from ld3m.data.ranges import to_signed
from ld3m.errors import ConfigError
from ld3m.prior_training.fit import Fit, claimed_folder
from ld3m.prior_training.settings import PriorTraining
from ld3m.priors.architecture import build_modules
from ld3m.priors.base import Prior
from ld3m.priors.folder import save_prior
from ld3m.priors.random import fill_random
from ld3m.runtime import processes, seeds
from ld3m.runtime.devices import resolve_device

logger = logging.getLogger(__name__)


def train_prior(
    dataset: Dataset,
    out: Path,
    config: PriorTraining,
    *,
    device: torch.device | str | None = None,
    resume: bool = False,
    preview: Callable[[Prior, Path], None] = lambda prior, path: None,
    preview_every: int = 500,
    progress: bool = True,
) -> Path:
    """Train a prior on a data set's training split and write it as the diffusers folder `out/prior`.

    Args:
        device: "cuda" where there is one when None.
        resume: go on from the last checkpoint in `out`; a folder of other settings is refused, but for more steps: the
            rate then goes on along the longer cosine, so that the outcome is near one of so many steps, not the same.
        preview: called with the prior as it is and the path of a picture to write, such as `chain.save_samples`.
        preview_every: steps of the denoiser between two pictures; one more follows at the end.

    Returns:
        The folder of the prior, in half precision.

    Raises:
        ConfigError: `out` is not empty, or holds a training with other settings.
        NumericsError: a loss is not finite; the last checkpoint stays.
    """
    device = resolve_device(device)
    if preview_every < 1:
        raise ConfigError(f"preview_every is at least 1 step, got {preview_every}")
    settings = {"data": dataset.name, "fingerprint": dataset.fingerprint, **dataclasses.asdict(config)}
    if processes.world_size() > min(config.batch, config.first_stage_batch):
        raise ConfigError(
            f"{processes.world_size()} processes share a batch of {min(config.batch, config.first_stage_batch)}; start "
            "at most as many as that, or raise batch and first_stage_batch"
        )
    processes.require_same({"the training": settings})
    with claimed_folder(out, settings, resume) if processes.is_main() else contextlib.nullcontext():
        processes.from_main(lambda: None, "claim the folder")
        _train(dataset, out, config, device, preview, preview_every, progress)
    logger.info("the prior is in %s", out / "prior")
    return out / "prior"


def _train(
    dataset: Dataset,
    out: Path,
    config: PriorTraining,
    device: torch.device,
    preview: Callable[[Prior, Path], None],
    preview_every: int,
    progress: bool,
) -> None:
    shape = config.shape(dataset.train.num_classes)
    modules: tuple[Any, Any, Any] = build_modules(shape)
    first_stage, denoiser, embedding = modules
    generator = seeds.generator(config.seed, "prior", "initial weights")
    for module in modules:
        fill_random(module.to_empty(device=device), generator)

    options: dict[str, Any] = {"batch": config.first_stage_batch, "progress": progress}
    Fit("first-stage", out, config.first_stage_steps, config.first_stage_lr, **options).run(
        first_stage, lambda step: _first_stage_loss(first_stage, dataset, config, step)
    )
    latents = _standardize(first_stage, _encode_all(first_stage, dataset, config.first_stage_batch))
    prior = Prior(
        name=dataset.name,
        first_stage=first_stage,
        denoiser=denoiser,
        class_embedding=embedding,
        alphas_cumprod=shape.alphas_cumprod,
        scale_factor=1.0,
        native_resolution=config.resolution,
        class_names=dataset.class_names,
    )

    labels = dataset.train.labels.to(device)
    options["batch"] = config.batch
    Fit("denoiser", out, config.steps, config.lr, ema=config.ema, **options).run(
        nn.ModuleDict({"denoiser": denoiser, "class_embedding": embedding}),
        lambda step: _denoiser_loss(prior, latents, labels, config, step),
        each=(preview_every, lambda step: preview(prior, out / f"samples-{step:06d}.png")),
    )
    if not processes.is_main():
        return
    save_prior(prior, out / "prior", dtype=torch.float16, betas=(shape.beta_start, shape.beta_end))
    preview(prior, out / "samples.png")


def _first_stage_loss(first_stage: Any, dataset: Dataset, config: PriorTraining, step: int) -> Tensor:
    generator = seeds.generator(config.seed, "prior", "first-stage", step)
    picks = torch.randint(len(dataset.train), (config.first_stage_batch,), generator=generator)
    own = processes.own_rows(len(picks))
    images = to_signed(dataset.train.batch(picks[own], first_stage.device))
    posterior = first_stage.encode(images).latent_dist
    noise = torch.randn((len(picks), *posterior.mean.shape[1:]), generator=generator)[own].to(images.device)
    error = first_stage.decode(posterior.mean + posterior.std * noise).sample - images
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return error.abs().mean() + error.square().mean() + config.kl_weight * kl


@torch.no_grad()
def _encode_all(first_stage: Any, dataset: Dataset, at_once: int) -> Tensor:
    """Encode the training split once, (N, c, h, w), means."""
    parts = torch.arange(len(dataset.train)).split(at_once)
    first_stage.eval()
    return torch.cat(
        [first_stage.encode(to_signed(dataset.train.batch(p, first_stage.device))).latent_dist.mean for p in parts]
    )


@torch.no_grad()
def _standardize(first_stage: Any, latents: Tensor) -> Tensor:
    """Give every latent channel mean 0 and standard deviation 1; return the latents so changed.

    A weak KL term leaves channels of very different scale, of which diffusion would see some as all noise and others
    as none. The affine map goes into the 1×1 convolutions on either side of the latents: decode ∘ encode is unchanged.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    moments, back = first_stage.quant_conv, first_stage.post_quant_conv
    channels = len(mean)
    moments.weight[:channels] /= std.view(-1, 1, 1, 1)
    moments.bias[:channels] = (moments.bias[:channels] - mean) / std
    moments.bias[channels:] -= 2 * std.log()  # the log-variance of the posterior
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std.view(1, -1, 1, 1)
    first_stage.register_to_config(scaling_factor=1.0)
    return (latents - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def _denoiser_loss(prior: Prior, latents: Tensor, labels: Tensor, config: PriorTraining, step: int) -> Tensor:
    """Mean squared error of the noise prediction (Ho et al. 2020, eq. 14), labels dropped for guidance."""
    embedding, null_class = prior.class_embedding, prior.null_class
    assert embedding is not None and null_class is not None  # such is what is trained here
    generator = seeds.generator(config.seed, "prior", "denoiser", step)
    picks = torch.randint(len(latents), (config.batch,), generator=generator)
    timesteps = torch.randint(len(prior.alphas_cumprod), (config.batch,), generator=generator)
    is_dropped = torch.rand(config.batch, generator=generator) < config.label_dropout
    noise = torch.randn((config.batch, *latents.shape[1:]), generator=generator).to(latents.device)
    own = processes.own_rows(config.batch)
    picks, timesteps, is_dropped, noise = picks[own], timesteps[own], is_dropped[own], noise[own]
    class_ids = labels[picks].masked_fill(is_dropped.to(labels.device), null_class)
    alphas = prior.alphas_cumprod[timesteps].to(latents).view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * latents[picks] + (1 - alphas).sqrt() * noise
    # The modules themselves: Prior.predict_noise takes one timestep for the whole batch.
    conditioning = embedding(class_ids)[:, None]
    return F.mse_loss(prior.denoiser(noisy, timesteps.to(latents.device), conditioning).sample, noise)
