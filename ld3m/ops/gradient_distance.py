"""Layer-wise cosine distance of two lists of weight gradients (DC, Zhao et al. 2021), and its derivative in the first.

For rows a and b with p = |a| |b| + ε, the distance is the sum of 1 - ⟨a, b⟩ / p over all rows of all layers, and its
derivative in a is ⟨a, b⟩ |b| / p² · a / |a| - b / p; the part along a counts as 0 where |a| = 0.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ld3m.errors import InputError
from ld3m.ops.backends import choose, missing

EPSILON = 1e-6  # added to the product of norms


def gradient_distance_reference(own: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Eager definition that every backend is tested against."""
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(own, target, strict=True)]
    terms = ((1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)).sum() for a, b in pairs)
    return cast(Tensor, sum(terms))


def supports(backend: str, *tensors: Tensor) -> str:
    """Say why `backend` cannot take these tensors; "" when it can."""
    if backend == "native":
        return "gradient_distance has no native kernel"
    return missing(backend, tensors[0])


def distances_and_directions(
    own: Sequence[Tensor], target: Sequence[Tensor], *, backend: str = "auto"
) -> tuple[Tensor, list[Tensor]]:
    """Return the distances of several classes at once, and the derivative of each in its part of `own`.

    The distance of a class is the sum over all layers and output rows of 1 - ⟨a, b⟩ / (|a| |b| + ε). Nothing is
    recorded for autograd: `matching.gradient.with_gradients` makes a function of both results.

    Args:
        own, target: weight gradients of C classes, stacked: convolutions (C, O, I, h, w) and linear layers (C, O, I),
            all of one dtype and device.
        backend: "auto", "triton" or "eager".

    Returns:
        Distances (C,), and derivatives like `own`.
    """
    num_classes = len(own[0]) if own else 1
    # (C, O, ...) -> (C·O, ...)
    own_rows, target_rows = ([g.detach().flatten(0, 1) for g in gradients] for gradients in (own, target))
    _check(own_rows, target_rows)
    own_rows, target_rows = [a.contiguous() for a in own_rows], [b.contiguous() for b in target_rows]
    chosen = choose(backend, supports, *own_rows, *target_rows)
    distances, direction = _gradient_distance(own_rows, target_rows, num_classes, chosen)
    return distances, [d.view_as(a) for d, a in zip(direction, own, strict=True)]


def _check(own: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    if not own or len(own) != len(target):
        raise InputError(f"gradient_distance needs two equally long lists of tensors, got {len(own)} and {len(target)}")
    first = own[0]
    for k, (a, b) in enumerate(zip(own, target, strict=True)):
        if a.ndim not in (2, 4) or not a.is_floating_point():
            raise InputError(
                f"gradient_distance needs gradients of convolutions (4-D) and linear layers (2-D), "
                f"got {a.dtype} {tuple(a.shape)} at {k}; leave biases and norms out"
            )
        if a.shape != b.shape or any(t.dtype != first.dtype or t.device != first.device for t in (a, b)):
            raise InputError(
                f"gradient_distance needs pairs of one shape, all {first.dtype} on {first.device}, got at {k} "
                f"{tuple(a.shape)} {a.dtype} on {a.device} and {tuple(b.shape)} {b.dtype} on {b.device}"
            )


@torch.library.custom_op("ld3m::gradient_distance", mutates_args=())
def _gradient_distance(
    own: list[Tensor], target: list[Tensor], num_classes: int, backend: str
) -> tuple[Tensor, list[Tensor]]:
    """Return the distances of `num_classes` equal runs of rows of each layer, and the derivative in `own`."""
    if backend == "triton":
        from ld3m.kernels.gradient_distance import gradient_distance_fwd  # Triton may be absent

        losses, direction = gradient_distance_fwd(own, target, EPSILON)
    else:
        wide = torch.promote_types(own[0].dtype, torch.float32)  # products of norms overflow float16
        parts = [row_cosines(a.flatten(1).to(wide), b.flatten(1).to(wide)) for a, b in zip(own, target, strict=True)]
        direction = [d.to(a.dtype).view_as(a) for (_, d), a in zip(parts, own, strict=True)]
        losses = [loss for loss, _ in parts]
    total = cast(Tensor, sum(loss.view(num_classes, -1).sum(1) for loss in losses))  # of each layer (C·O,) -> (C,)
    return total.to(own[0].dtype), direction


def row_cosines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - ⟨a, b⟩ / (|a| |b| + ε) of each row of (R, K), and its derivative in a."""
    dot = (a * b).sum(1, keepdim=True)
    length, other = (g.norm(dim=1, keepdim=True) for g in (a, b))
    product = length * other + EPSILON
    unit = torch.where(length > 0, a / length, 0)
    return (1 - dot / product).squeeze(1), (dot * other / product.square()) * unit - b / product


@_gradient_distance.register_fake
def _(own: list[Tensor], target: list[Tensor], num_classes: int, backend: str) -> tuple[Tensor, list[Tensor]]:
    return own[0].new_empty(num_classes), [torch.empty_like(a) for a in own]
