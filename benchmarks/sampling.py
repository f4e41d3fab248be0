"""D3HR's two walks through a DiT, inversion and sampling back, against diffusers' own modules and schedulers.

Both go between the image's latents and the default level of noise, 30 points of a grid of 50, with guidance.
"""

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor

import ld3m
from ld3m.priors import ExecutionConfig, Prior

PRIORS = {"cpu": [], "gpu": [("random:dit-xl2", 32)], "smoke": [("random:dit-tiny", 2)]}  # (prior, images)
STEPS, STOP, GUIDANCE_SCALE = 50, 30, 4.0


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare."""
    dtype = torch.bfloat16 if suite == "gpu" else torch.float32
    for name, num_images in PRIORS[suite]:
        prior = ld3m.load_prior(name, device=device, dtype=dtype).set_execution(ExecutionConfig())
        stock = stock_of(prior)
        draw = torch.Generator().manual_seed(0)
        side = prior.native_resolution // prior.downsample
        latents = torch.randn(num_images, prior.latent_channels, side, side, generator=draw).to(device)
        labels = torch.arange(num_images) % prior.num_classes
        conditioning, labels = prior.embed(labels).float(), labels.to(device)

        def sampling(prior=prior, latents=latents, conditioning=conditioning):
            return ld3m.sample(prior, latents, conditioning, steps=STEPS, start=STOP, guidance_scale=GUIDANCE_SCALE)

        def inversion(prior=prior, latents=latents, conditioning=conditioning):
            return ld3m.invert(
                prior, latents, conditioning, steps=STEPS, stop=STOP, guidance_scale=GUIDANCE_SCALE
            ).latents

        for walk in (sampling, inversion):
            yield {
                "name": f"sample/{name.removeprefix('random:')}/{walk.__name__}",
                "mode": "fwd",
                "shape": tuple(latents.shape),
                "dtype": str(dtype).removeprefix("torch."),
                "against": "diffusers",
                "tolerance": None if suite == "gpu" else 1e-3,  # bfloat16 rounds the states of diffusers' walk as well
                "images": num_images,
                "runs": 5 if suite == "gpu" else 1,
                "ours": walk,
                "work": walk,
                "baseline": lambda walk=walk, latents=latents, labels=labels, stock=stock: published(
                    stock, latents.to(stock.dtype), labels, is_inverted=walk.__name__ == "inversion"
                ),
            }


def stock_of(prior: Prior) -> torch.nn.Module:
    """Return diffusers' transformer with a prior's weights: every block has embedders of time and class of its own."""
    from diffusers import DiTTransformer2DModel

    names = inspect.signature(DiTTransformer2DModel.__init__).parameters
    config = {k: v for k, v in prior.denoiser.config.items() if k in names} | {"num_embeds_ada_norm": prior.num_classes}
    with torch.device(prior.device):
        stock = DiTTransformer2DModel(**config).eval().requires_grad_(False)
    torch.nn.Module.to(stock, prior.dtype)  # diffusers' own `to` warns
    weights = {k.removeprefix("dit."): v for k, v in prior.denoiser.state_dict().items() if k.startswith("dit.")}
    stock.load_state_dict(weights, strict=False)
    for block in stock.transformer_blocks:
        own = block.norm1.emb
        own.time_proj.downscale_freq_shift = prior.denoiser.time_projection.downscale_freq_shift
        own.timestep_embedder.load_state_dict(prior.denoiser.time_embedding.state_dict())
        own.class_embedder.embedding_table.load_state_dict(prior.class_embedding.state_dict())
    return stock


@torch.no_grad()
def published(stock: torch.nn.Module, latents: Tensor, labels: Tensor, *, is_inverted: bool) -> Tensor:
    """Walk as a user of diffusers does: its transformer, its scheduler, a doubled batch for guidance."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    options = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2, "clip_sample": False}
    scheduler = (DDIMInverseScheduler if is_inverted else DDIMScheduler)(**options, timestep_spacing="leading")
    scheduler.set_timesteps(STEPS, device=latents.device)
    points = slice(1, STOP + 1) if is_inverted else slice(STEPS - 1 - STOP, STEPS - 1)
    classes = torch.cat(
        [labels, torch.full_like(labels, stock.config.num_embeds_ada_norm)]
    )  # the null class comes last
    for timestep in scheduler.timesteps[points]:
        both = torch.cat([latents, latents])
        noise = stock(both, timestep=timestep.expand(len(both)), class_labels=classes).sample[:, : latents.shape[1]]
        cond, uncond = noise.chunk(2)
        noise = uncond + GUIDANCE_SCALE * (cond - uncond)
        latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents
