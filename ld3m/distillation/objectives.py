"""One iteration of matching: render, compare with real images, back-propagate into the space's parameters."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ld3m import networks
from ld3m.config import ResolvedDistillConfig
from ld3m.data import Dataset
from ld3m.data.images import ImageSet, to_unit
from ld3m.distillation.experts import Experts
from ld3m.matching import LOSSES, dsa, mtt_loss
from ld3m.matching.mtt import STUDENT_BATCH, Augment
from ld3m.memory.plan import Plan
from ld3m.runtime import processes, seeds
from ld3m.runtime.devices import moved
from ld3m.runtime.signals import HeldBack
from ld3m.spaces import Space, only_rows


class Objective(Protocol):
    """The loss of an iteration and its gradient, as the loop calls it.

    `parameters` are what the objective itself learns beside the space's, as (name, tensor, learning rate).
    """

    parameters: list[tuple[str, Tensor, float]]

    @property
    def groups(self) -> list[Tensor]:
        """The rows of the space that are rendered together."""
        ...

    def backward(self, iteration: int) -> Tensor:
        """Add this iteration's gradient to the parameters.

        Returns:
            The loss (), of the rows of this process: on the device, which is not waited for.
        """
        ...

    def apply_plan(self, plan: Plan) -> None:
        """Hold from now on what the plan says; losses and gradients stay, up to rounding."""


class ClassMatching:
    """Matching class by class, of gradients (DC) or features (DM), a few classes at a time.

    The losses are sums over classes, so that the classes in flight are rendered with their activations, matched in one
    pass, back-propagated and freed before the next ones are met.

    Args:
        labels: the classes whose images the space has, in their order; all when None.
        room: bytes of the device beyond the plan's, where the real images stay if they fit.
    """

    def __init__(
        self,
        space: Space,
        dataset: Dataset,
        config: ResolvedDistillConfig,
        *,
        classes_in_flight: int,
        real_chunk: int | None = None,
        device: torch.device,
        labels: Tensor | None = None,
        room: int = 0,
    ) -> None:
        self.space, self.dataset, self.config, self.device = space, dataset, config, device
        self._train = held_on(device, dataset.train, room)
        self._labels = torch.arange(dataset.train.num_classes) if labels is None else labels
        self.parameters: list[tuple[str, Tensor, float]] = []
        of_classes = LOSSES[config.algorithm].of_classes
        assert of_classes is not None  # else there are no classes to match
        self._loss = of_classes
        self._indices = [dataset.train.of_class(label) for label in range(dataset.train.num_classes)]
        # One object for all iterations, into which fresh weights go: compiled code is tied to it.
        self._network = self._fresh(0).to(device).train()
        self._weights = self._network.state_dict()
        self._reader = ThreadPoolExecutor(1, "real images and networks")
        self._drawn: tuple[int, Future[torch.nn.Module]] | None = None  # the network of the next iteration
        self._stream(classes_in_flight, real_chunk)

    def apply_plan(self, plan: Plan) -> None:
        self._train = self.dataset.train  # what room there was is needed
        self._stream(plan.classes_in_flight, plan.real_chunk)
        self.space.apply_plan(plan)

    def _stream(self, classes_in_flight: int, real_chunk: int | None) -> None:
        real_batches = [min(self.config.real_batch, len(self._indices[label])) for label in self._labels.tolist()]
        self._groups, self._real_chunk = groups_of(real_batches, classes_in_flight), real_chunk

    @property
    def groups(self) -> list[Tensor]:
        return [rows_of(group, self.config.ipc) for group in self._groups]

    def backward(self, iteration: int) -> Tensor:
        network, total = self._network, torch.zeros((), dtype=torch.float64, device=self.device)
        pending = self._gather(iteration, 0)
        self._renew(iteration)
        augmentations = self._augmentations(iteration)
        for number, (group, rows) in enumerate(zip(self._groups, self.groups, strict=True)):
            labels = self._labels[group]
            with only_rows(self.space, rows) as few:
                rendered = self.space.render(few, (iteration,))
                synthetic = self.dataset.normalize(rendered).unflatten(0, (len(labels), self.config.ipc))
                reals, pending = pending.result(), self._gather(iteration, number + 1)
                views = [augmentations[label] for label in labels.tolist()]
                normalized = (self._normalized(images) for images in reals)
                real = [view(images) for view, images in zip(views, normalized, strict=True)]  # C of (R, 3, H, W)
                real = torch.stack(real) if len({len(images) for images in real}) == 1 else real
                synthetic = torch.stack([view(images) for view, images in zip(views, synthetic, strict=True)])
                labels = labels.to(self.device, non_blocking=True)
                losses = self._loss(network, real, synthetic, labels, self.config, self._real_chunk)
                del real  # as large as the activations of many images, and not needed on the way back
                losses.sum().backward()
            total += losses.detach().sum()
        return total

    def _fresh(self, iteration: int) -> torch.nn.Module:
        return _network(self.config, self.dataset, seeds.generator(self.config.seed, "network", iteration))

    @torch.no_grad()
    def _renew(self, iteration: int) -> None:
        """Give the network its weights of an iteration, and begin to draw the next ones."""
        at, fresh = self._drawn or (None, None)
        network = fresh.result() if fresh is not None and at == iteration else self._fresh(iteration)
        for name, tensor in network.state_dict().items():
            self._weights[name].copy_(tensor, non_blocking=True)
        self._drawn = iteration + 1, self._reader.submit(self._fresh, iteration + 1)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.dataset.normalize(to_unit(images.to(self.device, non_blocking=True)))

    def _gather(self, iteration: int, number: int) -> "Future[list[Tensor]]":
        """Begin to gather the real images of a group, one tensor of bytes for each class, before they are needed."""
        labels = self._labels[self._groups[number]].tolist() if number < len(self._groups) else []
        return self._reader.submit(lambda: [self._real(iteration, label) for label in labels])

    def _real(self, iteration: int, label: int) -> Tensor:
        generator = seeds.generator(self.config.seed, "real", iteration, label)
        index = self._indices[label]
        picks = index[torch.randperm(len(index), generator=generator)[: self.config.real_batch]]
        images = self._train.at(picks)
        return images.pin_memory() if self.device.type == "cuda" and images.is_cpu else images

    def _augmentations(self, iteration: int) -> dict[int, Callable[[Tensor], Tensor]]:
        """Return what is done to the images (B, 3, H, W) of each class, by one draw for both sides (siamese)."""
        labels = self._labels.tolist()
        if not self.config.augment:
            return dict.fromkeys(labels, lambda images: images)
        generators = (seeds.generator(self.config.seed, "augment", iteration, label) for label in labels)
        draws = [dsa.draw(generator, 1, self.dataset.resolution, shared=True) for generator in generators]
        moved = dsa.draws_on(draws, self.device)
        return {label: partial(dsa.apply, draw=draw) for label, draw in zip(labels, moved, strict=True)}


class TrajectoryMatching:
    """Trajectory matching (MTT): needs all images at once, and learns the student's learning rate as well.

    Args:
        counts: images that each process renders; the student is trained on all of them in every one.
    """

    STUDENT_LR_LR = 1e-6  # README of the released code; SGD with the same momentum as the latents

    def __init__(
        self,
        space: Space,
        dataset: Dataset,
        config: ResolvedDistillConfig,
        *,
        experts: Experts,
        device: torch.device,
        counts: Sequence[int] | None = None,
    ) -> None:
        self.space, self.dataset, self.config, self.experts, self.device = space, dataset, config, experts, device
        student_lr = torch.tensor(float(config.student_lr), device=device, requires_grad=True)
        self.parameters = [("student_lr", student_lr, self.STUDENT_LR_LR)]
        self._labels = torch.arange(dataset.train.num_classes, device=device).repeat_interleave(config.ipc)
        self._counts = [len(self._labels)] if counts is None else list(counts)
        self._network = _network(config, dataset, seeds.generator(config.seed, "student")).to(device).train()

    @property
    def groups(self) -> list[Tensor]:
        return [torch.arange(self._counts[processes.rank()])]

    def apply_plan(self, plan: Plan) -> None:
        self.space.apply_plan(plan)

    def backward(self, iteration: int) -> Tensor:
        [rows] = self.groups
        with HeldBack(len(self._counts) > 1) as signals:
            own, error = signals.attempt(lambda: self.space.render(rows, (iteration,)))
            _, error = processes.exchange([], error)  # nobody waits for images that never come
            if error is not None:
                raise error
            assert own is not None
            rendered = processes.gather_images(own, self._counts)
        start, target, batches, augment = self._draws(iteration)
        loss = mtt_loss(
            self._network,
            start,
            target,
            self.dataset.normalize(rendered),
            self._labels,
            self.parameters[0][1],
            batches,
            unroll=self.config.unroll,
            augment=augment,
            compile=self.config.compile,
        )
        loss.backward()
        return loss.detach()

    def _draws(self, iteration: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], Augment | None]:
        """Draw an expert's weights at two epochs, the student's batches and its augmentation."""
        config = self.config
        generator = seeds.generator(config.seed, "trajectory", iteration)
        expert = int(torch.randint(len(self.experts), (), generator=generator))
        epoch = int(torch.randint(config.max_start_epoch, (), generator=generator))
        ends = self.experts.pair(expert, epoch, config.expert_epochs)
        start, target = (moved(end, self.device) for end in ends)
        batches = list(self._batches(generator))
        return start, target, moved(batches, self.device), self._augment(iteration, map(len, batches))

    def _augment(self, iteration: int, sizes: Iterable[int]) -> Augment | None:
        """Return what is done to the images of each of the student's batches."""
        if not self.config.augment:
            return None
        generators = (seeds.generator(self.config.seed, "augment", iteration, step) for step in itertools.count())
        draws = [dsa.draw(draw, size, self.dataset.resolution) for draw, size in zip(generators, sizes, strict=False)]
        draws = dsa.draws_on(draws, self.device)
        return lambda images, step: dsa.apply(images, draws[step])

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the student's batches: permutations of all images, at most `STUDENT_BATCH` at once."""
        num_images, drawn = len(self._labels), []
        for _ in range(self.config.student_steps):
            if not drawn:
                drawn = list(torch.randperm(num_images, generator=generator).split(STUDENT_BATCH))
            yield drawn.pop()


def held_on(device: torch.device, images: ImageSet, room: int) -> ImageSet:
    """Return the images on a device that is not the CPU, where they fit into so many bytes; else as they are."""
    if device.type == "cpu" or images.images.nbytes > room:
        return images
    return replace(images, images=images.images.to(device))


def groups_of(real_batches: Sequence[int], most: int) -> list[Tensor]:
    """Cut classes into groups (C,) of at most `most`; those of about as many real images stand together."""
    return list(torch.tensor(real_batches).argsort(stable=True).split(most))


def rows_of(labels: Tensor, ipc: int) -> Tensor:
    """Return the rows of the images of these classes, class-major."""
    return (labels[:, None] * ipc + torch.arange(ipc)).flatten()  # (C,) -> (C · ipc,)


def _network(config: ResolvedDistillConfig, dataset: Dataset, generator: torch.Generator) -> torch.nn.Module:
    return networks.build(
        config.network,
        num_classes=dataset.train.num_classes,
        resolution=dataset.resolution,
        width=config.width,
        generator=generator,
    )
