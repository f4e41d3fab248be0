"""The scheme of the released LD3M code, written out on stock diffusers modules, as the baseline of the benchmarks.

One iteration generates without gradients for the loss, then generates again under checkpointing for the gradient: each
denoiser call is checkpointed, and each transformer block inside it once more; q(Z) is computed anew in every step.
Unlike the released code it keeps the noise fixed, so that both generations are of the same image.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ld3m.chain import timesteps
from ld3m.priors import Prior


@contextlib.contextmanager
def checkpointed_transformer_blocks(prior: Prior) -> Iterator[None]:
    """Checkpoint every transformer block of the denoiser inside the block."""
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [module for module in prior.denoiser.modules() if isinstance(module, BasicTransformerBlock)]
    plain = [block.forward for block in blocks]
    for block, forward in zip(blocks, plain, strict=True):
        block.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, plain, strict=True):
            block.forward = forward


def generate(
    prior: Prior, latents: Tensor, conditioning: Tensor, noise: Tensor, *, steps: int, guidance_scale: float
) -> Tensor:
    """Run the skip-injected chain as the released sampler does, step by step under autograd if that is on."""
    taus, alphas = timesteps(steps), prior.alphas_cumprod
    state = alphas[taus[-1]].sqrt().item() * latents + (1 - alphas[taus[-1]]).sqrt().item() * noise
    for i in reversed(range(steps)):
        previous = alphas[taus[i - 1]] if i else alphas[0]
        rows = torch.cat([prior.null_conditioning(len(latents)), conditioning])
        # The timestep is an argument: a closure over the loop's variable would recompute with its last value.
        call = prior.predict_noise
        if state.requires_grad:
            call = partial(checkpoint, call, use_reentrant=False)
        uncond, cond = call(torch.cat([state, state]), taus[i], rows).chunk(2)
        predicted = uncond + guidance_scale * (cond - uncond)
        clean = (state - (1 - alphas[taus[i]]).sqrt().item() * predicted) / alphas[taus[i]].sqrt().item()
        weight = i / (steps - 1)
        clean = (1 - weight) * clean + weight * prior.quantize(latents)
        state = previous.sqrt().item() * clean + (1 - previous).sqrt().item() * predicted
    return state


def iteration(
    prior: Prior,
    latents: Tensor,
    conditioning: Tensor,
    noise: Tensor,
    cotangent: Tensor,
    *,
    steps: int,
    guidance_scale: float,
) -> tuple[Tensor, ...]:
    """Generate, generate again, back-propagate; return the gradients of latents and conditioning."""
    settings = {"steps": steps, "guidance_scale": guidance_scale}
    with checkpointed_transformer_blocks(prior):
        with torch.no_grad():
            generate(prior, latents, conditioning, noise, **settings)
        state = generate(prior, latents, conditioning, noise, **settings)
        return torch.autograd.grad(state, (latents, conditioning), cotangent)
