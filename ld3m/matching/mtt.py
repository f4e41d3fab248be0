"""Trajectory matching (MTT, Cazenavette et al. 2022): a student on synthetic images should end where an expert did."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ld3m.errors import InputError
from ld3m.matching.checks import check_dtype, clear_network_errors
from ld3m.matching.compiled import compiled
from ld3m.matching.gradient import (
    RngState,
    Weights,
    directional,
    gradient,
    replayed,
    rng_state,
    weights_of,
    with_gradients,
)
from ld3m.matching.loss import Line, Loss, LossCosts, Work, count_line
from ld3m.runtime.footprint import size_of

STUDENT_BATCH = 256  # images of a step of the student, at most

Augment = Callable[[Tensor, int], Tensor]


class _Step(NamedTuple):
    """A student step, as the way back needs it."""

    weights: Weights  # before the step
    labels: Tensor
    picks: Tensor
    pixels: Tensor  # the images of the batch
    views: Tensor  # ... augmented, with the graph of the augmentation alone
    rng: RngState | None


def mtt_loss(
    network: nn.Module,
    start: Sequence[Tensor],
    target: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    student_lr: float | Tensor,
    batches: Sequence[Tensor],
    *,
    unroll: str = "exact",
    augment: Augment | None = None,
    compile: bool = False,
) -> Tensor:
    """Return |θ_N - target|² / |start - target|² after N steps of SGD θ ← θ - student_lr ∇ℓ(θ, images[batch]).

    The gradient is computed along with the loss, in the memory of one student step and N + 1 sets of weights. The
    network gives the architecture and runs in the mode it is in; its own weights are not used and its buffers stay.
    Active dropout draws from torch's global generator; the way back sees the masks of the way there.

    Args:
        start, target: an expert's parameters at two epochs, in the order of `network.parameters()`.
        images: (M, 3, H, W), flat, differentiable (once).
        labels: (M,) int64.
        student_lr: a float, or a 0-d tensor, differentiable (once).
        batches: N int64 tensors of indices into images, one for each student step.
        unroll: "exact", the gradient of the loss; "tesla", the one of TESLA (Cui et al. 2023), GLaD and LD3M, which
            takes the student's weights for constants.
        augment: called once a step as augment(images[batch], step); the gradient goes through it.
        compile: run a student step, and the way back through it, through torch.compile, once for each network object
            and size of a batch.

    Returns:
        The loss, a scalar.
    """
    weights, goal = _trajectory_ends(network, start, target)
    _check(network, images, labels, batches, unroll)
    device, dtype = images.device, images.dtype
    student_lr = torch.as_tensor(student_lr, dtype=dtype, device=device)
    lr, labels = student_lr.detach(), labels.to(device, non_blocking=True)
    differentiate = torch.is_grad_enabled() and (images.requires_grad or student_lr.requires_grad)

    forth, back = (compiled(gradient), compiled(directional)) if compile else (gradient, directional)
    distance = _squared_distance(weights, goal)
    steps: list[_Step] = []
    for number, index in enumerate(batches):
        index = index.to(device, non_blocking=True)
        pixels = images.detach()[index].requires_grad_(differentiate)
        views = _augmented(pixels, number, augment)
        step = _Step(weights, labels[index], index, pixels, views, rng_state(network, images))
        with clear_network_errors("mtt_loss", network, views, step.labels):
            slopes = forth(network, weights, views.detach(), step.labels)
        weights = {name: weight - lr * slopes[name] for name, weight in weights.items()}
        if differentiate:
            steps.append(step)
    loss = _squared_distance(weights, goal) / distance
    if not differentiate:
        return loss
    pull = {name: 2 * (weight - goal[name]) / distance for name, weight in weights.items()}
    found = _way_back(partial(back, network), steps, pull, images, lr, unroll == "exact")
    return with_gradients(loss, [images, student_lr], found)


def _augmented(pixels: Tensor, number: int, augment: Augment | None) -> Tensor:
    views = pixels if augment is None else augment(pixels, number)
    if views.shape != pixels.shape:
        raise InputError(f"augment must keep the shape {tuple(pixels.shape)}, got {tuple(views.shape)}")
    return views


def _way_back(
    back: Callable[..., tuple[Tensor, Tensor, Weights | None]],
    steps: list[_Step],
    pull: Weights,
    images: Tensor,
    lr: Tensor,
    exact: bool,
) -> list[Tensor]:
    """Return the derivatives in the images and in the learning rate; `pull` is that in the last weights."""
    d_images, d_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for step in reversed(steps):
        with replayed(step.rng):
            slope, d_views, d_weights = back(step.weights, pull, step.views.detach(), step.labels, in_weights=exact)
        (d_pixels,) = torch.autograd.grad(step.views, step.pixels, -lr * d_views)
        d_images.index_add_(0, step.picks, d_pixels)
        d_lr -= slope
        if d_weights is not None:  # exact
            pull = {name: p - lr * d_weights[name] for name, p in pull.items()}
    return [d_images, d_lr]


def _squared_distance(a: Weights, b: Weights) -> Tensor:
    return cast(Tensor, sum((a[name] - b[name]).square().sum() for name in a))


def _trajectory_ends(network: nn.Module, start: Sequence[Tensor], target: Sequence[Tensor]) -> tuple[Weights, Weights]:
    """Return both as weights of the network, with its dtype and device."""
    own, ends = weights_of(network), []
    for argument, tensors in (("start", start), ("target", target)):
        if len(tensors) != len(own):
            raise InputError(
                f"mtt_loss needs {argument} as the network's {len(own)} parameters in order, got {len(tensors)} tensors"
            )
        for (name, weight), tensor in zip(own.items(), tensors, strict=True):
            if tensor.shape != weight.shape:
                raise InputError(
                    f"mtt_loss needs {argument} like the network's parameters, but {name} is {tuple(weight.shape)} and "
                    f"got {tuple(tensor.shape)}; are the experts of another network, width or resolution?"
                )
        ends.append({name: t.detach().to(own[name], non_blocking=True) for name, t in zip(own, tensors, strict=True)})
    return ends[0], ends[1]


def _check(network: nn.Module, images: Tensor, labels: Tensor, batches: Sequence[Tensor], unroll: str) -> None:
    if unroll not in ("exact", "tesla"):
        raise InputError(f"unroll must be 'exact' or 'tesla', got {unroll!r}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(f"mtt_loss needs images as (M, 3, H, W), none of them 0, got {tuple(images.shape)}")
    check_dtype("mtt_loss", network, "images", images)
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"mtt_loss needs labels int64 of shape ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if not len(batches):
        raise InputError(
            "mtt_loss needs at least one batch: batches holds one index tensor for each student step, got 0"
        )
    for number, index in enumerate(batches):
        if index.ndim != 1 or index.dtype != torch.int64 or not len(index):
            raise InputError(
                f"mtt_loss needs batches of 1-d int64 indices into images, got {index.dtype} {tuple(index.shape)} "
                f"as batch {number}"
            )
        if index.device.type == "cpu" and not 0 <= int(index.min()) <= int(index.max()) < len(images):
            raise InputError(
                f"batch {number} has indices {int(index.min())} to {int(index.max())}, but images holds {len(images)}"
            )


def costs(network: nn.Module, work: Work) -> LossCosts:
    """Count the student's weights of every step, the expert's at two, and of every batch the images, augmented, with a
    graph; and one step's way back."""
    weights, images = weights_of(network), partial(work.images, network)
    label = torch.zeros((), dtype=torch.int64, device=images(1).device)
    batch = min(STUDENT_BATCH, work.num_classes * work.ipc)
    step = count_line(
        lambda x: directional(network, weights, weights, x, label.expand(len(x)), in_weights=True), images
    )
    waiting = (work.student_steps + 5) * size_of(network) + work.student_steps * batch * 4 * images(1).nbytes
    return LossCosts(Line(), Line(waiting + step(batch)))


LOSS = Loss(None, costs)
