"""The reverse chain, forward and backward, against the scheme of the released code on diffusers' modules."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import ld3m
from benchmarks import official
from ld3m.priors import ExecutionConfig, Prior

GUIDANCE = 3.0
SETTINGS = {"cpu": ("random:builtin", 10, 10), "smoke": ("random:tiny", 2, 2)}  # prior, images, steps
RETAIN = {"retain": 1.0, "recompute": 0.0}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare; a GPU's rows are whole iterations, see `iteration`."""
    if suite not in SETTINGS:
        return
    name, images, steps = SETTINGS[suite]
    runs = schemes(ld3m.load_prior(name), ld3m.load_prior(name).set_execution(ExecutionConfig()), steps, images)
    for label in RETAIN:
        yield {
            "name": f"chain/{label}",
            "mode": "fwd+bwd",
            "shape": (images, steps),
            "dtype": "float32",
            "against": "released scheme",
            "ours": runs[f"{label}, streamlined"],
            "baseline": runs["official"],
            "runs": 5 if suite == "cpu" else 1,
        }


def schemes(prior: Prior, frozen: Prior, steps: int, images: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Return each way to run the chain, with the gradients of latents and conditioning as its result."""
    arguments = inputs(prior, images)
    ways = {"official": partial(official.iteration, prior, *arguments, steps=steps, guidance_scale=GUIDANCE)}
    for suffix, own in (("", prior), (", streamlined", frozen)):
        for label, retain in reversed(RETAIN.items()):
            ways[label + suffix] = partial(ours, own, *arguments, steps=steps, retain=retain)
    return ways


def inputs(prior: Prior, images: int) -> tuple[Tensor, ...]:
    """Return latents and conditioning, which require a gradient, noise and a cotangent."""
    draw = torch.Generator().manual_seed(0)
    side = prior.native_resolution // prior.downsample
    latents, noise, cotangent = torch.randn(3, images, prior.latent_channels, side, side, generator=draw)
    conditioning = prior.embed(torch.arange(images) % prior.num_classes).clone()
    return latents.requires_grad_(), conditioning.requires_grad_(), noise, cotangent


def ours(
    prior: Prior, latents: Tensor, conditioning: Tensor, noise: Tensor, cotangent: Tensor, *, steps: int, retain: float
) -> tuple[Tensor, ...]:
    state = ld3m.reverse_chain(
        prior, latents, conditioning, steps=steps, guidance_scale=GUIDANCE, noise=noise, retain=retain
    )
    return torch.autograd.grad(state, (latents, conditioning), cotangent)
