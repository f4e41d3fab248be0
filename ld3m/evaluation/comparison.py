"""`evaluate`: train fresh networks on a distilled set and on real images beside it, and report how well they do."""

import dataclasses
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Unpack

import torch
from torch import Tensor

import ld3m
from ld3m import networks as zoo
from ld3m.config import EvaluateConfig, build
from ld3m.config.keywords import EvaluateKeywords, keywords_of
from ld3m.data import Dataset
from ld3m.data.coreset import kmeans_images, random_images
from ld3m.errors import ConfigError
from ld3m.evaluation import scores as robustness
from ld3m.evaluation.divergence import Accuracies, at_halved_rate, halved
from ld3m.evaluation.inputs import open_inputs
from ld3m.evaluation.progress import Progress
from ld3m.evaluation.protocols import Protocol, find
from ld3m.evaluation.runner import Job, Training, jobs_of, num_together, num_workers, share_out
from ld3m.evaluation.teacher import Teacher, load_teacher
from ld3m.evaluation.training import NormalizedImages, has_dropout, train_and_test
from ld3m.runs.evaluations import readable_name
from ld3m.runs.report import Report, save_report, summary
from ld3m.runs.result import Result
from ld3m.runtime import processes, seeds
from ld3m.runtime.devices import resolve_device
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.progress import progress_bar
from ld3m.runtime.storage import owning, require_writable

logger = logging.getLogger(__name__)
# name: choice of real images, and whether every repeat draws its own
BASELINES = {"random": (random_images, True), "kmeans": (kmeans_images, False)}


@keywords_of(EvaluateConfig, but=("protocol", "teacher"))
def evaluate(
    result_or_folder: Result | str | Path | tuple[Tensor, Tensor],
    data: object,
    *,
    protocol: str | Protocol = EvaluateConfig.protocol,
    teacher: Teacher | str | Path | None = None,
    progress: bool = True,
    image_range: str = "unit",
    **settings: Unpack[EvaluateKeywords],
) -> Report:
    """Measure how well networks do on real test images after training on a distilled set.

    A repeat of a network starts from the same weights and augmentation on every set. A training that diverges is no
    result: all trainings of its network are repeated at half the rate, up to three times, and what diverges still has
    None for an accuracy. With a folder, `evaluation.json` (`evaluation-soft.json` for soft labels) is written there at
    the end, an earlier one is kept in `evaluations/`, and an interrupted evaluation goes on with the trainings that are
    left.

    Args:
        result_or_folder: a Result, the output folder of a distillation, or images (N, 3, H, H) in [0, 1] with labels.
        data: what `ld3m.data.load` reads: the data the set was distilled from.
        protocol: "glad-hard", "quick", "rded", or a Protocol.
        teacher: of soft labels: a Teacher, or the file of one.
        progress: show a bar.
        networks: names, perhaps with a width suffix; by default the protocol's.
        repeats: trainings of each network on each set, each from fresh weights.
        epochs: length of a training, at least 2; by default the protocol's.
        baselines: real images to compare with, as many of each class: "random" (drawn anew for every repeat) and
            "kmeans" (nearest to the k-means centres of the class).
        labels: "hard", or "soft": a teacher's answers to every batch as it was augmented; by default the protocol's.
            Soft labels need "random" among the baselines.
        scores: of the distilled set, "lrs" and "ars", see `ld3m.evaluation.scores`; they cost extra trainings.
        full_epochs: length, at least 2, of the one training of each network on all real images that "lrs" needs.
        dtype: "float32", or "bfloat16" for layers under autocast: convolutions and matrix products, and between them
            what torch has no rule for. Up to twice as fast on a CPU with AVX-512 BF16. By default the protocol's.
        together: train the repeats of a network at once, on a CPU in float32 alone; by default on a GPU, since it is
            slower on a CPU. Networks with dropout are always trained one by one.
        device: of the trainings; by default a GPU where there is one.
        strict, bit_range: of reading the data, as of `ld3m.data.load`.
        image_range: of floating-point images: "unit" for [0, 1], "signed" for [-1, 1], "bytes" for 0…255, "normalized"
            by the mean and standard deviation of the data.

    Raises:
        ConfigError: an unknown protocol, network, baseline, score or dtype, too few repeats or epochs, or a teacher
            that is missing or of other classes or images.
        DataError: other classes than the distilled set's, no test split, or fewer real images than distilled ones.
        CheckpointError: the folder is not there or holds no distilled set.
    """
    folder = Path(result_or_folder) if isinstance(result_or_folder, str | Path) else None
    with owning(folder) if folder and folder.is_dir() and processes.is_main() else nullcontext():
        return _evaluate(
            result_or_folder, data, protocol, teacher, progress=progress, image_range=image_range, settings=settings
        )


def _evaluate(
    result_or_folder: object,
    data: object,
    protocol: str | Protocol,
    teacher: Teacher | str | Path | None,
    *,
    progress: bool,
    image_range: str,
    settings: Mapping[str, object],
) -> Report:
    config = build(settings, EvaluateConfig())
    protocol = find(protocol).with_epochs(config.epochs).with_labels(config.labels).with_dtype(config.dtype)
    for name in config.baselines:
        if name not in BASELINES:
            raise ConfigError(f"baselines are of {', '.join(BASELINES)}; got {name!r}")
    robustness.check(config.scores, config.baselines)
    names = tuple(dict.fromkeys(protocol.networks if config.networks is None else config.networks))
    if not names:
        raise ConfigError(f"networks names at least one; leave it out for {', '.join(protocol.networks)}")
    config = replace(config, networks=names)
    teacher = _teacher(teacher, protocol, config.baselines)
    device = resolve_device(config.device)
    together = _together(config.together, protocol, device)
    result, dataset, folder = open_inputs(
        result_or_folder, data, image_range, strict=config.strict, bit_range=config.bit_range
    )
    if folder:
        require_writable(folder, "evaluate(ld3m.load(folder), ...) keeps the report in memory")
    comparison = Comparison(result, dataset, protocol, config, device, teacher)
    processes.require_same({"what is evaluated": comparison.name()})

    start = time.perf_counter()
    finished = Progress(folder if processes.is_main() else None, comparison.key())
    finished.accuracies = processes.from_main(lambda: finished.accuracies, "read what is finished")
    comparison.run(finished, together, progress)
    report = comparison.report(finished.accuracies, time.perf_counter() - start)
    if folder and processes.is_main():
        from ld3m.runs.page import publish  # which shows evaluations

        save_report(report, folder)
        finished.forget(comparison.tried)
        publish(folder)
    return report


def _teacher(given: Teacher | str | Path | None, protocol: Protocol, baselines: Sequence[str]) -> Teacher | None:
    if protocol.labels == "hard":
        if given is not None:
            raise ConfigError("a teacher has no use for hard labels; leave it out, or ask for soft labels")
        return None
    if given is None:
        raise ConfigError("soft labels need a teacher; train one with `ld3m teacher`, or ask for hard labels")
    if "random" not in baselines:
        raise ConfigError(
            "soft labels stand beside random real images with the same teacher; keep 'random' among the baselines"
        )
    return given if isinstance(given, Teacher) else load_teacher(given)


def _together(given: bool | None, protocol: Protocol, device: torch.device) -> bool:
    """Return whether the repeats of a network are trained at once."""
    if given and device.type == "cpu" and protocol.dtype != "float32":  # vmap's convolutions have no autocast there
        raise ConfigError("repeats trained together on a CPU stay in float32; leave out together, or dtype")
    return device.type != "cpu" if given is None else given


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
    ) -> None:
        self.result, self.data, self.protocol, self.config = result, data, protocol, config
        self.device, self.teacher, self.networks = device, teacher, config.networks or protocol.networks
        self.counts: list[int] = torch.bincount(result.labels, minlength=len(data.class_names)).tolist()
        self.halvings = dict.fromkeys(self.networks, 0)  # of a network's rate, where a training of it diverged
        self.positions: dict[str, list[Tensor]] = {}  # of a baseline's images in the training split, by repeat
        self.seeds = {
            name: [self._generator(name, r).initial_seed() for r in range(config.repeats)] for name in self.networks
        }
        for name in self.networks:  # a name that nobody knows is better refused before the first training
            self._blueprint(name)
            protocol.recipe(name)
        if teacher:
            teacher.require_fit(data)
            teacher.to(device)
        self._choose_baselines()

    def _choose_baselines(self) -> None:
        """Choose the real images, as many of each class as there are distilled ones."""
        if self.config.baselines:
            self.data.train.require_per_class(max(self.counts), "images per class")
        for name in self.config.baselines:
            choose, is_drawn_anew = BASELINES[name]
            draws = self.config.repeats if is_drawn_anew else 1
            generators = [self._generator(name, draw) for draw in range(draws)]
            self.seeds[name] = [generator.initial_seed() for generator in generators]
            self.positions[name] = [choose(self.data.train, self.counts, generator) for generator in generators]

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets, the distilled one first."""
        return (str(self.result.config.get("space", "distilled")), *self.positions)

    @property
    def trainings(self) -> list[Training]:
        """All that are to be done, first those of the rows, then those that are there for the scores alone."""
        own = [self._training(s, n, r) for r in range(self.config.repeats) for s in self.sets for n in self.networks]
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

    def _training(self, name: str, network: str, repeat: int) -> Training:
        return Training(name, network, repeat, halvings=self.halvings[network])

    def images_and_labels(self, name: str, repeat: int) -> tuple[Tensor | NormalizedImages, Tensor]:
        """Return a set's images, distilled ones as floats in [0, 1], real ones as bytes, and its labels."""
        if name == robustness.FULL:  # too many to be moved to the device
            return NormalizedImages(self.data.train.images, self.data, self.device), self.data.train.labels
        if name not in self.positions:
            return self.result.images, self.result.labels
        positions = self.positions[name][repeat % len(self.positions[name])]
        return self.data.train.images[positions], self.data.train.labels[positions]

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
        alone = {name for name in self.networks if has_dropout(self._blueprint(name))}  # draws from what threads share
        diverged = halved(trainings, finished.accuracies)

        def train(job: Job, each_epoch: Callable[[], None]) -> Sequence[Accuracies]:
            return [None] * len(job) if job[0].network in diverged else self._train(job, each_epoch)

        with progress_bar(name="evaluate", total=len(trainings), initial=len(trainings) - len(left), show=show) as bar:

            def note(training: Training, accuracies: Accuracies) -> None:
                finished.record(training, accuracies)
                score = "diverged" if accuracies is None else f"{accuracies[-1]:.1f} %"
                if accuracies is None and training.network not in diverged:
                    self._say_diverged(training)
                    diverged.update(halved([training], finished.accuracies))  # the others would be done again anyway
                bar.set_postfix_str(f"{training.set}, {training.network}: {score}", refresh=False)
                bar.update()

            most = min(self.config.repeats, num_together(batch)) if together else 1
            jobs = jobs_of([t for t in left if t.network not in alone], most)
            share_out(jobs, train, note, num_workers(len(jobs), most * batch, self.device))
            share_out(jobs_of([t for t in left if t.network in alone], 1), train, note, 1)

    def _say_diverged(self, training: Training) -> None:
        rate = at_halved_rate(self.protocol, training.network, training.halvings).recipe(training.network).rate
        logger.warning(
            "%s on %s, repeat %d, diverged at rate %g", training.network, training.set, training.repeat, rate
        )

    def key(self) -> str:
        """Return a digest of all that decides an accuracy beside set, network and repeat."""
        facts = [dataclasses.asdict(self.protocol), self.config.seed, self.data.fingerprint, self.device.type]
        facts += [ld3m.__version__, torch.__version__, self.teacher and self.teacher.digest, self.config.full_epochs]
        return fingerprint((self.result.images, self.result.labels), *facts)

    def name(self) -> str:
        """Return the name that the evaluation is kept under beside others of the same set."""
        own = self.config.repeats, self.config.baselines, self.config.scores
        digest = fingerprint((), self.key(), self.networks, *own)
        kind = self.protocol.name if self.protocol.labels == "hard" else f"{self.protocol.name}-soft"
        return readable_name(kind, self.networks, self.config.seed, self.data.name, digest)

    def report(self, accuracies: Mapping[Training, Accuracies], seconds: float) -> Report:
        """Gather the rows and all that a reader needs to judge or repeat them."""
        rows = [self._row(accuracies, name, network) for name in self.sets for network in self.networks]
        about = {
            "key": self.name(),
            "data": self._describe_data(),
            "seed": self.config.seed,
            "seeds": self.seeds,
            "storage_bytes": self._storage(),
            "versions": {"ld3m": ld3m.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
        }
        about |= {"teacher": {"name": self.teacher.name, **self.teacher.about}} if self.teacher else {}
        about |= {"score_trainings": self._score_trainings(accuracies)} if self.config.scores else {}
        lost = [t for t in self.trainings if accuracies[t] is None]
        named = ("set", "network", "repeat", "variant")
        about |= {"diverged": [{name: getattr(t, name) for name in named} for t in lost]} if lost else {}
        self._warn_of_short_training(accuracies)
        used = {name: at_halved_rate(self.protocol, name, self.halvings[name]).recipe(name) for name in self.networks}
        protocol = dataclasses.asdict(replace(self.protocol, networks=self.networks, recipes=used))
        if lowered := {name: self.protocol.recipe(name).rate for name, times in self.halvings.items() if times}:
            protocol["lowered"] = lowered
        protocol = json.loads(json.dumps(protocol))  # tuples become lists: equal after to_json and from_json
        return Report(rows, protocol, self.result.config.get("network"), about)

    def _row(self, accuracies: Mapping[Training, Accuracies], name: str, network: str) -> dict[str, Any]:
        own = [self._training(name, network, repeat) for repeat in range(self.config.repeats)]
        outcomes = [accuracies[training] for training in own]
        row = {"set": name, "network": network} | summary(
            [None if outcome is None else outcome[-1] for outcome in outcomes]
        )
        if self.teacher:
            row |= {"labels": "soft", "teacher": self.teacher.name}
        if self.protocol.tested > 1:
            row["best_epoch"] = summary([None if outcome is None else max(outcome) for outcome in outcomes])
        for score in self.config.scores if name == self.sets[0] else ():
            values = [
                robustness.score(score, lambda t: _last(accuracies[t]), self.protocol.labels, training)
                for training in own
            ]
            row[score] = summary([None if math.isnan(value) else value for value in values], "values")
        return row

    def _warn_of_short_training(self, accuracies: Mapping[Training, Accuracies]) -> None:
        """Say where all real images teach no more than a few: rates made for a few images can be too low for them."""
        for full in (training for training in self.extra if training.set == robustness.FULL):
            repeats = [self._training("random", full.network, repeat) for repeat in range(self.config.repeats)]
            all_images, few = _last(accuracies[full]), fmean(_last(accuracies[training]) for training in repeats)
            if all_images <= few:
                logger.warning(
                    "lrs of %s says nothing: all real images give %.1f %%, random ones of the set's size %.1f %%; "
                    "raise full_epochs, which is %d", full.network, all_images, few, self.config.full_epochs,
                )  # fmt: skip

    def _score_trainings(self, accuracies: Mapping[Training, Accuracies]) -> list[dict[str, Any]]:
        groups: dict[tuple[str, str, str], list[float | None]] = {}
        for t in self.extra:
            outcome = accuracies[t]
            groups.setdefault((t.set, t.network, t.variant), []).append(None if outcome is None else outcome[-1])
        return [dict(zip(("set", "network", "variant"), key, strict=True)) | summary(v) for key, v in groups.items()]

    def _train(self, job: Job, each_epoch: Callable[[], None]) -> Sequence[Accuracies]:
        first = job[0]
        protocol = at_halved_rate(self.protocol, first.network, first.halvings)
        sets = [self.images_and_labels(training.set, training.repeat) for training in job]
        return train_and_test(
            first.network,
            [images for images, _ in sets],
            sets[0][1],
            self.data,
            robustness.variant(protocol, first.variant, self.config.full_epochs),
            [self._generator(first.network, training.repeat) for training in job],  # not of the set: all start alike
            teacher=self.teacher,
            device=self.device,
            each_epoch=each_epoch,
        )

    def _generator(self, purpose: str, repeat: int) -> torch.Generator:
        return seeds.generator(self.config.seed, "evaluation", purpose, repeat)

    def _blueprint(self, name: str) -> torch.nn.Module:
        return zoo.blueprint(name, num_classes=len(self.data.class_names), resolution=self.data.resolution)

    def _describe_data(self) -> dict[str, object]:
        fewest, most = min(self.counts), max(self.counts)
        return {
            "name": self.data.name,
            "classes": len(self.data.class_names),
            "resolution": self.data.resolution,
            "images_per_class": most if fewest == most else f"{fewest} to {most}",
            "train_images": len(self.data.train),
            "test_images": len(self.data.test or ()),
            "mean": self.data.mean.tolist(),
            "std": self.data.std.tolist(),
        }

    def _storage(self) -> dict[str, dict[str, int]]:
        """Return the bytes of each set: what was distilled in its dtype, real images as uint8."""
        result = self.result
        parts = {"images": result.images, "labels": result.labels, **result.parameters}
        storage = {self.sets[0]: {part: tensor.nbytes for part, tensor in parts.items()}}
        for name in self.positions:
            storage[name] = {"images": result.images.numel(), "labels": result.labels.nbytes}
        return storage


def _last(outcome: Accuracies) -> float:
    """Return the accuracy after the last epoch, NaN where the training diverged."""
    return math.nan if outcome is None else outcome[-1]
