"""A call of a denoiser and its vector-Jacobian product, run frozen, against diffusers' modules in the same dtype.

On a GPU also each backend of attention alone, at the heads of the ImageNet model.
"""

import copy
from collections.abc import Iterator

import torch

import ld3m
from ld3m.priors import ExecutionConfig
from ld3m.priors.frozen.attention import BACKENDS, attention, choose

PRIORS = {  # (prior, side of the latents, rows)
    "cpu": [("random:builtin", 8, 20)],
    "gpu": [("random:cin256", 32, 2), ("random:cin256", 32, 20), ("random:cin256", 64, 20), ("random:ffhq256", 32, 20)],
    "smoke": [("random:tiny", 8, 2)],
}
EXECUTIONS = {
    "cpu": {"streamlined": ExecutionConfig()},
    "gpu": {
        "graphs": ExecutionConfig(),
        "no graphs": ExecutionConfig(cuda_graphs=False),
        "no graphs, contiguous": ExecutionConfig(cuda_graphs=False, channels_last=False),
        "no graphs, eager norm": ExecutionConfig(cuda_graphs=False, fused_norm=False),
        "no graphs, compiled": ExecutionConfig(cuda_graphs=False, compile=True),
    },
    "smoke": {"streamlined": ExecutionConfig()},
}
HEADS = [(256, 384), (64, 576), (16, 960), (1024, 384), (256, 576), (64, 960)]  # (positions, width)


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare: a forward pass with its product in latents and conditioning."""
    dtype = torch.bfloat16 if suite == "gpu" else torch.float32
    for name, side, rows in PRIORS[suite]:
        stock = ld3m.load_prior(name, device=device, dtype=dtype)
        draw = torch.Generator().manual_seed(0)
        latents, cotangent = torch.randn(2, rows, stock.latent_channels, side, side, generator=draw).to(device)
        conditioning = None if stock.num_classes is None else stock.null_conditioning(rows).float()

        def run(prior, latents=latents, cotangent=cotangent, conditioning=conditioning):
            projected = None if conditioning is None else prior.project(conditioning)  # once a chain: not timed apart
            return prior.evaluate(latents, 500, projected, wants=(True, conditioning is not None)).vjp(cotangent)[0]

        for label, execution in EXECUTIONS[suite].items():
            if execution.compile and rows > 2:  # it takes minutes for each size
                continue
            frozen = copy.deepcopy(stock).set_execution(execution)
            yield {
                "name": f"denoiser/{name.removeprefix('random:')}/{label}",
                "mode": "fwd+vjp",
                "shape": tuple(latents.shape),
                "dtype": str(dtype).removeprefix("torch."),
                "against": "diffusers",
                "ours": lambda run=run, frozen=frozen: run(frozen),
                "baseline": lambda run=run, stock=stock: run(stock),
                **({"tolerance": 0.1} if suite == "gpu" else {}),  # two roundings of 400 M random weights
            }
    if suite == "gpu":
        yield from _attentions(device)


def _attentions(device: str) -> Iterator[dict]:
    for positions, width in HEADS:
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(4, 20, positions, 1, width, generator=draw).to(device, torch.bfloat16)
        q, k, v, cotangent = (x.requires_grad_() for x in inputs.unbind())

        def run(backend, q=q, k=k, v=v, cotangent=cotangent):
            return torch.autograd.grad(attention(backend)(q, k, v), (q, k, v), cotangent)[0]

        for backend in BACKENDS[1:]:
            if backend == "xformers" and not _has_xformers():
                continue
            yield {
                "name": f"attention/{positions}x{width}/{backend}{' (auto)' if backend == choose(q) else ''}",
                "mode": "fwd+bwd",
                "shape": tuple(q.shape),
                "dtype": "bfloat16",
                "against": "sdpa",
                "ours": lambda run=run, backend=backend: run(backend),
                "baseline": lambda run=run: run("sdpa"),
            }


def _has_xformers() -> bool:
    try:
        attention("xformers")
    except ld3m.errors.BackendError:
        return False
    return True
