"""Layer-wise cosine distance of two lists of weight gradients (DC, Zhao et al. 2021), and its derivative in the first.

For rows a and b with p = |a| |b| + ε, the distance is the sum of 1 - ⟨a, b⟩ / p over all rows of all layers, and its
derivative in a is ⟨a, b⟩ |b| / p² · a / |a| - b / p; the part along a counts as 0 where |a| = 0.
"""

from collections.abc import Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ld3m.errors import BackendError, InputError
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


def gradient_distance(own: Sequence[Tensor], target: Sequence[Tensor], *, backend: str = "auto") -> Tensor:
    """Return the sum over all layers and output rows of 1 - ⟨a, b⟩ / (|a| |b| + ε).

    Differentiable once, in `own`; its derivative is computed along with the distance.

    Args:
        own: weight gradients, convolutions (O, I, h, w) and linear layers (O, I), all of one dtype and device.
        target: like `own`, detached.
        backend: "auto", "triton" or "eager".

    Returns:
        A scalar of their dtype.
    """
    wanted = torch.is_grad_enabled() and any(a.requires_grad for a in own)
    return _checked(own, target, 1, wanted, backend)[0].squeeze(0)


def distances_and_directions(
    own: Sequence[Tensor], target: Sequence[Tensor], *, backend: str = "auto"
) -> tuple[Tensor, list[Tensor]]:
    """Return the distances of several classes at once, and the derivative of each in its part of `own`.

    Args:
        own, target: weight gradients of C classes, stacked: convolutions (C, O, I, h, w) and linear layers (C, O, I).
        backend: as of `gradient_distance`.

    Returns:
        Distances (C,), and derivatives like `own`.
    """
    num_classes = len(own[0]) if own else 1
    # (C, O, ...) -> (C·O, ...)
    own_rows, target_rows = ([g.detach().flatten(0, 1) for g in gradients] for gradients in (own, target))
    distances, direction = _checked(own_rows, target_rows, num_classes, True, backend)
    return distances, [d.view_as(a) for d, a in zip(direction, own, strict=True)]


def _checked(
    own: Sequence[Tensor], target: Sequence[Tensor], num_classes: int, with_direction: bool, backend: str
) -> tuple[Tensor, list[Tensor]]:
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
        if b.requires_grad and torch.is_grad_enabled():
            raise InputError(f"gradient_distance has no gradient in target, got one that asks for it at {k}; detach it")
    own, target = [a.contiguous() for a in own], [b.contiguous() for b in target]
    return _gradient_distance(own, target, num_classes, with_direction, choose(backend, supports, *own, *target))


@torch.library.custom_op("ld3m::gradient_distance", mutates_args=())
def _gradient_distance(
    own: list[Tensor], target: list[Tensor], num_classes: int, with_direction: bool, backend: str
) -> tuple[Tensor, list[Tensor]]:
    """Return the distances of `num_classes` equal runs of rows of each layer, and the derivative in `own`."""
    if backend == "triton":
        from ld3m.kernels.gradient_distance import gradient_distance_fwd  # Triton may be absent

        losses, direction = gradient_distance_fwd(own, target, EPSILON, with_direction)
    else:
        wide = torch.promote_types(own[0].dtype, torch.float32)  # products of norms overflow float16
        parts = [row_cosines(a.flatten(1).to(wide), b.flatten(1).to(wide)) for a, b in zip(own, target, strict=True)]
        direction = [d.to(a.dtype).view_as(a) for (_, d), a in zip(parts, own, strict=True)] if with_direction else []
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
def _(
    own: list[Tensor], target: list[Tensor], num_classes: int, with_direction: bool, backend: str
) -> tuple[Tensor, list[Tensor]]:
    return own[0].new_empty(num_classes), [torch.empty_like(a) for a in own] if with_direction else []


@torch.library.custom_op("ld3m::gradient_distance_bwd", mutates_args=())
def _gradient_distance_bwd(grad: Tensor, direction: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_mul(direction, grad))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


@_gradient_distance_bwd.register_fake
def _(grad: Tensor, direction: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(d) for d in direction]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*output[1])


def _backward(
    ctx: Any, grad: Tensor, d_direction: list[Tensor]
) -> tuple[Any, ...]:  # where the direction leaves this file, own is detached
    grads = _gradient_distance_bwd(grad.squeeze(0), list(ctx.saved_tensors))
    return grads, [None] * len(grads), None, None, None


def _refuse(ctx: Any, *grads: Any) -> NoReturn:
    raise BackendError("gradient_distance has no second derivative; use gradient_distance_reference there")


_gradient_distance.register_autograd(_backward, setup_context=_setup_context)
_gradient_distance_bwd.register_autograd(_refuse)
