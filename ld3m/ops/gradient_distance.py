"""Layer-wise cosine distance of two lists of weight gradients (DC, Zhao et al. 2021), and its derivative in the first.

For rows a and b with p = |a| |b| + ε, the distance is the sum of 1 - ⟨a, b⟩ / p over all rows of all layers, and its
derivative in a is ⟨a, b⟩ |b| / p² · a / |a| - b / p; the part along a counts as 0 where |a| = 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import choose, missing

EPSILON = 1e-6  # added to the product of norms


def gradient_distance_reference(own: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Eager definition that every backend is tested against."""
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(own, target, strict=True)]
    return sum((1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)).sum() for a, b in pairs)


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
    return _checked(own, target, wanted, backend)[0]


def distance_and_direction(
    own: Sequence[Tensor], target: Sequence[Tensor], *, backend: str = "auto"
) -> tuple[Tensor, list[Tensor]]:
    """Return the distance, and its derivative in each tensor of `own`; arguments as of `gradient_distance`."""
    return _checked([a.detach() for a in own], [b.detach() for b in target], True, backend)


def _checked(
    own: Sequence[Tensor], target: Sequence[Tensor], with_direction: bool, backend: str
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
    return _gradient_distance(own, target, with_direction, choose(backend, supports, *own, *target))


@torch.library.custom_op("ld3m::gradient_distance", mutates_args=())
def _gradient_distance(
    own: list[Tensor], target: list[Tensor], with_direction: bool, backend: str
) -> tuple[Tensor, list[Tensor]]:
    if backend == "triton":
        from ld3m.kernels.gradient_distance import gradient_distance_fwd  # Triton may be absent

        return gradient_distance_fwd(own, target, EPSILON, with_direction)
    wide = torch.promote_types(own[0].dtype, torch.float32)  # products of norms overflow float16
    parts = [row_cosines(a.flatten(1).to(wide), b.flatten(1).to(wide)) for a, b in zip(own, target, strict=True)]
    direction = [d.to(a.dtype).view_as(a) for (_, d), a in zip(parts, own, strict=True)] if with_direction else []
    return sum(loss for loss, _ in parts).to(own[0].dtype), direction


def row_cosines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over the rows of (O, K) of 1 - ⟨a, b⟩ / (|a| |b| + ε), and its derivative in a."""
    dot = (a * b).sum(1, keepdim=True)
    length, other = (g.norm(dim=1, keepdim=True) for g in (a, b))
    product = length * other + EPSILON
    unit = torch.where(length > 0, a / length, 0)
    return (1 - dot / product).sum(), (dot * other / product.square()) * unit - b / product


@_gradient_distance.register_fake
def _(own: list[Tensor], target: list[Tensor], with_direction: bool, backend: str):
    return own[0].new_empty(()), [torch.empty_like(a) for a in own] if with_direction else []


@torch.library.custom_op("ld3m::gradient_distance_bwd", mutates_args=())
def _gradient_distance_bwd(grad: Tensor, direction: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_mul(direction, grad))


@_gradient_distance_bwd.register_fake
def _(grad: Tensor, direction: list[Tensor]):
    return [torch.empty_like(d) for d in direction]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1])


def _backward(ctx, grad: Tensor, d_direction: list[Tensor]):  # where the direction leaves this file, own is detached
    grads = _gradient_distance_bwd(grad, list(ctx.saved_tensors))
    return grads, [None] * len(grads), None, None


def _refuse(ctx, *grads):
    raise BackendError("gradient_distance has no second derivative; use gradient_distance_reference there")


_gradient_distance.register_autograd(_backward, setup_context=_setup_context)
_gradient_distance_bwd.register_autograd(_refuse)
