"""Any set of images, distilled or chosen by whatever method, made more natural by a prior (DIVER)."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch

from ld3m.config.keywords import RefineKeywords, keywords_of
from ld3m.config.sample import RefineConfig
from ld3m.data import Dataset
from ld3m.data.images import ImageSet
from ld3m.errors import ConfigError, DataError
from ld3m.evaluation.finish import finish_classes
from ld3m.evaluation.inputs import Reading, is_run, open_inputs
from ld3m.runs.result import Result, load
from ld3m.runtime.fingerprints import fingerprint
from ld3m.sampling.dataset import sample_classes, within_memory
from ld3m.sampling.job import prepare


@keywords_of(RefineConfig, but=("ipc", "selector", "real_images", "statistics", "groups", "weights", "compat"))
def refine(
    inputs: object,
    data: object = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Unpack[RefineKeywords],
) -> Result:
    """Encode the images of a set, noise them to a level and sample them back, each pulled to what it was.

    Args:
        inputs: the set: a Result, the folder of a run, or anything that `ld3m.evaluate` scores, with as many images of
            every class.
        data: the data that the set stands for, as of `ld3m.distill`; that of the run when not given.
        out: folder of a run like any other; None keeps the result in memory only.
        resume: go on with the run in `out`, class by class; settings that are given must be the stored ones.
        overwrite: replace the run in `out`.
        progress: show a progress bar.
        **settings: fields of `ld3m.config.RefineConfig`. `resolution` is the set's own when not given; sets of another
            are resampled.

    Returns:
        The refined set, its latents those that sampling started from. The same seed on the same CPU gives the same
        bytes, interrupted or not.

    Raises:
        ConfigError: settings that are unknown, contradict each other, or differ from those of the resumed run; no data.
        CheckpointError, DataError, InputError: as of `ld3m.evaluate`, and of sets with unequally many images a class.
    """
    started = time.perf_counter()
    source = _data_of(inputs) if data is None else data
    given, real, _ = open_inputs(inputs, source, reading=Reading(resolution=settings.get("resolution")))
    dataset = _as_dataset(given, real)
    own = {"ipc": given.ipc, "selector": "itself", "resolution": given.images.shape[-1]}
    for name, value in own.items():
        if settings.get(name) not in (None, value):  # as a file of settings may have it
            raise ConfigError(f"{name} of a refined set is {value!r}, got {settings[name]!r}; leave it out")
    with tempfile.TemporaryDirectory() as scratch:
        where = {"out": out, "resume": resume, "overwrite": overwrite, "scratch": Path(scratch)}
        sources = {"set": fingerprint((given.images, given.labels))}
        job = prepare(source, {**settings, **own}, **where, kind=RefineConfig, dataset=dataset, more_sources=sources)
        with job.folder:
            seconds_per_class = sample_classes(job, progress, within_memory)
            return finish_classes(replace(job, dataset=real), out, started, seconds_per_class, progress=progress)


def _data_of(inputs: object) -> object:
    """Return the name of the data that a run was made of."""
    result = load(str(inputs)) if is_run(inputs) else inputs
    name = result.config.get("data") if isinstance(result, Result) else None
    if not isinstance(name, str) or name.startswith("<"):
        raise ConfigError("refine needs the data that the set stands for: name them after the set")
    return name


def _as_dataset(given: Result, real: Dataset) -> Dataset:
    """Return the set in place of the training images."""
    counts = torch.bincount(given.labels, minlength=len(given.class_names))
    if counts.min() != counts.max() or not counts.max():
        raise DataError(
            f"a set is refined that has as many images of every class; this one has {int(counts.min())} to "
            f"{int(counts.max())}"
        )
    order = given.labels.argsort(stable=True)
    return replace(real, train=ImageSet(given.images[order], given.labels[order], real.class_names))
