"""Gradient matching (DC, Zhao et al. 2021): synthetic images should give the network the gradients of real ones."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ld3m.errors import InputError
from ld3m.matching.gradient import Weights, directional, gradient, replayed, rng_state, weights_of, with_gradients
from ld3m.matching.shapes import check_chunk, check_classes
from ld3m.ops.gradient_distance import distance_and_direction, row_cosines


def dc_loss(
    network: nn.Module,
    real: Tensor,
    synthetic: Tensor,
    labels: Tensor,
    *,
    metric: str = "layerwise-cosine",
    real_chunk: int | None = None,
) -> Tensor:
    """Return the distance between real and synthetic gradients of the mean cross-entropy, one per class, not summed.

    The gradient is computed along with the loss, a class at a time. The network runs in the mode it is in; its weights
    get no gradient and its buffers stay. Active dropout draws from torch's global generator, with one set of masks for
    the real and one for the synthetic images of a class.

    Args:
        real: (C, R, 3, H, W), R real images of each of C classes, augmented by the caller; gets no gradient.
        synthetic: (C, S, 3, H, W), differentiable (once).
        labels: (C,) int64, the class of each row, in any order.
        metric: "layerwise-cosine", the sum of 1 - cosine over the output rows of all convolution and linear weights;
            "mse", the squared distance, or "cosine", one 1 - cosine, both over all parameters.
        real_chunk: real images of a class whose activations are held at once; all when None. Not for a network that
            sees a batch as a whole (batch norm in train mode, active dropout).

    Returns:
        (C,) losses.
    """
    check_classes("dc_loss", network, real, synthetic)
    check_chunk("dc_loss", network, real_chunk)
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if labels.shape != real.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"dc_loss needs labels int64 of shape ({len(real)},), one for each row of real, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    weights, differentiate = weights_of(network), torch.is_grad_enabled() and synthetic.requires_grad
    losses, gradients = [], []
    for real_images, images, label in zip(real, synthetic.detach(), labels.to(real.device), strict=True):
        names = matched(weights, metric)
        target = real_gradient(network, weights, real_images.detach(), label, names, real_chunk)
        loss, d_images = match(network, weights, target, images, label, metric=metric, differentiate=differentiate)
        losses.append(loss)
        gradients.append(d_images)
    loss = torch.stack(losses)  # C x () -> (C,)
    return with_gradients(loss, [synthetic], [torch.stack(gradients)]) if differentiate else loss


def real_gradient(
    network: nn.Module, weights: Weights, images: Tensor, label: Tensor, names: list[str], chunk: int | None = None
) -> Weights:
    """Return the gradient of one class's real images: the mean of its chunks' gradients, weighted by their sizes."""
    total: Weights = {}
    for part in images.split(chunk or len(images)):
        found = gradient(network, weights, part, label.expand(len(part)), names)
        if len(part) == len(images):
            return found
        share = len(part) / len(images)
        for name, slope in found.items():
            total[name] = total[name].add_(slope, alpha=share) if name in total else slope * share
    return total


def match(
    network: nn.Module,
    weights: Weights,
    target: Weights,
    images: Tensor,
    label: Tensor,
    *,
    metric: str = "layerwise-cosine",
    differentiate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return one class's distance to the gradients `target`, and the derivative in its synthetic images or None."""
    labels = label.expand(len(images))
    state = rng_state(network, images)
    own = gradient(network, weights, images, labels, target)
    loss, direction = METRICS[metric](list(own.values()), list(target.values()))
    if not differentiate:
        return loss, None
    with replayed(state):
        return loss, directional(network, weights, dict(zip(own, direction, strict=True)), images, labels)[1]


def matched(weights: Weights, metric: str) -> list[str]:
    """Return the names of the weights that a metric compares."""
    return [name for name, weight in weights.items() if metric != "layerwise-cosine" or weight.ndim in (2, 4)]


def _cosine(own: list[Tensor], target: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    rows = [torch.cat([g.flatten() for g in gradients])[None] for gradients in (own, target)]
    loss, d_row = row_cosines(*rows)
    parts = d_row[0].split([g.numel() for g in own])
    return loss, [d.view_as(g) for d, g in zip(parts, own, strict=True)]


def _mse(own: list[Tensor], target: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    differences = [a - b for a, b in zip(own, target, strict=True)]
    return sum(d.square().sum() for d in differences), [2 * d for d in differences]


METRICS: dict[str, Callable[[list[Tensor], list[Tensor]], tuple[Tensor, list[Tensor]]]] = {
    "layerwise-cosine": distance_and_direction,
    "mse": _mse,
    "cosine": _cosine,
}
"""Distance of two lists of gradients, and its derivative in the first."""
