"""The guided, skip-injected update of latents, forward and all three cotangents, against eager autograd."""

from collections.abc import Iterator

import torch

from ld3m.ops.reverse_step import reverse_step, reverse_step_reference

SHAPES = {
    "cpu": [(10, 3, 32, 32), (64, 3, 64, 64), (256, 4, 64, 64)],
    "gpu": [(10, 3, 32, 32), (100, 3, 64, 64), (1408, 3, 64, 64), (5632, 3, 64, 64)],  # the last two: 66 and 264 MiB
    "smoke": [(2, 3, 8, 8)],
}
SCALARS = {"a": 1.07, "b": -0.31, "d": 0.23, "guidance_scale": 3.0}


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
            for (mode, size), run in zip(sizes.items(), (forward, full), strict=True):
                yield {
                    "name": f"reverse_step/{'x'.join(map(str, shape))}",
                    "mode": mode,
                    "shape": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "against": "eager",
                    "ours": lambda run=run: run(reverse_step),
                    "baseline": lambda run=run: run(reverse_step_reference),
                    "bytes": size,
                }
