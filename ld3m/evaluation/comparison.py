"""`evaluate`: train fresh networks on a distilled set and on real images beside it, and report how well they do."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import ld3m
from ld3m import networks as zoo
from ld3m import seeds
from ld3m.data import Dataset
from ld3m.devices import usable
from ld3m.errors import ConfigError
from ld3m.evaluation.baselines import BASELINES
from ld3m.evaluation.progress import Progress
from ld3m.evaluation.protocols import Protocol, find
from ld3m.evaluation.report import Report, mean_std, save_report
from ld3m.evaluation.runner import Training, num_workers, run
from ld3m.evaluation.subject import open_subject
from ld3m.evaluation.training import has_dropout, train_and_test
from ld3m.result import Result


def evaluate(
    result_or_folder: Result | str | Path | tuple[Tensor, Tensor],
    data: object,
    *,
    protocol: str | Protocol = "glad-hard",
    networks: Sequence[str] | None = None,
    repeats: int = 5,
    epochs: int | None = None,
    baselines: Sequence[str] = ("random", "kmeans"),
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Measure how well networks do on real test images after training on a distilled set.

    A repeat of a network starts from the same weights and augmentation on every set. With a folder, `evaluation.json`
    is written there at the end, and an interrupted evaluation goes on with the trainings that are left.

    Args:
        result_or_folder: a Result, the output folder of a distillation, or images (N, 3, H, H) in [0, 1] with labels.
        data: what `ld3m.data.load` reads: the data the set was distilled from.
        protocol: "glad-hard", "quick", or a Protocol.
        networks: names, perhaps with a width suffix; by default the protocol's.
        repeats: trainings of each network on each set, each from fresh weights.
        epochs: length of a training; by default the protocol's.
        baselines: real images to compare with, as many of each class: "random" (drawn anew for every repeat) and
            "kmeans" (nearest to the k-means centres of the class).
        device: of the trainings; by default a GPU where there is one.
        progress: show a bar.

    Raises:
        ConfigError: an unknown protocol, network or baseline, or too few repeats or epochs.
        DataError: other classes than the distilled set's, no test split, or fewer real images than distilled ones.
        CheckpointError: the folder is not there or holds no distilled set.
    """
    protocol = find(protocol).with_epochs(epochs)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ConfigError(f"repeats is a whole number, at least 1; got {repeats!r}")
    for name in baselines:
        if name not in BASELINES:
            raise ConfigError(f"baselines are of {', '.join(BASELINES)}; got {name!r}")
    names = tuple(dict.fromkeys(protocol.networks if networks is None else networks))
    if not names:
        raise ConfigError(f"networks names at least one; leave it out for {', '.join(protocol.networks)}")
    device = usable(device)
    result, data, folder = open_subject(result_or_folder, data)
    comparison = Comparison(result, data, protocol, names, repeats, seed, device)
    comparison.add_baselines(baselines)

    start = time.perf_counter()
    finished = Progress(folder, comparison.key())
    comparison.run(finished, progress)
    report = comparison.report(finished.accuracies, time.perf_counter() - start)
    if folder:
        save_report(report, folder)
        finished.forget()
    return report


class Comparison:
    """The sets that are compared, and the trainings on them."""

    def __init__(
        self,
        result: Result,
        data: Dataset,
        protocol: Protocol,
        networks: tuple[str, ...],
        repeats: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.result, self.data, self.protocol, self.networks = result, data, protocol, networks
        self.repeats, self.seed, self.device = repeats, seed, device
        self.counts = torch.bincount(result.labels, minlength=len(data.class_names)).tolist()
        self.positions: dict[str, list[Tensor]] = {}  # of a baseline's images in the training split, by repeat
        self.seeds = {name: [self._generator(name, r).initial_seed() for r in range(repeats)] for name in networks}
        for name in networks:  # a name that nobody knows is better refused before the first training
            self._blueprint(name)
            protocol.recipe(name)

    def add_baselines(self, names: Sequence[str]) -> None:
        """Choose the real images, as many of each class as there are distilled ones."""
        if names:
            self.data.train.require_per_class(max(self.counts), "images per class")
        for name in names:
            choose, is_drawn_anew = BASELINES[name]
            draws = self.repeats if is_drawn_anew else 1
            generators = [self._generator(name, draw) for draw in range(draws)]
            self.seeds[name] = [generator.initial_seed() for generator in generators]
            self.positions[name] = [choose(self.data.train, self.counts, generator) for generator in generators]

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets, the distilled one first."""
        return (str(self.result.config.get("space", "distilled")), *self.positions)

    def images_and_labels(self, name: str, repeat: int) -> tuple[Tensor, Tensor]:
        """Return the images of a set, in [0, 1], and their labels, as a repeat trains on them."""
        if name not in self.positions:
            return self.result.images, self.result.labels
        positions = self.positions[name][repeat % len(self.positions[name])]
        return self.data.train.batch(positions), self.data.train.labels[positions]

    def run(self, finished: Progress, show: bool) -> None:
        """Do the trainings that are not finished."""
        trainings = [Training(s, n, r) for r in range(self.repeats) for s in self.sets for n in self.networks]
        batch = min(self.protocol.batch, len(self.result.labels))
        workers = num_workers(len(trainings), batch * self.data.resolution**2, self.device)
        left = [training for training in trainings if training not in finished.accuracies]
        alone = {name for name in self.networks if has_dropout(self._blueprint(name))}  # draws from what threads share
        with tqdm(total=len(trainings), initial=len(trainings) - len(left), desc="evaluate", disable=not show) as bar:

            def note(training: Training, accuracy: float) -> None:
                finished.record(training, accuracy)
                bar.set_postfix_str(f"{training.set}, {training.network}: {accuracy:.1f} %", refresh=False)
                bar.update()

            run([t for t in left if t.network not in alone], self._train, note, workers)
            run([t for t in left if t.network in alone], self._train, note, 1)

    def key(self) -> str:
        """Return a digest of all that decides an accuracy beside set, network and repeat."""
        data = self.data
        facts = [dataclasses.asdict(self.protocol), self.seed, data.name, len(data.train), len(data.test)]
        facts += [data.mean.tolist(), data.std.tolist(), self.device.type, ld3m.__version__]
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12)
        for tensor in (self.result.images, self.result.labels):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def report(self, accuracies: Mapping[Training, float], seconds: float) -> Report:
        """Gather the rows and all that a reader needs to judge or repeat them."""
        rows = []
        for name in self.sets:
            for network in self.networks:
                values = [accuracies[Training(name, network, repeat)] for repeat in range(self.repeats)]
                mean, std = mean_std(values)
                rows.append({"set": name, "network": network, "accuracies": values, "mean": mean, "std": std})
        about = {
            "data": self._describe_data(),
            "seed": self.seed,
            "seeds": self.seeds,
            "storage_bytes": self._storage(),
            "versions": {"ld3m": ld3m.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
        }
        used = {name: self.protocol.recipe(name) for name in self.networks}
        protocol = dataclasses.asdict(dataclasses.replace(self.protocol, networks=self.networks, recipes=used))
        protocol = json.loads(json.dumps(protocol))  # tuples become lists: equal after to_json and from_json
        return Report(rows, protocol, self.result.config.get("network"), about)

    def _train(self, training: Training, each_epoch: Callable[[], None]) -> float:
        images, labels = self.images_and_labels(training.set, training.repeat)
        generator = self._generator(training.network, training.repeat)  # not of the set: all start alike
        return train_and_test(
            training.network,
            images,
            labels,
            self.data,
            self.protocol,
            generator,
            device=self.device,
            each_epoch=each_epoch,
        )

    def _generator(self, purpose: str, repeat: int) -> torch.Generator:
        return seeds.generator(self.seed, "evaluation", purpose, repeat)

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
            "test_images": len(self.data.test),
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
