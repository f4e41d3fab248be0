"""Trainings of the evaluation: fresh networks, a small set, a protocol, and the test accuracy at the end.

Repeats of one network may be trained at once, as one network with a leading axis R in every weight (torch.func.vmap).
Each still draws its weights, order and augmentation from a generator of its own, so that it ends, but for rounding,
where it would alone.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ld3m import networks
from ld3m.data import Dataset
from ld3m.data.images import to_unit
from ld3m.evaluation.augmentation import Mix, augmentation
from ld3m.evaluation.protocols import SCHEDULES, Protocol, Recipe, ema_decay
from ld3m.evaluation.teacher import Teacher
from ld3m.runtime import seeds

_CHUNK_PIXELS = 100 * 32**2  # of one test batch on a CPU, where larger ones leave the cache
_CHUNK_PIXELS_DEVICE = 2500 * 32**2


class NormalizedImages:
    """Images (N, 3, H, H), floats in [0, 1] or bytes, normalised batch by batch: whole, as floats and for each repeat,
    they would take too much memory. They stay where they lie; batches go to the device."""

    def __init__(self, images: Tensor, data: Dataset, device: torch.device | str) -> None:
        self.images, self.device = images, device
        self.data = replace(data, mean=data.mean.to(device), std=data.std.to(device))  # moved once, not for every batch

    def __getitem__(self, positions: Tensor) -> Tensor:
        return self.data.normalize(to_unit(self.images[positions.to(self.images.device)].to(self.device)))


def train_and_test(
    name: str,
    images: Sequence[Tensor | NormalizedImages],
    labels: Tensor,
    data: Dataset,
    protocol: Protocol,
    generators: Sequence[torch.Generator],
    *,
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
    each_epoch: Callable[[], object] = lambda: None,
    weights: Tensor | None = None,
    tiles: int = 1,
    build: Callable[..., nn.Module] = networks.build,
    each_test: Callable[[int, Tensor], object] = lambda repeat, confusion: None,
) -> list[list[float] | None]:
    """Train fresh networks, one for each repeat, and return their accuracies on the test split, in percent.

    Args:
        name: network that the protocol has a recipe for; with dropout or batch norm, one repeat at a time.
        images: for each repeat (N, 3, H, H), floats in [0, 1] or bytes, which are moved to the device, or
            NormalizedImages.
        labels: (N,) int64, of every repeat.
        data: gives test split, mean and standard deviation.
        generators: for each repeat, on the CPU; weights, order of images and augmentation are drawn from it.
        teacher: on the device; for soft labels.
        each_epoch: called before every epoch; what it raises ends the training.
        weights: (N,) of the images' losses, as of `ld3m.evaluation.weights.relative`; None counts all alike.
        tiles: per side of an image, of which a batch shows one that is drawn, enlarged; 1 shows whole images.
        build: makes a network of that name.
        each_test: called with the repeat and the counts (classes, classes) of test images by class and answer.

    Returns:
        For each repeat the accuracies after the epochs that the protocol tests, the last one last; None where the
        training diverged, which is no result.
    """
    size: dict[str, Any] = {"num_classes": len(data.class_names), "resolution": data.resolution}
    built = [build(name, **size, generator=generator).to(device) for generator in generators]
    if not any(isinstance(module, nn.GroupNorm) for module in built[0].modules()):
        for network in built:
            # A fifth faster on a CPU; with group norms it is slower.
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ready = {  # repeats may share their images
        key: part if isinstance(part, NormalizedImages) else NormalizedImages(part.to(device), data, device)
        for key, part in {id(part): part for part in images}.items()
    }
    outcomes: list[list[float]] = [[] for _ in generators]

    def test(averaged: Sequence[nn.Module]) -> None:
        for repeat, (outcome, network) in enumerate(zip(outcomes, averaged, strict=True)):
            counts = confusion(network, data)
            each_test(repeat, counts)
            outcome.append(share_correct(counts))

    answers = partial(teacher.logits, data=data) if teacher and protocol.labels == "soft" else None
    is_drawing = has_dropout(built[0])
    scope = seeds.scoped_global_rng(generators[0].initial_seed(), "dropout") if is_drawing else nullcontext()
    with scope, torch.enable_grad():
        losses = train(
            built, [ready[id(part)] for part in images], labels.to(device), protocol, protocol.recipe(name), generators,
            answers=answers, each_epoch=each_epoch, test=test,
            weights=None if weights is None else weights.to(device), tiles=tiles,
        )  # fmt: skip
    return [outcome if is_whole else None for outcome, is_whole in zip(outcomes, losses.isfinite(), strict=True)]


def train(
    built: Sequence[nn.Module],
    images: Sequence[Tensor | NormalizedImages],
    labels: Tensor,
    protocol: Protocol,
    recipe: Recipe,
    generators: Sequence[torch.Generator],
    *,
    answers: Callable[[Tensor], Tensor] | None = None,
    each_epoch: Callable[[], object] = lambda: None,
    test: Callable[[Sequence[nn.Module]], None] = lambda averaged: None,
    weights: Tensor | None = None,
    tiles: int = 1,
) -> Tensor:
    """Train networks of one kind, each on normalised images of its own; leave the averages of their weights in them.

    It ends early where every repeat has diverged.

    Args:
        images: for each repeat, normalised or NormalizedImages.
        answers: of the teacher to images (B, 3, H, H), logits (B, classes); None trains on the labels.
        test: called after each epoch that the protocol tests, with copies that have the averages.
        weights, tiles: as of `train_and_test`.

    Returns:
        Their last losses, (R,); NaN where losses and weights did not stay finite from first to last.
    """
    model, copies = _Repeats(built), copy.deepcopy(list(built))
    autocast = partial(torch.autocast, labels.device.type, torch.bfloat16, enabled=protocol.dtype == "bfloat16")
    augment, rate_in = augmentation(protocol.augmentation, tiles), SCHEDULES[protocol.schedule]
    optimizer = _optimizer(model.parameters, [p.ndim > 1 for p in built[0].parameters()], protocol)
    size = protocol.batch_size(len(labels), int(labels.max()) + 1)
    tested = protocol.tested_epochs(recipe.epochs)
    is_finite = torch.ones(len(built), dtype=torch.bool, device=labels.device)
    for epoch in range(recipe.epochs):
        each_epoch()
        for group in optimizer.param_groups:
            group["lr"] = rate_in(recipe.rate, epoch, recipe.epochs)
        order = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
        for batch in order.to(labels.device).split(size, 1):  # (R, B)
            drawn = [
                augment(part[at], generator) for part, at, generator in zip(images, batch, generators, strict=True)
            ]
            seen, mixes = torch.stack([augmented for augmented, _ in drawn]), [mix for _, mix in drawn]
            wanted = labels[batch] if answers is None else answers(seen.flatten(0, 1)).unflatten(0, batch.shape)
            optimizer.zero_grad()
            with autocast():
                logits = model(seen)
            logits = logits.to(seen.dtype)  # labels, temperature and loss are not of the lower precision
            shares = [None] * len(batch) if weights is None else weights[batch]
            parts = zip(logits, wanted, mixes, shares, strict=True)
            losses = torch.stack([_loss(*one, protocol, share) for *one, share in parts])
            is_finite &= losses.detach().isfinite()
            losses.sum().backward()
            model.clip_gradients(recipe.max_gradient_norm)
            optimizer.step()
        if not is_finite.any():
            break
        model.average(ema_decay(epoch + 1, recipe.ema_decay))
        if epoch in tested:
            model.hand_out(copies)
            test(copies)
    model.hand_out(built)
    return losses.detach().masked_fill(~(is_finite & model.are_finite()), torch.nan)


class _Repeats:
    """Networks of one kind as one: images (R, B, 3, H, H) -> logits (R, B, classes), and the averages of their weights.

    A single network is called as it is.
    """

    def __init__(self, built: Sequence[nn.Module]) -> None:
        self._is_alone = len(built) == 1
        if self._is_alone:
            network = networks.fused(built[0].train())
            self._forward = lambda images: network(images[0])[None]
            self.parameters: list[Tensor] = list(network.parameters())
            self._state = _state_of(built[0])
        else:
            skeleton = copy.deepcopy(built[0]).train().to("meta")
            stacked, _ = stack_module_state(list(built))
            call = torch.vmap(lambda weights, images: functional_call(skeleton, weights, (images,)))
            self._forward = lambda images: call(stacked, images)
            self._state = self.parameters = list(stacked.values())  # each (R, …)
        self._averages = [torch.zeros_like(part) for part in self._state]

    def __call__(self, images: Tensor) -> Tensor:
        return self._forward(images)

    @torch.no_grad()
    def clip_gradients(self, limit: float | None) -> None:
        """Scale the gradients of each repeat so that their norm is at most `limit`."""
        if limit is None:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        for grads in [gradients] if self._is_alone else zip(*(g.unbind() for g in gradients), strict=True):
            norm = torch.nn.utils.get_total_norm(grads)
            for grad in grads:
                grad.mul_((limit / norm).clamp(max=1))

    def are_finite(self) -> Tensor:
        """Return whether the weights of each repeat are finite, bool (R,)."""
        rows = [(p[None] if self._is_alone else p).detach() for p in self.parameters]
        return torch.stack([row.reshape(len(row), -1).isfinite().all(1) for row in rows]).all(0)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        torch._foreach_lerp_(self._averages, self._state, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def hand_out(self, averaged: Sequence[nn.Module]) -> None:
        """Write the averages into networks, one for each repeat."""
        for repeat, network in enumerate(averaged):
            values = self._averages if self._is_alone else [average[repeat] for average in self._averages]
            torch._foreach_copy_(_state_of(network), values)  # pyright: ignore[reportPrivateImportUsage]


def _state_of(network: nn.Module) -> list[Tensor]:
    """Return what is averaged: the parameters, and the running statistics of batch norms."""
    return [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]


def _optimizer(parameters: Sequence[Tensor], is_matrix: Sequence[bool], protocol: Protocol) -> torch.optim.Optimizer:
    """Return the protocol's optimiser; its rate is set before every epoch.

    Args:
        is_matrix: for each parameter, whether it has more than one axis in a network of its own.
    """
    decay = protocol.weight_decay
    if protocol.optimiser == "sgd":
        return torch.optim.SGD(parameters, 0.0, protocol.momentum, weight_decay=decay)
    groups = [
        {"params": [p for p, kind in zip(parameters, is_matrix, strict=True) if kind is wanted], "weight_decay": value}
        for wanted, value in ((True, decay), (False, 0.0))
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], 0.0, betas=(0.9, 0.999))


def _loss(logits: Tensor, wanted: Tensor, mix: Mix | None, protocol: Protocol, weights: Tensor | None = None) -> Tensor:
    """Return the loss of one repeat: logits (B, classes) against labels (B,), or against a teacher's logits.

    With weights (B,) it is the mean of weight times loss; an image that is mixed has the mixed weight of its parts.
    """
    if wanted.is_floating_point():
        heat = protocol.temperature
        logs, aims = (logits / heat).log_softmax(1), (wanted / heat).softmax(1)
        if weights is None:
            return F.kl_div(logs, aims, reduction="batchmean")
        if mix is not None:
            weights = mix.kept * weights + (1 - mix.kept) * weights[mix.partners.to(weights.device)]
        return (weights * F.kl_div(logs, aims, reduction="none").sum(1)).mean()
    loss = _cross_entropy(logits, wanted, weights)
    if mix is None:
        return loss
    partners = mix.partners.to(wanted.device)
    others = None if weights is None else weights[partners]
    return mix.kept * loss + (1 - mix.kept) * _cross_entropy(logits, wanted[partners], others)


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()


def accuracy(network: nn.Module, data: Dataset) -> float:
    """Return a network's accuracy on the test split, in percent."""
    return share_correct(confusion(network, data))


def share_correct(counts: Tensor) -> float:
    """Return the percentage of a confusion's images that lie on its diagonal."""
    return 100 * int(counts.diagonal().sum()) / int(counts.sum())


@torch.inference_mode()
def confusion(network: nn.Module, data: Dataset) -> Tensor:
    """Return how many test images of each class (rows) a network takes for each class (columns), int64."""
    model = networks.fused(network.eval())
    device = next(network.parameters()).device
    budget = _CHUNK_PIXELS if device.type == "cpu" else _CHUNK_PIXELS_DEVICE
    classes, test = len(data.class_names), data.test
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    assert test is not None  # open_inputs refuses data without
    for indices in torch.arange(len(test)).split(max(1, budget // data.resolution**2)):
        images = data.normalize(test.batch(indices, device))
        answers = model(images).argmax(1).cpu()
        counts += torch.bincount(test.labels[indices] * classes + answers, minlength=classes * classes)
    return counts.view(classes, classes)


def has_dropout(network: nn.Module) -> bool:
    """Whether training draws from torch's global generator, which all threads share; the user's own networks may."""
    return getattr(network, "draws_globally", False) or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()
    )


def has_statistics(network: nn.Module) -> bool:
    """Whether training changes more than parameters, as batch norms do: repeats are then trained one by one."""
    return any(True for _ in network.buffers())
