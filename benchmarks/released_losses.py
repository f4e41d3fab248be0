"""The matching losses as the released code computes them, with their gradient at the synthetic images.

LD3M's code takes gradients of the real images with a graph, in two halves, and detaches them, GLaD's without; distances
are summed parameter by parameter in Python; the synthetic images are differentiated through the graph of a gradient.
Trajectories are those of TESLA: the student's steps once for the sum of its gradients, and once more, each
differentiated twice.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def dc(network: nn.Module, real: Tensor, synthetic: Tensor, label: Tensor, is_glad: bool) -> Tensor:
    """Return the layer-wise cosine distance of one class, real (R, 3, H, W) and synthetic (S, 3, H, W)."""
    parameters = list(network.parameters())

    def gradient(images: Tensor, has_graph: bool = True) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(network(images), label.expand(len(images)))
        return torch.autograd.grad(loss, parameters, create_graph=has_graph)

    if is_glad:
        target = gradient(real, has_graph=False)
    else:
        target = [torch.zeros_like(p) for p in parameters]
        halves = real.tensor_split(2)
        for half in halves:
            for total, slope in zip(target, gradient(half), strict=True):
                total += slope.detach().clone() / len(halves)
    distance = torch.zeros((), device=real.device)
    for own, wanted in zip(gradient(synthetic), target, strict=True):
        if own.ndim > 1:
            a, b = own.flatten(1), wanted.flatten(1)
            distance = distance + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return distance


def dm(network: nn.Module, real: Tensor, synthetic: Tensor, label: Tensor, is_glad: bool) -> Tensor:
    """Return the squared distance of one class's mean embeddings; the real ones are computed with a graph as well."""
    return (network.embed(real).detach().mean(0) - network.embed(synthetic).mean(0)).square().sum()


LOSSES = {"dc": dc, "dm": dm}


def class_gradient(
    algorithm: str,
    network: nn.Module,
    classes: Iterable[tuple[Tensor, Callable[[Tensor], Tensor], Tensor]],
    images: Tensor,
    ipc: int,
    *,
    is_glad: bool = False,
) -> Tensor:
    """Match one class after the other; return the gradient of the losses' sum at the images.

    Args:
        classes: (label, augmentation of both sides, real images), one at a time.
        images: normalised synthetic images (C · ipc, 3, H, W), class-major.
    """
    images = images.detach().requires_grad_()
    for label, view, real in classes:
        synthetic = images[int(label) * ipc : (int(label) + 1) * ipc]
        # Into the weights as well, as the released code's call goes.
        LOSSES[algorithm](network, view(real), view(synthetic), label, is_glad).backward()
    return images.grad


def trajectory_gradient(
    network: nn.Module,
    start: Sequence[Tensor],
    target: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    student_lr: Tensor,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """Return the gradient of |θ_N − target|² / |start − target|² at the images, without second-order terms.

    Arguments as of `ld3m.matching.mtt_loss`.
    """
    names, lr = [name for name, _ in network.named_parameters()], float(student_lr)
    distance = sum((a - b).square().sum() for a, b in zip(start, target, strict=True))
    weights, total = [w.detach().clone() for w in start], [torch.zeros_like(w) for w in start]

    def slopes(weights: list[Tensor], views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(functional_call(network, dict(zip(names, weights, strict=True)), (views,)), labels)
        return torch.autograd.grad(loss, weights, create_graph=True, retain_graph=True)

    kept = []
    for number, index in enumerate(batches):
        weights = [w.detach().requires_grad_() for w in weights]
        pixels = images.detach()[index].requires_grad_()
        views = augment(pixels, number)
        found = slopes(weights, views, labels[index])
        total = [t + slope.detach() for t, slope in zip(total, found, strict=True)]
        kept.append((index, pixels, views, weights))
        weights = [w - lr * slope.detach() for w, slope in zip(weights, found, strict=True)]
    pull = [2 * (lr**2 * t + lr * (b - a)) for t, a, b in zip(total, start, target, strict=True)]
    gradient = torch.zeros_like(images)
    for index, pixels, views, weights in kept:
        found = slopes(weights, views, labels[index])
        along = sum((p * slope).sum() for p, slope in zip(pull, found, strict=True)) / distance
        gradient.index_add_(0, index, torch.autograd.grad(along, pixels)[0])
    return gradient
