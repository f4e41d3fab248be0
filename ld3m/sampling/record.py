"""What a sampling has made so far, class by class: digests by which damage is noticed when the run is gone on with."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ld3m.errors import CheckpointError
from ld3m.runs import pictures
from ld3m.runs.result import WEIGHTS
from ld3m.runtime.fingerprints import digest_of_files
from ld3m.runtime.rows import RowFile
from ld3m.sampling import SELECTORS
from ld3m.sampling.job import SampleJob
from ld3m.sampling.statistics import ClassStatistics

logger = logging.getLogger(__name__)
_KEY, _BYTES = "digests", 8


class Record:
    """Digests of the rows and pictures of each class that is done, kept in the run's checkpoint.

    Args:
        stored: tensors of the checkpoint; runs of earlier releases have no digests there, and are taken as they are.
    """

    def __init__(self, job: SampleJob, stored: Mapping[str, Tensor]) -> None:
        self._job = job
        count = len(job.classes)
        self._digests = torch.zeros(count, 2, _BYTES, dtype=torch.uint8)  # of rows and pictures; zeros: not known
        if _KEY in stored and stored[_KEY].shape == self._digests.shape:
            self._digests = stored[_KEY].clone()

    def state(self) -> dict[str, Tensor]:
        """Return what is kept in the checkpoint."""
        return {_KEY: self._digests}

    def note(self, rows: RowFile, label: int) -> None:
        """Take note of a class that is done."""
        digests = self._rows_digest(rows, label), self._pictures_digest(label)
        self._digests[self._job.share.position(label)] = torch.tensor([list(bytes.fromhex(one)) for one in digests])

    def damaged(self, rows: RowFile, done: int) -> list[int]:
        """Return those of the first `done` classes whose rows are not what was written, and say so."""
        lost = [k for k in self._job.classes[:done] if self._is_changed(k, 0, self._rows_digest(rows, k))]
        for label in lost:
            name = self._job.dataset.class_names[label]
            logger.warning("the rows of class %r in %s are damaged; it is sampled again", name, rows.path)
        return lost

    def without_statistics(self, done: int) -> list[int]:
        """Return those of the first `done` classes whose own statistics are missing or damaged."""
        if self._job.config.statistics is not None:  # of another run, looked at as it was opened
            return []
        return [label for label in self._job.classes[:done] if stored_or_none(self._job, label) is None]

    def mend_pictures(self, labels: Iterable[int], images_of: Callable[[int], Tensor]) -> None:
        """Draw pictures of classes again, from their images, where some are missing or damaged."""
        for label in labels:
            if self._is_changed(label, 1, self._pictures_digest(label)):
                logger.warning("pictures in %s are missing or damaged; they are drawn again", self._folder(label))
                pictures.save_numbered(self._folder(label), images_of(label))

    def _is_changed(self, label: int, kind: int, digest: str) -> bool:
        noted = self._digests[self._job.share.position(label), kind]
        return bool(noted.any()) and bytes(noted.tolist()).hex() != digest

    def _rows_digest(self, rows: RowFile, label: int) -> str:
        ipc = self._job.config.ipc
        weights = [WEIGHTS] if SELECTORS[self._job.config.selector].is_weighted else []
        return rows.digest(self._job.first_row(label), ipc, "latents", "images", *weights)

    def _pictures_digest(self, label: int) -> str:
        files = [self._folder(label) / f"{k}.png" for k in range(self._job.config.ipc)]
        return digest_of_files(files)

    def _folder(self, label: int) -> Path:
        return self._job.folder.path / "images" / self._job.folder_names[label]


def stored_or_none(job: SampleJob, label: int) -> ClassStatistics | None:
    """Return a class's statistics, None where they are to be gathered: not there, or damaged, which is said."""
    try:
        return job.stored_statistics(label)
    except CheckpointError as error:
        if job.config.statistics is not None:
            raise
        logger.warning("%s. They are gathered again", error)
        return None
