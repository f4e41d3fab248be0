"""Shards of a sampling, merged to the run that one process would have made."""

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from ld3m.config import SampleConfig
from ld3m.errors import ConfigError
from ld3m.evaluation.finish import finish_classes
from ld3m.runs import pictures
from ld3m.runs.folder import CHECKPOINT, METRICS, RunFolder
from ld3m.runs.marker import is_run
from ld3m.runs.result import WEIGHTS, Result, load
from ld3m.runs.shards import Share, finished_shards
from ld3m.runtime.reading import clear_read_errors
from ld3m.runtime.rows import RowFile
from ld3m.runtime.storage import load_tensors, save_tensors
from ld3m.sampling.dataset import sample_classes
from ld3m.sampling.job import SampleJob, prepare


def merge(folder: str | Path, data: object = None, *, progress: bool = True) -> Result:
    """Merge the shards of a sampling to one run; its set, pictures and settings are those of one process.

    Args:
        folder: the `out` that the shards were given; the run is made in it, or gone on with, and evaluated as its
            settings say. The shards stay.
        data: that of the shards, where they were made from an object; by default what their settings name.
        progress: show progress bars.

    Raises:
        ConfigError: shards that are missing, doubled, unfinished, or of other settings or data.
        CheckpointError: a damaged shard.
    """
    out = Path(folder)
    paths, started = finished_shards(out), time.perf_counter()
    name, config = RunFolder(paths[0], resume=True, overwrite=False).stored(SampleConfig)
    settings = {key: value for key, value in vars(config).items() if value is not None}
    shards = [_Shard(path, Share(k, len(paths))) for k, path in enumerate(paths)]

    def check(job: SampleJob, sources: Mapping[str, str]) -> None:
        for shard in shards:
            shard.require_same(job, sources)

    where = {"out": out, "resume": is_run(out), "overwrite": False, "scratch": out, "check": check}
    job = prepare(name if data is None else data, settings, **where)
    with job.folder:

        def take(job: SampleJob, label: int, rows: RowFile) -> tuple[SampleJob, dict[str, object]]:
            return job, shards[label % len(shards)].copy(job, label, rows)

        return finish_classes(job, out, started, sample_classes(job, progress, take), progress=progress)


class _Shard:
    """One shard, whose classes are copied out of it."""

    def __init__(self, path: Path, share: Share) -> None:
        self._path, self._share = path, share

    def require_same(self, job: SampleJob, sources: Mapping[str, str]) -> None:
        """Raise ConfigError where it was made from other data, another prior or other statistics than the job has."""
        _, about = load_tensors(self._path / CHECKPOINT)
        if about.get("data") != job.dataset.fingerprint:
            raise ConfigError(
                f"the shard in {self._path} was made from other data than {job.data_name} is now: other images, labels "
                "or another split. Put the data back, or make that shard anew by --overwrite"
            )
        for name, own in sources.items():
            if about.get(name) != own:
                raise ConfigError(
                    f"the shard in {self._path} was made with another {name} than {getattr(job.config, name)} is now; "
                    "put that back, or make the shard anew by --overwrite"
                )
        _ = self._set  # which refuses a damaged one

    @cached_property
    def _set(self) -> Result:
        return load(self._path)

    @cached_property
    def _lines(self) -> dict[str, dict[str, object]]:
        """Lines of the log by class."""
        with clear_read_errors(self._path / METRICS):
            lines = [json.loads(line) for line in (self._path / METRICS).read_text(encoding="utf-8").splitlines()]
        return {str(line.pop("class")): line for line in lines}

    def copy(self, job: SampleJob, label: int, rows: RowFile) -> dict[str, object]:
        """Copy a class: rows, pictures, statistics; return its line of the log."""
        is_own = self._set.labels == self._share.position(label)
        images, first = self._set.images[is_own], label * job.config.ipc
        pictures.save_numbered(job.folder.path / "images" / job.folder_names[label], images)
        if job.config.statistics is None:
            own = job.statistics_file(label)
            save_tensors(own, *load_tensors(self._path / own.parent.name / own.name))
        rows.write("latents", self._set.parameters["latents"][is_own], first)
        if self._set.weights is not None:
            rows.write(WEIGHTS, self._set.weights[is_own], first)
        rows.write("images", images, first)
        line = self._lines[job.dataset.class_names[label]]
        return {key: value for key, value in line.items() if key != "iteration"}
