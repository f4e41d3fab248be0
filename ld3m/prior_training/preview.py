"""Images sampled from pure noise by the chain without injection, to look at and to measure what a prior has learnt."""

from pathlib import Path

import torch
from torch import Tensor

from ld3m.chain.reverse import reverse_chain
from ld3m.priors.base import Prior
from ld3m.runs import pictures
from ld3m.runtime import seeds

_CLASSES = 20


def save_samples(
    prior: Prior, path: Path, seed: int, *, per_class: int = 8, steps: int = 20, at_once: int = 128
) -> None:
    """Write a grid of guided samples (g = 3), a row per class, of at most 20 classes."""
    assert prior.num_classes is not None  # a prior that was trained here has classes
    labels = torch.arange(min(prior.num_classes, _CLASSES)).repeat_interleave(per_class)
    generator = seeds.generator(seed, "prior", "samples")
    images = sample_images(prior, labels, generator, steps=steps, guidance_scale=3.0, at_once=at_once)
    pictures.save_png(path, pictures.grid(images, per_class))


@torch.no_grad()
def sample_images(
    prior: Prior,
    class_ids: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    guidance_scale: float,
    at_once: int = 128,
) -> Tensor:
    """Sample images (N, 3, H, W) in [0, 1] from pure noise by DDIM, one for each class id (N,), some at a time."""
    side = prior.native_resolution // prior.downsample
    noise = torch.randn((len(class_ids), prior.latent_channels, side, side), generator=generator).to(prior.device)
    # A zero latent noised to the first timestep is the noise itself, scaled by √(1−ᾱ) ≈ 1.
    latents = reverse_chain(
        prior,
        torch.zeros_like(noise),
        prior.embed(class_ids),
        steps=steps,
        guidance_scale=guidance_scale,
        injection="none",
        noise=noise,
        micro_batch=at_once,
    )
    return torch.cat([(prior.decode(part) + 1).div(2).clamp(0, 1).cpu() for part in latents.split(at_once)])
