"""The networks that judge real images, a teacher and some early in training, and the scores that follow from them."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ld3m import networks
from ld3m.config import SelectConfig, TeacherTraining
from ld3m.data import Dataset
from ld3m.errors import CheckpointError, ConfigError
from ld3m.evaluation.teacher import Teacher, load_teacher
from ld3m.evaluation.teacher_training import train_network
from ld3m.runs.folder import SCORES, TEACHER
from ld3m.runtime import seeds
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.storage import load_tensors, save_tensors
from ld3m.selection import SELECTIONS, Candidates, Measured, Selection

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Judges:
    """What a selector measures by, made when it is first asked for.

    Args:
        config: says how to measure, and the seed that trainings follow from.
        given: a teacher; one is trained as `ld3m teacher` does when None.
        folder: of a run, where the teacher that is trained and the scores are kept; None keeps nothing.
        networks_of: judges of the same data, seed and settings, but for the selector, whose networks are shared.
    """

    data: Dataset
    config: SelectConfig
    device: torch.device
    given: Teacher | None = None
    folder: Path | None = None
    progress: bool = True
    networks_of: "Judges | None" = None
    _known: dict[int, Measured] = field(default_factory=dict, repr=False)

    @property
    def selection(self) -> Selection:
        return SELECTIONS[self.config.by]

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher that is given, stored in the folder, or trained."""
        if self.networks_of is not None:
            return self.networks_of.teacher
        path = None if self.folder is None else self.folder / TEACHER
        teacher = self.given or self._stored(path)
        if teacher is None:
            logger.info("a teacher is trained, by which images are chosen")
            training = TeacherTraining(self._network, seed=self.config.seed)
            teacher = train_network(self.data, training, self.device, self.progress)
            if path is not None:
                teacher.save(path)
        return teacher.to(self.device)

    def _stored(self, path: Path | None) -> Teacher | None:
        if path is None or not path.is_file():
            return None
        try:
            teacher = load_teacher(path)
            teacher.require_fit(self.data)
        except (CheckpointError, ConfigError) as error:
            logger.warning("%s. It is trained again", error)
            return None
        return teacher

    @cached_property
    def early(self) -> list[nn.Module]:
        """Networks early in training."""
        if self.networks_of is not None:
            return self.networks_of.early
        count, epochs = self.config.early_networks, self.config.early_epochs
        logger.info("%d networks are trained for %d epochs, by which images are chosen", count, epochs)
        found: list[nn.Module] = []
        for k in range(count):
            seed = seeds.derive(self.config.seed, "early network", k)
            training = TeacherTraining(self._network, epochs, seed=seed)
            found.append(train_network(self.data, training, self.device, self.progress).network)
        return found

    @property
    def _network(self) -> str:
        """Return the network that is trained: below 128 px of half the width, which a CPU trains in a minute or two."""
        return "ConvNet-w0.5" if self.data.resolution < 128 else "ConvNet"

    def networks(self) -> list[nn.Module]:
        """Return those that the selector asks for."""
        found = {"teacher": lambda: [self.teacher.network], "early": lambda: self.early, "": list[nn.Module]}
        return [networks.fused(network) for network in found[self.selection.judge]()]

    def scores(self, label: int) -> Measured:
        """Return what the selector measures of a class: from the folder that the settings name, the run's, or anew.

        Raises:
            ConfigError: the folder that the settings name has none of this class, or of something else.
        """
        if label not in self._known:
            self._known[label] = self._found_or_measured(label)
        return self._known[label]

    def _found_or_measured(self, label: int) -> Measured:
        if self.selection.measure is None:
            return {}
        if self.config.scores_from is not None:
            return self._reused(Path(self.config.scores_from) / self._name(label), label)
        path = None if self.folder is None else self.folder / SCORES / self._name(label)
        if path is not None and path.is_file():
            try:
                return self._reused(path, label)
            except (CheckpointError, ConfigError) as error:
                logger.warning("%s. They are measured again", error)
        generator = seeds.generator(self.config.seed, "scores", label)
        measured = self.selection.measure(self.networks(), Candidates(self.data, label), self.config, generator)
        if path is not None:
            save_tensors(path, measured, self._provenance(label))
        return measured

    def keep(self, folder: Path) -> None:
        """Store the scores of all classes in the folder of a run, so that it is gone on with by them."""
        for label in range(self.data.train.num_classes):
            path = folder / SCORES / self._name(label)
            if not path.is_file():
                save_tensors(path, self.scores(label), self._provenance(label))

    def reused(self) -> str | None:
        """Return a fingerprint of the scores that the settings name; None where they name none."""
        if self.config.scores_from is None:
            return None
        if self.selection.measure is None:
            raise ConfigError(f"scores_from has no use: {self.config.by!r} measures nothing; leave it out")
        found = [self.scores(label) for label in range(self.data.train.num_classes)]
        return fingerprint(tensor for one in found for _, tensor in sorted(one.items()))

    def _reused(self, path: Path, label: int) -> Measured:
        if not path.is_file():
            raise ConfigError(f"scores_from has no {path.name} in {path.parent}; name the folder scores of another run")
        tensors, stored = load_tensors(path)
        about = self._provenance(label)
        changed = [f"{k} {stored.get(k)!r} → {v!r}" for k, v in about.items() if stored.get(k) != v]
        if changed:
            raise ConfigError(f"the scores in {path} are of something else: {', '.join(changed)}; leave them out")
        score = tensors.get("score")
        if score is None or score.shape != (len(Candidates(self.data, label).members),) or bool(score.isnan().any()):
            raise CheckpointError(f"{path} holds no score for each image of its class; leave it out")
        return tensors

    def _name(self, label: int) -> str:
        return f"class-{label:05}.safetensors"

    def _provenance(self, label: int) -> dict[str, str]:
        """Say what scores are of; not by which teacher, which a run that uses them again has no need of."""
        config, about = self.config, {"data": self.data.fingerprint, "class": self.data.class_names[label]}
        about |= {"measured": self.selection.measured}
        if self.selection.judge == "early":
            about |= {"early_networks": str(config.early_networks), "early_epochs": str(config.early_epochs)}
        if self.selection.measured == "crops":
            pool = max(config.candidates, config.ipc * (config.tiles or 1) ** 2)
            about |= {"crops": str(config.crops), "tiles": str(config.tiles), "candidates": str(pool)}
        return about


def open_teacher(path: str | None, data: Dataset) -> Teacher | None:
    """Load the teacher that the settings name, which has to be of this data; None where they name none."""
    if path is None:
        return None
    teacher = load_teacher(path)
    teacher.require_fit(data)
    return teacher


def easiest(data: Dataset, judges: Judges, share: float) -> Dataset:
    """Return the data with that share of each class's training images, those of the lowest score."""
    kept = [
        members[judges.scores(label)["score"].argsort(stable=True)[: max(1, round(share * len(members)))]]
        for label in range(data.train.num_classes)
        for members in [data.train.of_class(label)]
    ]
    return replace(data, train=data.train.only(torch.cat(kept).sort().values))
