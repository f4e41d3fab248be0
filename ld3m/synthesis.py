"""Data sets sampled from a prior, class by class: gather statistics, choose latents by them, sample images."""

import dataclasses
import inspect
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ld3m import data as data_room
from ld3m import pictures, seeds
from ld3m.chain import sample
from ld3m.data import Dataset
from ld3m.devices import usable
from ld3m.errors import ConfigError, DataError
from ld3m.preparation import (
    check_latent_size,
    check_protocol,
    check_resolution,
    name_of,
    split_prior,
    stored_or_given,
)
from ld3m.priors import Prior, load_prior
from ld3m.priors.classes import match_classes
from ld3m.result import DISTILLED, Result, folder_names, load
from ld3m.rows import RowFile
from ld3m.runs import RunFolder
from ld3m.sampling import SELECTORS, ClassStatistics, SampleConfig, resolve
from ld3m.storage import load_tensors, save_tensors

logger = logging.getLogger(__name__)
_GRID_CLASSES, _GRID_PER_CLASS = 100, 10  # what grid.png shows at most


def sample_dataset(
    data: object = "builtin",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **settings: object,
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
        **settings: fields of `ld3m.sampling.SampleConfig`.

    Returns:
        The sampled set; its latents are the chosen ones, at their level of noise. The same seed on the same CPU gives
        the same bytes, interrupted or not.

    Raises:
        ConfigError: settings that are unknown, contradict each other, or differ from those of the resumed run.
        DataError: data that cannot be read or is too small.
        InputError: classes of the data that are none of the prior's.
    """
    started = time.perf_counter()
    if out is None:
        if resume or overwrite:
            raise ConfigError("resume and overwrite need out=, the folder of the run")
        with tempfile.TemporaryDirectory() as scratch:
            job = _prepare(data, settings, RunFolder(Path(scratch), resume=False, overwrite=False))
            _sample_classes(job, progress)
            loaded = load(scratch)
            return replace(loaded, images=loaded.images.clone(), latents=loaded.latents.clone(), path=None)
    job = _prepare(data, settings, RunFolder(Path(out), resume=resume, overwrite=overwrite))
    seconds_per_class = _sample_classes(job, progress)
    from ld3m.finishing import conclude, measured, rounded
    from ld3m.report import read_mapping

    facts = read_mapping(job.folder.path / "result.json") if seconds_per_class is None else {}
    facts = facts or measured(job, time.perf_counter() - started, seconds_per_class=rounded(seconds_per_class))
    conclude(job, facts, progress)
    return load(out)


@dataclass(frozen=True)
class _Job:
    """A sampling ready to run. `config` is resolved: it says everything that decides the outcome."""

    config: SampleConfig
    data_name: str
    dataset: Dataset
    prior: Prior
    class_ids: list[int]
    folder: RunFolder
    device: torch.device

    @cached_property
    def folder_names(self) -> list[str]:
        return folder_names(self.dataset.class_names)


def _prepare(data: object, settings: dict[str, object], folder: RunFolder) -> _Job:
    """Check settings, folder, prior and data, in this order, and build what the classes need."""
    settings, prior = split_prior(settings)
    data_name = name_of(data)
    config = stored_or_given(folder, data_name, settings, SampleConfig)
    device = usable(config.device)
    prior = load_prior(
        prior or config.prior,
        device=device,
        dtype=getattr(torch, config.dtype or "float32"),
        **({"config": config.prior_config} if config.prior_config else {}),
    )
    if prior.num_classes is None:
        raise ConfigError(f"sampling by class needs a prior with classes, and {prior.name} is unconditional")
    config = resolve(config, prior.native_resolution)
    check_protocol(config.evaluate, config.resolution)
    check_resolution(config.resolution, prior)
    check_latent_size(config.resolution // prior.downsample, prior)
    dataset = data_room.load(data, resolution=config.resolution, holdout=config.holdout, strict=config.strict)
    config = _check_images(config, dataset)
    if config.evaluate != "none" and dataset.test is None:
        raise DataError(f"evaluate {config.evaluate!r} needs a test split; give holdout above 0, or evaluate none")
    class_ids = match_classes(prior, dataset.class_names, dataset.wnids, config.class_ids, is_required=True)
    folder.start(data_name, config)
    return _Job(config, data_name, dataset, prior, class_ids, folder, device)


def _check_images(config: SampleConfig, dataset: Dataset) -> SampleConfig:
    """Refuse classes with too few images; say how many of the largest are used."""
    counts = torch.bincount(dataset.train.labels, minlength=dataset.train.num_classes)
    name, fewest, most = dataset.class_names[int(counts.argmin())], int(counts.min()), int(counts.max())
    if config.evaluate != "none" or config.selector == "kmeans":  # as many real images are compared with, or clustered
        dataset.train.require_per_class(config.ipc, "--ipc")
    used = min(most, config.real_images or most)
    needed = config.ipc if config.selector == "kmeans" else 2
    if min(fewest, used) < needed:
        reason = f"class {name!r} has {fewest}" if fewest < needed else f"real_images leaves {used}"
        raise DataError(
            f"selector {config.selector!r} at ipc {config.ipc} needs at least {needed} real images of every class; "
            f"{reason}: add images, or leave the class out"
        )
    if used < most:
        logger.info("at most %d of up to %d real images of a class are used: real_images says how many", used, most)
    return replace(config, real_images=used)


def _sample_classes(job: _Job, progress: bool) -> float | None:
    """Sample the classes that are not there yet; return the seconds each took, None when nothing was left."""
    path = job.folder.path
    if (path / DISTILLED).is_file():
        return None
    num_classes = job.dataset.train.num_classes
    rows = _row_file(job)
    stored = job.folder.load_checkpoint() if job.folder.is_resumed else None
    first = 0 if stored is None or rows.is_new else stored[0]
    started = time.perf_counter()
    bar = tqdm(
        range(first, num_classes), "sampling", initial=first, total=num_classes, disable=None if progress else True,
        unit="class",
    )  # fmt: skip
    for label in bar:
        line = _sample_class(job, label, rows)
        job.folder.log({"iteration": label, "class": job.dataset.class_names[label], **line})
        job.folder.save_checkpoint(label + 1, {})
    seconds = (time.perf_counter() - started) / max(1, num_classes - first)
    rows.finish()
    _draw_grid(path, load(path))
    return seconds


def _row_file(job: _Job) -> RowFile:
    """Open the distilled set, and fill in what is known before the first class."""
    config, dataset, prior = job.config, job.dataset, job.prior
    num_classes = dataset.train.num_classes
    count, side = num_classes * config.ipc, config.resolution // prior.downsample
    shapes = {
        "images": (torch.float32, (count, 3, config.resolution, config.resolution)),
        "labels": (torch.int64, (count,)),
        "latents": (torch.float32, (count, prior.latent_channels, side, side)),
        "mean": (torch.float32, (3,)),
        "std": (torch.float32, (3,)),
    }
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    about = {"class_names": list(dataset.class_names), "config": {"data": job.data_name, **settings}}
    rows = RowFile(job.folder.path / DISTILLED, shapes, {k: json.dumps(v, sort_keys=True) for k, v in about.items()})
    rows.write("labels", torch.arange(num_classes).repeat_interleave(config.ipc))
    rows.write("mean", dataset.mean)
    rows.write("std", dataset.std)
    return rows


@torch.no_grad()
def _sample_class(job: _Job, label: int, rows: RowFile) -> dict[str, object]:
    """Write the images of one class; return what is worth a line in the log."""
    config, started = job.config, time.perf_counter()
    conditioning = job.prior.embed(torch.tensor([job.class_ids[label]])).float()
    statistics = _statistics(job, label, conditioning)
    seed = seeds.derive(config.seed, "select", label)
    chosen, facts = SELECTORS[config.selector].select(statistics, config, seed, job.device)
    sampled = sample(
        job.prior,
        replace(chosen, latents=chosen.latents.to(job.device)),
        conditioning.expand(config.ipc, -1, -1),
        guidance_scale=config.guidance_scale,
        compat=config.compat,
        micro_batch=config.micro_batch,
    )
    images = torch.cat([job.prior.decode(part).float().cpu() for part in sampled.split(config.micro_batch)])
    images = ((images + 1) / 2).clamp(0, 1)
    for k, image in enumerate(images):
        path = job.folder.path / "images" / job.folder_names[label] / f"{k}.png"
        pictures.save_png(path, pictures.to_pillow(image))
    rows.write("latents", chosen.latents, label * config.ipc)
    rows.write("images", images, label * config.ipc)
    return {**facts, "seconds": round(time.perf_counter() - started, 4)}


def _statistics(job: _Job, label: int, conditioning: Tensor) -> ClassStatistics:
    """Return a class's statistics: stored ones, or new ones, which are stored."""
    config = job.config
    folder = Path(config.statistics) if config.statistics else job.folder.path / "statistics"
    path = folder / f"class-{label:05}.safetensors"
    positions = _real_images(job, label)
    about = _provenance(job, label, len(positions))
    if path.is_file():
        tensors, stored = load_tensors(path)
        changed = [f"{k} {stored.get(k)!r} → {v!r}" for k, v in about.items() if stored.get(k) != v]
        if changed:
            raise ConfigError(f"the statistics in {path} are of another run: {', '.join(changed)}; leave them out")
        return ClassStatistics(**tensors, step=config.stop, steps=config.steps)
    if config.statistics:
        raise ConfigError(f"statistics has no {path.name} in {folder}; name a finished run's folder of statistics")
    seed = seeds.derive(config.seed, "statistics", label)
    gather = SELECTORS[config.selector].gather
    statistics = gather(job.prior, _latents(job, positions), conditioning, config, seed)
    save_tensors(path, {"mean": statistics.mean, "std": statistics.std}, about)
    return statistics


def _provenance(job: _Job, label: int, num_images: int) -> dict[str, str]:
    """Say everything that a class's statistics follow from."""
    config, dataset = job.config, job.dataset
    about = {"data": job.data_name, "class": dataset.class_names[label], "images": num_images, "seed": config.seed}
    about |= {"resolution": config.resolution, "prior": job.prior.name, "class_id": job.class_ids[label]}
    about |= {"dtype": config.dtype, "steps": config.steps, "stop": config.stop}
    if config.selector == "kmeans":
        about["prototypes"] = config.ipc
    else:
        about["inversion_guidance"] = float(config.inversion_guidance)
    return {key: str(value) for key, value in about.items()}


def _real_images(job: _Job, label: int) -> Tensor:
    """Return the positions of the real images of a class that are used."""
    members = job.dataset.train.of_class(label)
    draw = seeds.generator(job.config.seed, "real images", label)
    chosen = torch.randperm(len(members), generator=draw)[: job.config.real_images]
    return members[chosen.sort().values]


def _latents(job: _Job, positions: Tensor) -> Iterator[Tensor]:
    """Encode the images, some at a time."""
    for part in positions.split(job.config.micro_batch):
        yield job.prior.encode(job.dataset.train.batch(part).to(job.device) * 2 - 1)


def _draw_grid(path: Path, result: Result) -> None:
    per_class = min(result.ipc, _GRID_PER_CLASS)
    labels = torch.arange(min(len(result.class_names), _GRID_CLASSES))
    shown = (labels[:, None] * result.ipc + torch.arange(per_class)).flatten()
    pictures.save_png(path / "grid.png", pictures.grid(result.images[shown], max(per_class, 10)))


_own = [p for p in inspect.signature(sample_dataset).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
sample_dataset.__signature__ = inspect.Signature(
    [
        *_own,
        *(
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields(SampleConfig)
        ),
    ]
)
del _own
