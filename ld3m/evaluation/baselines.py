"""Sets of real images that a distilled set is compared with, by name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ld3m.config import SelectConfig
from ld3m.data import Dataset
from ld3m.errors import ConfigError
from ld3m.evaluation.measuring import Judges
from ld3m.evaluation.protocols import Protocol
from ld3m.evaluation.teacher import Teacher, load_teacher
from ld3m.selection import SELECTIONS, Candidates, Choice


@dataclass(frozen=True)
class Baseline:
    """A set of real images.

    Args:
        by: the selector.
        is_drawn_anew: whether every repeat draws its own.
        is_weighted: whether the weights that the selector gives are used.
    """

    by: str
    is_drawn_anew: bool = False
    is_weighted: bool = True

    @property
    def needs_teacher(self) -> bool:
        return SELECTIONS[self.by].judge == "teacher"


BASELINES = {
    "random": Baseline("random", is_drawn_anew=True),
    "kmeans": Baseline("kmeans", is_weighted=False),
    "kmeans-weighted": Baseline("kmeans"),
    **{name: Baseline(name) for name in SELECTIONS if name not in ("random", "kmeans")},
}


def judges_of(data: Dataset, seed: int, teacher: Teacher | None, device: torch.device, progress: bool) -> Judges:
    """Return what all baselines are chosen by.

    Args:
        seed: of networks that judge, and of random crops.
        teacher: by which images are chosen; one is trained where it is None and needed.
    """
    return Judges(data, SelectConfig(seed=seed), device, teacher, progress=progress)


def choose(name: str, counts: Sequence[int], generators: Sequence[torch.Generator], judges: Judges) -> list[Choice]:
    """Choose counts[k] real images of each class k, once for each generator."""
    data, baseline = judges.data, BASELINES[name]
    selection = SELECTIONS[baseline.by]
    tiles, ipc = selection.tiles(data.resolution), max(counts)
    for label in range(len(counts)):
        Candidates(data, label).require(counts[label] * tiles**2, baseline.by, counts[label], tiles)
    config = replace(judges.config, by=baseline.by, ipc=ipc, tiles=tiles)
    own = replace(judges, config=config, networks_of=judges, _known={})
    scores = [own.scores(label) for label in range(len(counts))]
    choices = [
        Choice.joined(
            [
                selection.choose(Candidates(data, label), scores[label], count, config, generator)
                for label, count in enumerate(counts)
            ]
        )
        for generator in generators
    ]
    return choices if baseline.is_weighted else [replace(choice, weights=None) for choice in choices]


def teachers(
    given: Teacher | str | Path | None, protocol: Protocol, names: Sequence[str]
) -> tuple[Teacher | None, Teacher | None]:
    """Return the teacher of soft labels, and the one by which baselines are chosen."""
    is_judge = any(BASELINES[name].needs_teacher for name in names)
    if protocol.labels == "hard" and given is not None and not is_judge:
        raise ConfigError("a teacher has no use for hard labels; leave it out, or ask for soft labels")
    if protocol.labels == "soft" and given is None:
        raise ConfigError("soft labels need a teacher; train one with `ld3m teacher`, or ask for hard labels")
    if protocol.labels == "soft" and "random" not in names:
        raise ConfigError(
            "soft labels stand beside random real images with the same teacher; keep 'random' among the baselines"
        )
    teacher = load_teacher(given) if isinstance(given, str | Path) else given
    return teacher if protocol.labels == "soft" else None, teacher if is_judge else None
