"""Finished trainings of an evaluation, kept in the run's folder: an interrupted one goes on where it was."""

import logging
from collections.abc import Collection
from dataclasses import astuple
from pathlib import Path
from typing import Any, cast

from ld3m.errors import CheckpointError
from ld3m.evaluation.divergence import MOST_HALVINGS, Accuracies
from ld3m.evaluation.runner import Training
from ld3m.runs.folder import EVALUATION_PROGRESS
from ld3m.runtime.reading import Misfit, anything, listing, mapping_of, number, optional, read_json, text, whole
from ld3m.runtime.storage import remove, write_json

logger = logging.getLogger(__name__)
_ACCURACIES = optional(listing(number(0, 100), 1))  # null where the training diverged
_TRAINING = (text(300), text(300), whole(0, 10**6), text(100), whole(0, MOST_HALVINGS))  # as `Training` has them


def _row(value: object) -> Misfit | None:
    """Check a training and its accuracies."""
    if (misfit := listing(anything, 2, 2)(value)) is not None:
        return misfit
    training, accuracies = cast("list[Any]", value)
    if (misfit := listing(anything, 4, len(_TRAINING))(training)) is not None:
        return misfit.below(0)
    found = ((k, check(part)) for k, (check, part) in enumerate(zip(_TRAINING, training, strict=False)))
    faults = [misfit.below(k).below(0) for k, misfit in found if misfit]
    return faults[0] if faults else _ACCURACIES(accuracies)


_PROGRESS = mapping_of(listing(_row))


class Progress:
    """Accuracies of the trainings that are done, after each tested epoch, in memory and, with a folder, on disk.

    Those that diverged are kept as None: an evaluation that goes on has no need to do them again.

    Args:
        folder: of the run; None keeps nothing on disk.
        key: stands for all that decides an accuracy beside the training itself; other keys in the file stay.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.path = None if folder is None else folder / EVALUATION_PROGRESS
        self.key = key
        self.accuracies: dict[Training, Accuracies] = {
            Training(*name): accuracies for name, accuracies in self._stored().get(key, ())
        }

    def record(self, training: Training, accuracies: Accuracies) -> None:
        """Keep a result."""
        self.accuracies[training] = accuracies
        if self.path:
            write_json(self.path, self._stored() | {self.key: self._rows()})

    def forget(self, used: Collection[Training]) -> None:
        """Remove from disk what a finished evaluation has no use for any more; trainings of another one stay."""
        for training in used:
            self.accuracies.pop(training, None)
        if self.path and self.path.is_file():
            left = self._stored() | {self.key: self._rows()}
            if left := {key: rows for key, rows in left.items() if rows}:
                write_json(self.path, left)
            else:
                remove(self.path)

    def _rows(self) -> list:
        return [[astuple(training), accuracies] for training, accuracies in self.accuracies.items()]

    def _stored(self) -> dict[str, list]:
        if not self.path or not self.path.is_file():
            return {}
        try:
            return read_json(self.path, _PROGRESS, remedy="its trainings are run again")
        except CheckpointError as error:
            logger.warning("%s", error)
            return {}
