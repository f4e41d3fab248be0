"""Gradient matching (DC, Zhao et al. 2021): synthetic images should give the network the gradients of real ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ld3m.config import ResolvedDistillConfig
from ld3m.errors import InputError
from ld3m.matching.checks import check_chunk, check_classes, clear_network_errors
from ld3m.matching.compiled import compiled
from ld3m.matching.gradient import (
    Weights,
    directional,
    gradient,
    over_classes,
    replayed,
    rng_state,
    sees_whole_batches,
    weights_of,
    with_gradients,
)
from ld3m.matching.loss import Line, Loss, LossCosts, Work, count_line
from ld3m.ops.gradient_distance import distances_and_directions, row_cosines
from ld3m.runtime.footprint import peak_bytes, size_of

# Of the largest map of a network. ConvNet of width 128, 64 images of 32 px: 198 ms at once, 148 ms by 16 (8 MiB).
_CACHED_BYTES = 8 << 20


def dc_loss(
    network: nn.Module,
    real: Tensor | Sequence[Tensor],
    synthetic: Tensor,
    labels: Tensor,
    *,
    metric: str = "layerwise-cosine",
    compile: bool = False,
    real_chunk: int | None = None,
) -> Tensor:
    """Return the distance between real and synthetic gradients of the mean cross-entropy, one per class, not summed.

    The gradient is computed along with the loss. The network runs in the mode it is in; its weights get no gradient and
    its buffers stay. Active dropout draws from torch's global generator, with one set of masks for the real and one for
    the synthetic images of a class.

    Args:
        real: (C, R, 3, H, W), R real images of each of C classes, augmented by the caller; gets no gradient. Where the
            classes have unequally many, C tensors (R, 3, H, W).
        synthetic: (C, S, 3, H, W), differentiable (once).
        labels: (C,) int64, the class of each row, in any order.
        metric: "layerwise-cosine", the sum of 1 - cosine over the output rows of all convolution and linear weights;
            "mse", the squared distance, or "cosine", one 1 - cosine, both over all parameters.
        compile: run the synthetic side through torch.compile, once for each network object and shape.
        real_chunk: real images of a class whose activations are held at once; when None all, or on a CPU as many as
            its cache holds. Not for a network that sees a batch as a whole (batch norm in train mode, active dropout).

    Returns:
        (C,) losses.
    """
    check_classes("dc_loss", network, real, synthetic)
    check_chunk("dc_loss", network, real_chunk)
    _check(labels, len(real), metric)
    if len(labels) > 1 and sees_whole_batches(network):
        parts = zip(real, synthetic.split(1), labels.split(1), strict=True)
        options = {"metric": metric, "compile": compile, "real_chunk": real_chunk}
        return torch.cat([dc_loss(network, images[None], *part, **options) for images, *part in parts])
    weights, labels = weights_of(network), labels.to(synthetic.device, non_blocking=True)
    names = matched(weights, metric)
    chunk = real_chunk or _images_in_cache(network, weights, real[0])
    with clear_network_errors("dc_loss", network, real[0], labels):
        targets = [
            real_gradient(network, weights, images.detach(), label, names, chunk)
            for images, label in zip(real, labels, strict=True)
        ]
    target = {name: torch.stack([gradients.pop(name) for gradients in targets]) for name in names}
    differentiate = torch.is_grad_enabled() and synthetic.requires_grad
    call = compiled(match) if compile else match
    losses, d_images = call(network, weights, target, synthetic.detach(), labels, metric, differentiate)
    return losses if d_images is None else with_gradients(losses, [synthetic], [d_images])


def _check(labels: Tensor, num_classes: int, metric: str) -> None:
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if labels.shape != (num_classes,) or labels.dtype != torch.int64:
        raise InputError(
            f"dc_loss needs labels int64 of shape ({num_classes},), one for each row of real, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )


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


def _images_in_cache(network: nn.Module, weights: Weights, real: Tensor) -> int | None:
    """Return how many real images to take at once on a CPU, so that the next operation finds a map in its cache."""
    if real.device.type != "cpu" or sees_whole_batches(network):
        return None
    channels = next((weight.shape[0] for weight in weights.values() if weight.ndim == 4), 1)  # of the largest map
    return max(4, _CACHED_BYTES // (channels * real[0, 0].nbytes))


def match(
    network: nn.Module,
    weights: Weights,
    target: Weights,
    images: Tensor,
    labels: Tensor,
    metric: str = "layerwise-cosine",
    differentiate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return the distances (C,) to the gradients `target`, and their derivatives in the synthetic images or None.

    Args:
        target: real gradients by name, stacked over classes (C, ...).
        images: (C, S, 3, H, W).
        labels: (C,).
    """

    def own_gradient(images: Tensor, label: Tensor) -> Weights:
        return gradient(network, weights, images, label.expand(len(images)), target)

    def pull(images: Tensor, label: Tensor, direction: Weights) -> Tensor:
        return directional(network, weights, direction, images, label.expand(len(images)))[1]

    state = rng_state(network, images)
    own = over_classes(own_gradient, images, labels)
    losses, direction = METRICS[metric](list(own.values()), list(target.values()))
    if not differentiate:
        return losses, None
    with replayed(state):
        return losses, over_classes(pull, images, labels, dict(zip(own, direction, strict=True)))


def matched(weights: Weights, metric: str) -> list[str]:
    """Return the names of the weights that a metric compares."""
    return [name for name, weight in weights.items() if metric != "layerwise-cosine" or weight.ndim in (2, 4)]


def _cosine(own: list[Tensor], target: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    rows = [torch.cat([g.flatten(1) for g in gradients], 1) for gradients in (own, target)]  # (C, all parameters)
    losses, d_rows = row_cosines(*rows)
    parts = d_rows.split([g[0].numel() for g in own], 1)
    return losses, [d.view_as(g) for d, g in zip(parts, own, strict=True)]


def _mse(own: list[Tensor], target: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    differences = [a - b for a, b in zip(own, target, strict=True)]
    losses = cast(Tensor, sum(d.square().flatten(1).sum(1) for d in differences))
    return losses, [2 * d for d in differences]


METRICS: dict[str, Callable[[list[Tensor], list[Tensor]], tuple[Tensor, list[Tensor]]]] = {
    "layerwise-cosine": distances_and_directions,
    "mse": _mse,
    "cosine": _cosine,
}
"""Distances (C,) of two lists of gradients, stacked over classes (C, ...), and their derivatives in the first."""


def of_classes(
    network: nn.Module,
    real: Tensor | Sequence[Tensor],
    synthetic: Tensor,
    labels: Tensor,
    config: ResolvedDistillConfig,
    real_chunk: int | None,
) -> Tensor:
    """Return the losses with the settings of a distillation."""
    return dc_loss(
        network, real, synthetic, labels, metric=config.metric, compile=config.compile, real_chunk=real_chunk
    )


def costs(network: nn.Module, work: Work) -> LossCosts:
    """Count both sides, and the gradient of a class that waits until all classes in flight are matched."""
    weights, images = weights_of(network), partial(work.images, network)
    label, names = torch.zeros((), dtype=torch.int64, device=images(1).device), matched(weights, "layerwise-cosine")
    real = count_line(lambda x: real_gradient(network, weights, x, label, names), images)

    def match_all(x: Tensor) -> object:  # (C, S, 3, H, W)
        target = {name: weights[name].expand(len(x), *weights[name].shape) for name in names}
        return match(network, weights, target, x, label.expand(len(x)))

    if sees_whole_batches(network):  # class by class
        synthetic = Line(count_line(lambda x: match_all(x[None]), images)(work.ipc))
    else:
        one = count_line(match_all, lambda count: images(count, 1))
        # by a second image of each of two classes
        more = peak_bytes(partial(match_all, images(2, 2)), images(1).device) - one(2)
        synthetic = replace(one, each=one.each + (work.ipc - 1) * more / 2)
    return LossCosts(real, synthetic, size_of(network))


LOSS = Loss(of_classes, costs)
