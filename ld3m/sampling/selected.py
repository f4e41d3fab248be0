"""Sets of chosen real images, class by class: measure, choose, write."""

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Unpack

from ld3m.config import ResolvedSelectConfig, SelectConfig, one_of
from ld3m.config.keywords import SelectKeywords, keywords_of
from ld3m.config.select import resolve
from ld3m.data.images import to_unit
from ld3m.errors import ConfigError
from ld3m.evaluation.finish import check_protocol, finish_classes
from ld3m.evaluation.measuring import Judges, open_teacher
from ld3m.evaluation.teacher import load_teacher
from ld3m.runs import pictures
from ld3m.runs.folder import DISTILLED, RunFolder
from ld3m.runs.opening import Run, open_run, sources_of
from ld3m.runs.result import WEIGHTS, Result, folder_names
from ld3m.runs.set_rows import open_set
from ld3m.runs.shards import WHOLE
from ld3m.runtime import seeds
from ld3m.runtime.progress import progress_bar
from ld3m.runtime.rows import RowFile
from ld3m.selection import SELECTIONS, Candidates, Choice, render

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectJob(Run):
    """A selection ready to run."""

    config: ResolvedSelectConfig
    folder: RunFolder
    judges: Judges

    @cached_property
    def folder_names(self) -> list[str]:
        return folder_names(self.dataset.class_names)


@keywords_of(SelectConfig)
def select(
    data: object = "builtin",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Unpack[SelectKeywords],
) -> Result:
    """Choose a few real images per class, and make them a run as a distilled set is one.

    Class by class, the images are measured, as the selector says, and chosen; what was measured is kept in the folder
    `scores`, to be used again by `scores_from`.

    Args:
        data: as of `ld3m.distill`.
        out: folder for config, scores, images and report; None keeps the result in memory only.
        resume: go on with the run in `out`, class by class; settings that are given must be the stored ones.
        overwrite: replace the run in `out`.
        progress: show progress bars.
        **settings: fields of `ld3m.config.SelectConfig`.

    Returns:
        The chosen set; from k-means it has weights, the shares of the cells. The same seed on the same CPU gives the
        same bytes, interrupted or not.

    Raises:
        ConfigError: settings that are unknown, contradict each other, or differ from those of the resumed run; a
            teacher or scores of other data.
        DataError: data that cannot be read, or a class with fewer images than are asked for.
        NumericsError: a network that judges diverged.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        job = _prepare(data, settings, out, resume=resume, overwrite=overwrite, scratch=Path(scratch), show=progress)
        with job.folder:
            seconds_per_class = _choose_classes(job, progress)
            return finish_classes(job, out, started, seconds_per_class, progress=progress)


def _prepare(
    data: object,
    settings: Mapping[str, object],
    out: str | Path | None,
    *,
    resume: bool,
    overwrite: bool,
    scratch: Path,
    show: bool,
) -> SelectJob:
    """Check settings, folder, teacher and data, in this order."""
    opening = open_run(data, settings, SelectConfig, out=out, resume=resume, overwrite=overwrite)
    folder = opening.folder or RunFolder(scratch, resume=False, overwrite=False)
    asked = opening.config
    one_of(asked.by, "by", tuple(SELECTIONS))
    selection = SELECTIONS[asked.by]
    if asked.teacher is not None and selection.judge != "teacher":
        judged = ", ".join(name for name, one in SELECTIONS.items() if one.judge == "teacher")
        raise ConfigError(f"a teacher is for {judged}, and the selector is {asked.by!r}; leave it out")
    native = None if asked.teacher is None else load_teacher(asked.teacher).resolution
    config = resolve(asked, native, 1)
    per_side = selection.tiles(config.resolution)
    if asked.tiles not in (None, 1) and selection.tiles(2**20) == 1:
        raise ConfigError(f"tiles are for rded and combine, and the selector is {asked.by!r}; leave them out")
    config = replace(config, tiles=asked.tiles or per_side)
    if config.tiles > config.resolution // 4:
        raise ConfigError(
            f"tiles is at most {config.resolution // 4} at {config.resolution} px, so that a tile has 4 pixels a side; "
            f"got {config.tiles}"
        )
    check_protocol(config.evaluate, config.resolution)
    dataset = opening.load_data(config)
    for label in range(len(dataset.class_names)):
        Candidates(dataset, label).require(config.ipc * config.tiles**2, config.by, config.ipc, config.tiles)
    teacher = open_teacher(config.teacher, dataset)
    kept = folder.path if opening.folder is not None else None
    judges = Judges(dataset, config, opening.device, teacher, kept, show)
    sources = sources_of(None, teacher=None if teacher is None else teacher.digest, scores_from=judges.reused())
    folder.start(opening.data_name, config, dataset.fingerprint, sources)
    return SelectJob(config, opening.data_name, dataset, folder, opening.device, judges)


def _choose_classes(job: SelectJob, progress: bool) -> float | None:
    """Choose the classes that are not there yet; return the seconds each took, None when nothing was left."""
    if (job.folder.path / DISTILLED).is_file():
        return None
    num_classes = len(job.dataset.class_names)
    more: dict[str, tuple[int, ...]] = {WEIGHTS: ()} if job.judges.selection.is_weighted else {}
    rows = open_set(job, share=WHOLE, **more)
    stored = job.folder.load_checkpoint() if job.folder.is_resumed else None
    first = 0 if stored is None or rows.is_new else stored[0]
    if stored is not None and not first:
        job.folder.keep_metrics_before(0)
    started = time.perf_counter()
    work = range(first, num_classes)
    for label in progress_bar(work, "selecting", initial=first, total=num_classes, show=progress, unit="class"):
        line = _choose_class(job, label, rows)
        job.folder.log({"iteration": label, "class": job.dataset.class_names[label], **line})
        job.folder.save_checkpoint(label + 1, {})
    rows.finish()
    job.folder.forget_previous()
    return (time.perf_counter() - started) / max(1, num_classes - first)


def _choose_class(job: SelectJob, label: int, rows: RowFile) -> dict[str, object]:
    """Write the images of one class; return what is worth a line in the log."""
    config, started = job.config, time.perf_counter()
    candidates, generator = Candidates(job.dataset, label), seeds.generator(config.seed, "select images", label)
    scores = job.judges.scores(label)
    choice: Choice = job.judges.selection.choose(candidates, scores, config.ipc, config, generator)
    images = to_unit(render(job.dataset.train, choice))
    pictures.save_numbered(job.folder.path / "images" / job.folder_names[label], images)
    if choice.weights is not None:
        rows.write(WEIGHTS, choice.weights, label * config.ipc)
    rows.write("images", images, label * config.ipc)
    return {"positions": choice.positions.flatten().tolist(), "seconds": round(time.perf_counter() - started, 4)}
