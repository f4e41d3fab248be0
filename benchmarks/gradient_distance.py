"""The layer-wise cosine distance and its derivative, for the ConvNets of gradient matching, against eager autograd."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ld3m.ops.gradient_distance import distances_and_directions, gradient_distance_reference

WIDTH, CLASSES = 128, 10
DEPTHS = {"cpu": {3: 32}, "gpu": {3: 32, 5: 128, 6: 256}, "smoke": {3: 32}}  # depth: resolution


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare: distance and derivative for one class."""
    draw = torch.Generator().manual_seed(0)
    for depth, resolution in DEPTHS[suite].items():
        width = 8 if suite == "smoke" else WIDTH
        shapes = [(width, 3, 3, 3), *[(width, width, 3, 3)] * (depth - 1)]
        shapes.append((CLASSES, width * (resolution >> depth) ** 2))
        own, target = ([torch.randn(shape, generator=draw).to(device) for shape in shapes] for _ in range(2))
        yield {
            "name": f"gradient_distance/convnet-{depth}",
            "mode": "fwd+bwd",
            "shape": tuple(sum(count) for count in zip(*((len(a), a.numel()) for a in own), strict=True)),
            "dtype": "float32",
            "against": "eager",
            "ours": lambda own=own, target=target: of_one_class(own, target),
            "baseline": lambda own=own, target=target: baseline(own, target),
            "bytes": 3 * sum(a.numel() * a.element_size() for a in own),
        }


def of_one_class(own: list[Tensor], target: list[Tensor]) -> list[Tensor]:
    return [d[0] for d in distances_and_directions([a[None] for a in own], [b[None] for b in target])[1]]


def baseline(own: list[Tensor], target: list[Tensor]) -> list[Tensor]:
    own = [a.detach().requires_grad_() for a in own]
    return list(torch.autograd.grad(gradient_distance_reference(own, target), own))
