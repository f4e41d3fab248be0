"""Finished trainings of an evaluation, kept in the run's folder: an interrupted one goes on where it was."""

import json
import logging
from collections.abc import Collection
from dataclasses import astuple
from pathlib import Path

from ld3m.evaluation.divergence import Accuracies
from ld3m.evaluation.runner import Training
from ld3m.runs.folder import EVALUATION_PROGRESS
from ld3m.runtime.storage import write_json

logger = logging.getLogger(__name__)


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
                self.path.unlink()

    def _rows(self) -> list:
        return [[astuple(training), accuracies] for training, accuracies in self.accuracies.items()]

    def _stored(self) -> dict[str, list]:
        if not self.path or not self.path.is_file():
            return {}
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            logger.warning("%s is damaged (%s): its trainings are run again", self.path, error)
            return {}
