"""Priors for the chain, and the chain written out for plain autograd."""

import math
from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor

import ld3m

SCHEDULES = {
    "linear": lambda i, T: i / (T - 1),
    "cosine": lambda i, T: 1 - math.cos(math.pi * i / (T - 1) / 2),
    "quadratic": lambda i, T: (i / (T - 1)) ** 2,
    "exponential": lambda i, T: (math.exp(3 * i / (T - 1)) - 1) / (math.exp(3) - 1),
}


@pytest.fixture(scope="session")
def weight() -> Callable:
    """The injection weight w_i of a named schedule or a callable, from its definition."""

    def of(schedule: str | Callable, i: int, steps: int) -> float:
        return 0.0 if i == 0 else (schedule if callable(schedule) else SCHEDULES[schedule])(i, steps)

    return of


@pytest.fixture(scope="session")
def plain_chain(weight) -> Callable:
    """The reverse chain, step by step as it is defined, for autograd to differentiate."""

    def chain(prior, latents, conditioning, *, noise, steps, guidance_scale=3.0, injection="x0", schedule="linear"):
        alphas = prior.alphas_cumprod.to(latents.dtype)
        taus = [min(1 + 1000 * i // steps, 999) for i in range(steps)]
        quantised = prior.quantize(latents)
        z = start = alphas[taus[-1]].sqrt() * latents + (1 - alphas[taus[-1]]).sqrt() * noise
        for i in reversed(range(steps)):
            alpha, previous = alphas[taus[i]], alphas[taus[i - 1] if i else 0]
            predicted = prior.predict_noise(z, taus[i], conditioning)
            if conditioning is not None and guidance_scale != 1:
                uncond = prior.predict_noise(z, taus[i], prior.null_conditioning(len(z)))
                predicted = uncond + guidance_scale * (predicted - uncond)
            w = weight(schedule, i, steps)
            clean = (z - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
            if injection == "x0":
                clean = (1 - w) * clean + w * quantised
            z = previous.sqrt() * clean + (1 - previous).sqrt() * predicted
            if injection == "mean":
                z = (1 - w) * z + w * start
        return z

    return chain


@pytest.fixture(scope="session")
def priors(reference_prior, tmp_path_factory) -> Callable:
    """Priors of every kind in float64, by name: vq, kl, unconditional, class vector, dit."""
    made = {}

    def load(name: str) -> "ld3m.priors.Prior":
        if name not in made:
            if name in ("vq", "dit"):
                made[name] = ld3m.load_prior({"vq": "random:tiny", "dit": "random:dit-tiny"}[name], dtype=torch.float64)
            elif name == "class vector":
                made[name] = _class_vector_prior(tmp_path_factory.mktemp("prior"))
            else:
                made[name] = reference_prior({"kl": "kl", "unconditional": "ffhq"}[name])
        return made[name]

    return load


def _class_vector_prior(folder):
    """A prior whose U-Net adds the class vector to the timestep's, three levels deep and with self-attention."""
    torch.manual_seed(3)
    denoiser = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, num_class_embeds=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    diffusers.LDMPipeline(vqvae=vae, unet=denoiser, scheduler=scheduler).save_pretrained(folder)
    (folder / "vqvae").rename(folder / "vae")
    return ld3m.load_prior(folder, dtype=torch.float64)


@pytest.fixture(scope="session")
def inputs() -> Callable:
    """Draw (latents, conditioning, noise, cotangent) for a prior; leaves that ask for a gradient."""

    def draw(prior, num_images: int, seed: int = 0, size: tuple[int, int] = (4, 4)) -> tuple[Tensor | None, ...]:
        rng = torch.Generator().manual_seed(seed)

        def randn() -> Tensor:
            return torch.randn(num_images, prior.latent_channels, *size, generator=rng, dtype=torch.float64)

        conditioning = None
        if prior.num_classes is not None:
            ids = torch.randint(prior.num_classes, (num_images,), generator=rng)
            conditioning = prior.embed(ids).clone()
            conditioning += 0.1 * torch.randn(conditioning.shape, generator=rng, dtype=torch.float64)
            conditioning.requires_grad_()
        return randn().requires_grad_(), conditioning, randn(), randn()

    return draw
