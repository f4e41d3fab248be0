"""The sets that are compared, and the trainings of fresh networks on each of them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import ld3m
from ld3m.config import EvaluateConfig
from ld3m.data import Dataset
from ld3m.data.normalizations import moments
from ld3m.errors import ConfigError
from ld3m.evaluation import baselines
from ld3m.evaluation import scores as robustness
from ld3m.evaluation.baselines import BASELINES
from ld3m.evaluation.divergence import Accuracies, at_halved_rate, halved
from ld3m.evaluation.progress import MOST_CLASSES, Progress
from ld3m.evaluation.protocols import Protocol
from ld3m.evaluation.runner import Job, Training, jobs_of, num_together, num_workers, share_out
from ld3m.evaluation.teacher import Teacher
from ld3m.evaluation.training import NormalizedImages, has_dropout, has_statistics, train_and_test
from ld3m.evaluation.weights import relative
from ld3m.networks import Zoo
from ld3m.networks.one_channel import one_channel
from ld3m.runs.evaluations import readable_name
from ld3m.runs.result import Result
from ld3m.runtime import seeds
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.progress import progress_bar
from ld3m.selection import Choice, render, shown_tiles

logger = logging.getLogger(__name__)


class Comparison:
    """The sets that are compared, and the trainings on them.

    Args:
        config: which networks, baselines and scores, how many repeats, and the seed.
    """

    def __init__(
        self,
        result: Result,
        data: Dataset,
        protocol: Protocol,
        config: EvaluateConfig,
        device: torch.device,
        teacher: Teacher | None = None,
        zoo: Zoo | None = None,
        *,
        judge: Teacher | None = None,
        progress: bool = False,
    ) -> None:
        self.judge, self.weights = judge, relative(result.weights, result.labels)
        self.result, self.data, self.protocol, self.config = result, data, protocol, config
        self.device, self.teacher, self.networks = device, teacher, config.networks or protocol.networks
        self.zoo = zoo or Zoo(self.networks)
        self.seen = _normalized(data, protocol)  # as the networks see it
        self.is_grey = protocol.frames and _is_grey(data.train.images) and _is_grey(result.images)
        self.confusions: dict[Training, Tensor] = {}  # after the last test, of those that this process trained
        self.counts: list[int] = torch.bincount(result.labels, minlength=len(data.class_names)).tolist()
        self.halvings = dict.fromkeys(self.networks, 0)  # of a network's rate, where a training of it diverged
        self.choices: dict[str, list[Choice]] = {}  # of a baseline's images in the training split, by repeat
        self.seeds = {
            name: [self._generator(name, r).initial_seed() for r in range(config.repeats)] for name in self.networks
        }
        self.blueprints = {name: self._blueprint(name) for name in self.networks}  # unknown names are refused here
        for name in self.networks:
            protocol.recipe(name)
        if teacher:
            teacher.require_fit(data)
            teacher.to(device)
        if judge:
            judge.require_fit(data)
        self._choose_baselines(progress)

    def _choose_baselines(self, progress: bool) -> None:
        """Choose the real images, as many of each class as there are distilled ones."""
        if self.config.baselines:
            self.data.train.require_per_class(max(self.counts), "images per class")
        judges = baselines.judges_of(self.data, self.config.seed, self.judge, self.device, progress)
        for name in self.config.baselines:
            draws = self.config.repeats if BASELINES[name].is_drawn_anew else 1
            generators = [self._generator(name, draw) for draw in range(draws)]
            self.seeds[name] = [generator.initial_seed() for generator in generators]
            self.choices[name] = baselines.choose(name, self.counts, generators, judges)

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets, the distilled one first."""
        name = self.result.set_name
        return (f"{name} (set)" if name in self.choices else name, *self.choices)

    @property
    def trainings(self) -> list[Training]:
        """All that are to be done, first those of the rows, then those that are there for the scores alone."""
        own = [self.training(s, n, r) for r in range(self.config.repeats) for s in self.sets for n in self.networks]
        return own + self.extra

    @property
    def extra(self) -> list[Training]:
        """The trainings that are there for the scores alone."""
        facts = self.config.scores, self.protocol.labels, self.sets[0]
        needed = [t for network in self.networks for t in robustness.trainings(*facts, network, self.config.repeats)]
        return [replace(t, halvings=self.halvings[t.network]) for t in needed]

    @property
    def tried(self) -> list[Training]:
        """The trainings, and those at the higher rates before."""
        return [replace(t, halvings=times) for t in self.trainings for times in range(t.halvings + 1)]

    def training(self, name: str, network: str, repeat: int) -> Training:
        """Return the training of a row at the rate that is in force."""
        return Training(name, network, repeat, halvings=self.halvings[network])

    def images_and_labels(self, name: str, repeat: int) -> tuple[Tensor | NormalizedImages, Tensor]:
        """Return a set's images, distilled ones as floats in [0, 1], real ones as bytes, and its labels."""
        if name == robustness.FULL:  # too many to be moved to the device
            return NormalizedImages(self.data.train.images, self.seen, self.device), self.data.train.labels
        if (choice := self.choice(name, repeat)) is None:
            return self.result.images, self.result.labels
        return render(self.data.train, choice), self.data.train.labels[choice.positions[:, 0]]

    def choice(self, name: str, repeat: int) -> Choice | None:
        """Return the choice of real images that a set is; None for other sets."""
        choices = self.choices.get(name)
        return choices[repeat % len(choices)] if choices else None

    def weights_and_tiles(self, name: str) -> tuple[Tensor | None, int]:
        """Return the weights of a set's losses, and the tiles of its images of which one is shown at a time."""
        if name == robustness.FULL:
            return None, 1
        if (choice := self.choice(name, 0)) is None:
            return self.weights, shown_tiles(self.result.config)
        labels = self.data.train.labels[choice.positions[:, 0]]
        return relative(choice.weights, labels), shown_tiles({"by": BASELINES[name].by, "tiles": choice.tiles})

    def run(self, finished: Progress, together: bool, show: bool) -> None:
        """Do the trainings that are not finished, the repeats of a network at once where `together` says so; those of a
        network that diverges again, at half the rate."""
        self._run_left(finished, together, show)
        while names := halved(self.trainings, finished.accuracies):
            for name in sorted(names):
                self.halvings[name] += 1
                rate = at_halved_rate(self.protocol, name, self.halvings[name]).recipe(name).rate
                logger.warning("%s is trained again on every set at half the rate, %g", name, rate)
            self._run_left(finished, together, show)

    def _run_left(self, finished: Progress, together: bool, show: bool) -> None:
        trainings = self.trainings
        batch = self.protocol.batch_size(len(self.result.labels), len(self.counts)) * self.data.resolution**2
        left = [training for training in trainings if training not in finished.accuracies]
        alone = {name for name, one in self.blueprints.items() if has_dropout(one)}  # draws from what threads share
        single = {name for name, one in self.blueprints.items() if has_statistics(one)} - alone
        diverged = halved(trainings, finished.accuracies)

        def train(job: Job, each_epoch: Callable[[], None]) -> Sequence[Accuracies]:
            return [None] * len(job) if job[0].network in diverged else self._train(job, each_epoch)

        with progress_bar(name="evaluate", total=len(trainings), initial=len(trainings) - len(left), show=show) as bar:

            def note(training: Training, accuracies: Accuracies) -> None:
                finished.record(training, accuracies, self.confusions.get(training))
                score = "diverged" if accuracies is None else f"{accuracies[-1]:.1f} %"
                if accuracies is None and training.network not in diverged:
                    self._say_diverged(training)
                    diverged.update(halved([training], finished.accuracies))  # the others would be done again anyway
                bar.set_postfix_str(f"{training.set}, {training.network}: {score}", refresh=False)
                bar.update()

            most = min(self.config.repeats, num_together(batch)) if together else 1
            jobs = jobs_of([t for t in left if t.network not in alone | single], most)
            jobs += jobs_of([t for t in left if t.network in single], 1)
            share_out(jobs, train, note, num_workers(len(jobs), most * batch, self.device), self.confusions)
            share_out(jobs_of([t for t in left if t.network in alone], 1), train, note, 1, self.confusions)

    def _say_diverged(self, training: Training) -> None:
        rate = at_halved_rate(self.protocol, training.network, training.halvings).recipe(training.network).rate
        logger.warning(
            "%s on %s, repeat %d, diverged at rate %g", training.network, training.set, training.repeat, rate
        )

    def key(self) -> str:
        """Return a digest of all that decides an accuracy beside set, network and repeat."""
        facts = [dataclasses.asdict(self.protocol), self.config.seed, self.data.fingerprint, self.device.type]
        facts += [ld3m.__version__, torch.__version__, self.teacher and self.teacher.digest, self.config.full_epochs]
        facts += [self.zoo.describe()] if self.zoo.factories else []
        facts += [self.judge.digest] if self.judge else []
        facts += [tiles] if (tiles := shown_tiles(self.result.config)) > 1 else []
        own = (self.result.images, self.result.labels, *([] if self.weights is None else [self.weights]))
        return fingerprint(own, *facts)

    def name(self) -> str:
        """Return the name that the evaluation is kept under beside others of the same set."""
        own = self.config.repeats, self.config.baselines, self.config.scores
        digest = fingerprint((), self.key(), self.networks, *own)
        kind = self.protocol.name if self.protocol.labels == "hard" else f"{self.protocol.name}-soft"
        return readable_name(kind, self.networks, self.config.seed, self.data.name, digest)

    def _train(self, job: Job, each_epoch: Callable[[], None]) -> Sequence[Accuracies]:
        first = job[0]
        protocol = at_halved_rate(self.protocol, first.network, first.halvings)
        sets = [self.images_and_labels(training.set, training.repeat) for training in job]
        weights, tiles = self.weights_and_tiles(first.set)
        return train_and_test(
            first.network,
            [images for images, _ in sets],
            sets[0][1],
            self.seen,
            robustness.variant(protocol, first.variant, self.config.full_epochs),
            [self._generator(first.network, training.repeat) for training in job],  # not of the set: all start alike
            teacher=self.teacher,
            device=self.device,
            each_epoch=each_epoch,
            weights=weights,
            tiles=tiles,
            build=self._build,
            each_test=lambda repeat, counts: self._keep(job[repeat], counts),
        )

    def _generator(self, purpose: str, repeat: int) -> torch.Generator:
        return seeds.generator(self.config.seed, "evaluation", purpose, repeat)

    def _keep(self, training: Training, counts: Tensor) -> None:
        """Keep the counts of the last test; those of many classes are nearly all zero."""
        self.confusions[training] = counts if len(counts) <= MOST_CLASSES else counts.to_sparse()

    def _build(self, name: str, *, generator: torch.Generator, **size: int) -> torch.nn.Module:
        """Build a network, for grey images with one channel where the protocol has them so."""
        network = self.zoo.build(name, generator=generator, **size)
        return one_channel(network, generator) if self.is_grey and name not in self.zoo.factories else network

    def _blueprint(self, name: str) -> torch.nn.Module:
        size = {"num_classes": len(self.data.class_names), "resolution": self.data.resolution}
        try:
            return self.zoo.check(name, **size)
        except ConfigError as error:
            if name not in self.protocol.networks:
                raise
            raise ConfigError(
                f"protocol {self.protocol.name!r} trains {name}, which these images do not fit: {error}; choose "
                "another resolution, or networks"
            ) from error


def _is_grey(images: Tensor) -> bool:
    """Whether all images have three equal channels."""
    return all(bool((part[:, 1:] == part[:, :1]).all()) for part in images.split(4096))


def _normalized(data: Dataset, protocol: Protocol) -> Dataset:
    """Return the data with the mean and standard deviation by which the protocol normalizes."""
    if protocol.normalization == "data":
        return data
    mean, std = moments(protocol.normalization, "normalization")
    return replace(data, mean=mean, std=std)
