"""Data sets sampled from a prior, class by class: gather statistics, choose latents by them, sample images."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from ld3m.config.keywords import SampleKeywords, keywords_of
from ld3m.data.ranges import from_signed, to_signed
from ld3m.errors import CheckpointError, MemoryBudgetError, NumericsError
from ld3m.evaluation.finish import finish_classes
from ld3m.runs import pictures
from ld3m.runs.folder import DISTILLED
from ld3m.runs.result import WEIGHTS, Result, load
from ld3m.runs.set_rows import open_set
from ld3m.runtime import processes, seeds
from ld3m.runtime.devices import is_out_of_memory, release_memory
from ld3m.runtime.progress import progress_bar
from ld3m.runtime.reading import is_there
from ld3m.runtime.rows import RowFile
from ld3m.runtime.storage import save_tensors
from ld3m.sampling import SELECTORS, ClassStatistics, SampleConfig
from ld3m.sampling.job import SampleJob, prepare
from ld3m.sampling.record import Record, stored_or_none

logger = logging.getLogger(__name__)
Maker = Callable[[SampleJob, int, RowFile], tuple[SampleJob, dict[str, object]]]


@keywords_of(SampleConfig)
def sample_dataset(
    data: object = "builtin",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    shard: str | tuple[int, int] | None = None,
    **settings: Unpack[SampleKeywords],
) -> Result:
    """Sample a few images per class from a prior, by statistics of the real ones (D3HR, arXiv 2505.18399).

    Class by class, the real images are inverted to a level of noise, a Gaussian is fitted to them there, latents are
    chosen by it and sampled back. No more than one class is held at a time.

    Args:
        data: as of `ld3m.distill`.
        out: folder for config, class statistics, images and report; None keeps the result in memory only.
        resume: go on with the run in `out`, class by class; settings that are given must be the stored ones.
        overwrite: replace the run in `out`.
        progress: show a progress bar.
        shard: "i/n" or (i, n), for i from 0 to n − 1: sample every n-th class from class i on alone, in the folder
            `shards/i-of-n` of `out`, and go on where it was; `ld3m.merge(out)` makes one run of all.
        **settings: fields of `ld3m.sampling.SampleConfig`.

    Returns:
        The sampled set; its latents are the chosen ones, at their level of noise. The same seed on the same CPU gives
        the same bytes, interrupted or not.

    Raises:
        ConfigError: settings that are unknown, contradict each other, or differ from those of the resumed run.
        DataError: data that cannot be read or is too small.
        InputError: classes of the data that are none of the prior's.
        NumericsError: statistics or images that are not finite; the classes before are kept.
        MemoryBudgetError: the device cannot hold one image at a time.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        where = {"out": out, "resume": resume, "overwrite": overwrite, "scratch": Path(scratch), "shard": shard}
        job = prepare(data, settings, **where)
        with job.folder:
            seconds_per_class = sample_classes(job, progress, within_memory)
            if shard is not None:
                return load(job.folder.path)
            return finish_classes(job, out, started, seconds_per_class, progress=progress)


def sample_classes(job: SampleJob, progress: bool, make: Maker) -> float | None:
    """Make the classes that are not there yet, or no longer whole; return the seconds each took, None for none.

    Args:
        make: writes a class into the folder, and its rows; it returns the job to go on with, and a line for the log.
    """
    classes, count = job.classes, processes.world_size()
    records: list[Record] = []  # of the main process

    def open_classes() -> tuple[list[int], int] | None:
        done, kept = (job.folder.load_checkpoint() if job.folder.is_resumed else None) or (0, {})
        records.append(record := Record(job, kept))
        if whole := _whole_set(job.folder.path):
            _mend_statistics(job, record, len(classes))
            record.mend_pictures(classes, lambda label: whole.images[whole.labels == job.share.position(label)])
            return None
        rows = _row_file(job)
        if rows.is_new and done:
            logger.warning("what was in %s of %d classes is damaged or gone; they are sampled again", rows.path, done)
            job.folder.keep_metrics_before(0)
            done = 0
        _mend_statistics(job, record, done)
        lost = record.damaged(rows, done)
        record.mend_pictures(
            (label for label in classes[:done] if label not in lost),
            lambda label: rows.read("images", job.first_row(label), job.config.ipc),
        )
        return list(lost), done

    if (found := processes.from_main(open_classes, "open the set")) is None:
        return None
    lost, done = found
    rows, left = _row_file(job), [*lost, *classes[done:]]
    started, first = time.perf_counter(), len(classes) - len(left)
    with progress_bar(name="sampling", initial=first, total=len(classes), show=progress, unit="class") as bar:
        for block in (left[start : start + count] for start in range(0, len(left), count)):  # a class a process
            line: dict[str, object] = {}
            if processes.rank() < len(block):
                job, line = make(job, block[processes.rank()], rows)
            lines = processes.gather(line, "sample their classes")
            if processes.is_main():
                for label, line in zip(block, lines, strict=False):
                    records[0].note(rows, label)
                    number = job.share.position(label)
                    job.folder.log({"iteration": number, "class": job.dataset.class_names[label], **line})
                    done = max(done, number + 1)
                job.folder.save_checkpoint(done, records[0].state())
            bar.update(len(block))
    seconds = (time.perf_counter() - started) / max(1, len(left))
    if processes.is_main():
        if lost:
            job.folder.keep_metrics_before(done)
        rows.finish()
        job.folder.forget_previous()
    processes.gather(None, "name the set")
    return seconds


def _whole_set(folder: Path) -> Result | None:
    """Return the distilled set where it is there and whole; a damaged one counts as unfinished, which is said."""
    path = folder / DISTILLED
    if not is_there(path):
        return None
    try:
        return load(folder)
    except CheckpointError as error:
        logger.warning("%s. What is damaged of it is sampled again", error)
        RowFile.reopen(path)
        return None


def _mend_statistics(job: SampleJob, record: Record, done: int) -> None:
    """Gather the statistics of classes that are done again where they are missing or damaged."""
    for label in record.without_statistics(done):
        _gather(job, label, _conditioning(job, label))


def _row_file(job: SampleJob) -> RowFile:
    """Open the distilled set."""
    side = job.config.resolution // job.prior.downsample
    weights = {WEIGHTS: ()} if SELECTORS[job.config.selector].is_weighted else {}
    return open_set(job, share=job.share, latents=(job.prior.latent_channels, side, side), **weights)


def within_memory(job: SampleJob, label: int, rows: RowFile) -> tuple[SampleJob, dict[str, object]]:
    """Sample a class; where memory runs out, again with half as many images at once, as do the classes after it."""
    try:
        return job, _sample_class(job, label, rows)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("class %d", label, exc_info=error)
    release_memory(job.device)  # out here, where no traceback holds on to it any more
    name, at_once = job.dataset.class_names[label], job.config.micro_batch // 2
    if not at_once:
        raise MemoryBudgetError(
            f"{job.device} ran out of memory in class {name!r}, with one image at a time; the classes before it are "
            "kept. Free what other programs hold, or start anew with a lower resolution, or dtype bfloat16"
        )
    logger.warning("out of memory in class %r; it is repeated with %d images at once", name, at_once)
    return within_memory(replace(job, config=replace(job.config, micro_batch=at_once)), label, rows)


@torch.no_grad()
def _sample_class(job: SampleJob, label: int, rows: RowFile) -> dict[str, object]:
    """Write the images of one class; return what is worth a line in the log."""
    config, started = job.config, time.perf_counter()
    conditioning = _conditioning(job, label)
    statistics = stored_or_none(job, label) or _gather(job, label, conditioning)
    seed = seeds.derive(config.seed, "select", label)
    chosen, facts = SELECTORS[config.selector].select(statistics, config, seed, job.device)
    start, noise_seed = (
        replace(chosen, latents=chosen.latents.to(job.device)),
        seeds.derive(config.seed, "steps", label),
    )
    sampled = SELECTORS[config.selector].sample(job.prior, start, statistics, conditioning, config, noise_seed)
    images = torch.cat([job.prior.decode(part).float().cpu() for part in sampled.split(config.micro_batch)])
    _require_finite(job, label, {"images": images})
    images = from_signed(images)
    pictures.save_numbered(job.folder.path / "images" / job.folder_names[label], images)
    rows.write("latents", chosen.latents, job.first_row(label))
    if statistics.weights is not None:
        rows.write(WEIGHTS, statistics.weights, job.first_row(label))
    rows.write("images", images, job.first_row(label))
    return {**facts, "seconds": round(time.perf_counter() - started, 4)}


def _conditioning(job: SampleJob, label: int) -> Tensor:
    return job.prior.embed(torch.tensor([job.class_ids[label]])).float()  # (1, tokens, dim)


@torch.no_grad()
def _gather(job: SampleJob, label: int, conditioning: Tensor) -> ClassStatistics:
    """Gather a class's statistics from its real images, and store them."""
    seed = seeds.derive(job.config.seed, "statistics", label)
    latents = _latents(job, job.real_images(label))
    statistics = SELECTORS[job.config.selector].gather(job.prior, latents, conditioning, job.config, seed)
    _require_finite(job, label, {"statistics": statistics.mean + statistics.std})
    path = job.statistics_file(label)
    save_tensors(path, statistics.tensors(), job.provenance(label))
    return statistics


def _require_finite(job: SampleJob, label: int, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if not value.isfinite().all():
            raise NumericsError(
                f"the {name} of class {job.dataset.class_names[label]!r} hold NaN or infinite values; the classes "
                "before it are kept. Start anew with a lower guidance, or dtype float32"
            )


def _latents(job: SampleJob, positions: Tensor) -> Iterator[Tensor]:
    """Encode the images, some at a time."""
    for part in positions.split(job.config.micro_batch):
        yield job.prior.encode(to_signed(job.dataset.train.batch(part, job.device)))
