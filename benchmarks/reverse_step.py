"""The guided, skip-injected update of latents, forward and all three cotangents.

Against eager autograd of the affine reference, and of the algebra of the released sampler.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ld3m.ops.reverse_step import reverse_step, reverse_step_reference

SHAPES = {
    "cpu": [(10, 3, 32, 32), (64, 3, 64, 64), (256, 4, 64, 64), (1024, 4, 64, 64)],  # the last: 64 MiB
    "gpu": [(10, 3, 32, 32), (100, 3, 64, 64), (1408, 3, 64, 64), (5632, 3, 64, 64)],  # the last two: 66 and 264 MiB
    "smoke": [(2, 3, 8, 8)],
}
ALPHA, PREVIOUS, WEIGHT, GUIDANCE = 0.4, 0.6, 0.3, 3.0  # ᾱ here and at the next step, weight of the injection
SCALARS = {
    "a": (1 - WEIGHT) * (PREVIOUS / ALPHA) ** 0.5,
    "b": (1 - PREVIOUS) ** 0.5 - (1 - WEIGHT) * (PREVIOUS / ALPHA * (1 - ALPHA)) ** 0.5,
    "d": WEIGHT * PREVIOUS**0.5,
    "guidance_scale": GUIDANCE,
}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare: forward alone, and with all gradients."""
    draw = torch.Generator().manual_seed(0)
    for shape in SHAPES[suite]:
        for dtype in (torch.float32, torch.bfloat16) if suite == "gpu" else (torch.float32,):
            state, injected, cotangent = (torch.randn(shape, generator=draw).to(device) for _ in range(3))
            predictions = torch.randn(2 * shape[0], *shape[1:], generator=draw).to(device, dtype)

            def forward(function, tensors=(state, predictions, injected)):
                return function(*tensors, **SCALARS)

            def full(function, tensors=(state, predictions, injected), cotangent=cotangent):
                inputs = [t.detach().requires_grad_() for t in tensors]
                return torch.autograd.grad(function(*inputs, **SCALARS), inputs, cotangent)

            numbers, rows = 4 * state.numel(), predictions.numel() * predictions.element_size()
            sizes = {"fwd": 3 * numbers + rows, "fwd+bwd": 6 * numbers + 2 * rows}  # read and written once
            for against, function in BASELINES.items():
                for (mode, size), run in zip(sizes.items(), (forward, full), strict=True):
                    yield {
                        "name": f"reverse_step/{'x'.join(map(str, shape))}",
                        "mode": mode,
                        "shape": shape,
                        "dtype": str(dtype).removeprefix("torch."),
                        "against": against,
                        "ours": lambda run=run: run(reverse_step),
                        "baseline": lambda run=run, function=function: run(function),
                        "bytes": size,
                    }


def released_step(
    state: Tensor, predictions: Tensor, injected: Tensor, a: float, b: float, d: float, guidance_scale: float
) -> Tensor:
    """Step as the released sampler does: scalars as tensors, the clean estimate, and noise times σ = 0."""
    alpha, previous, sigma, root = (
        torch.full((len(state), 1, 1, 1), value, device=state.device)
        for value in (ALPHA, PREVIOUS, 0.0, (1 - ALPHA) ** 0.5)
    )
    uncond, cond = predictions.float().chunk(2)
    noise = uncond + guidance_scale * (cond - uncond)
    clean = (state - root * noise) / alpha.sqrt()
    clean = (1 - WEIGHT) * clean + WEIGHT * injected
    direction = (1 - previous - sigma**2).sqrt() * noise
    return previous.sqrt() * clean + direction + sigma * torch.randn_like(state)


BASELINES = {"eager": reverse_step_reference, "released sampler": released_step}
