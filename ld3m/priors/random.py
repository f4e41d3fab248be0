"""Priors of seeded random weights: the structure of a model without its training."""

import math

import torch
from torch import Tensor, nn

from ld3m.errors import ConfigError
from ld3m.priors.architecture import DIT_SHAPES, SHAPES, build_modules
from ld3m.priors.base import Prior
from ld3m.priors.dit import DiTDenoiser, build_dit_modules
from ld3m.runtime import seeds

RELEASED = "ffhq256-released"
NAMES = (*SHAPES, RELEASED, *DIT_SHAPES)


@torch.no_grad()
def fill_random(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every parameter so that no tensor is zero: fan-in scaled weights, norm scales about 1, small biases.

    Embedding tables (class embeddings, codebooks) are drawn as N(0, 1).
    """
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(_scaled(owner, name, noise))
    return module


def _scaled(owner: nn.Module, name: str, noise: Tensor) -> Tensor:
    if isinstance(owner, nn.Embedding):
        return noise
    if noise.ndim >= 2:
        return noise / math.sqrt(noise[0].numel())
    return 1 + 0.05 * noise if name == "weight" else 0.02 * noise


def load_random(name: str, *, dtype: torch.dtype, without_weights: bool = False) -> Prior:
    """Build a named prior with random weights, the same for everybody, or with shapes alone, on the meta device.

    `ffhq256-released` is what the released LD3M code ran for the "Random" rows of the paper: an unconditional U-Net
    whose output convolution is zero. It predicts no noise, and the chain is a round trip through the first stage.
    """
    if name not in NAMES:
        raise ConfigError(f"random priors are {', '.join('random:' + n for n in NAMES)}; got 'random:{name}'")
    if name in DIT_SHAPES:
        shape = DIT_SHAPES[name]
        first_stage, denoiser, embedding = build_dit_modules(shape)
    else:
        shape = SHAPES["ffhq256" if name == RELEASED else name]
        first_stage, denoiser, embedding = build_modules(shape)
    if not without_weights:
        generator = seeds.generator(0, "random prior", name)
        for module in filter(None, (first_stage, denoiser, embedding)):
            fill_random(module.to_empty(device="cpu"), generator)
        if isinstance(denoiser, DiTDenoiser):
            denoiser.place_positions()
        elif name == RELEASED:
            nn.init.zeros_(denoiser.conv_out.weight)
            nn.init.zeros_(denoiser.conv_out.bias)
    return Prior(
        name=f"random:{name}",
        first_stage=first_stage,
        denoiser=denoiser,
        class_embedding=embedding,
        alphas_cumprod=shape.alphas_cumprod,
        scale_factor=shape.scale_factor,
        native_resolution=shape.resolution,
    ).to(dtype=dtype)
