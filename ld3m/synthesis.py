"""Data sets sampled from a prior, class by class: gather statistics, choose latents by them, sample images."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ld3m import pictures, seeds
from ld3m.chain import sample
from ld3m.config import takes, to_plain
from ld3m.errors import ConfigError
from ld3m.preparation import in_memory
from ld3m.result import DISTILLED, Result, load
from ld3m.rows import RowFile
from ld3m.runs import RunFolder, claim
from ld3m.sampling import SELECTORS, ClassStatistics, SampleConfig
from ld3m.storage import load_tensors, save_tensors
from ld3m.synthesis_preparation import SampleJob, prepare_sampling

_GRID_CLASSES, _GRID_PER_CLASS = 100, 10  # what grid.png shows at most


@takes(SampleConfig)
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
    folder = claim(out, resume=resume, overwrite=overwrite)
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            job = prepare_sampling(data, in_memory(settings), RunFolder(Path(scratch), resume=False, overwrite=False))
            _sample_classes(job, progress)
            loaded = load(scratch)
            parameters = {name: tensor.clone() for name, tensor in loaded.parameters.items()}
            return replace(loaded, images=loaded.images.clone(), parameters=parameters, path=None)
    job = prepare_sampling(data, settings, folder)
    seconds_per_class = _sample_classes(job, progress)
    from ld3m.finishing import conclude, measured, rounded
    from ld3m.report import read_mapping

    result = load(out)
    if not (job.folder.path / "grid.png").is_file():
        _draw_grid(job.folder.path, result)
    facts = read_mapping(job.folder.path / "result.json") if seconds_per_class is None else {}
    facts = facts or measured(job, time.perf_counter() - started, seconds_per_class=rounded(seconds_per_class))
    conclude(job, facts, progress)
    return result


def _sample_classes(job: SampleJob, progress: bool) -> float | None:
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
    return seconds


def _row_file(job: SampleJob) -> RowFile:
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
    about = {"class_names": list(dataset.class_names), "config": {"data": job.data_name, **to_plain(config)}}
    rows = RowFile(job.folder.path / DISTILLED, shapes, {k: json.dumps(v, sort_keys=True) for k, v in about.items()})
    rows.write("labels", torch.arange(num_classes).repeat_interleave(config.ipc))
    rows.write("mean", dataset.mean)
    rows.write("std", dataset.std)
    return rows


@torch.no_grad()
def _sample_class(job: SampleJob, label: int, rows: RowFile) -> dict[str, object]:
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


def _statistics(job: SampleJob, label: int, conditioning: Tensor) -> ClassStatistics:
    """Return a class's statistics: stored ones, or new ones, which are stored."""
    config = job.config
    folder = Path(config.statistics) if config.statistics else job.folder.path / "statistics"
    path = folder / f"class-{label:05}.safetensors"
    positions = job.real_images(label)
    about = _provenance(job, label, len(positions))
    if path.is_file():
        tensors, stored = load_tensors(path)
        changed = [f"{k} {stored.get(k)!r} → {v!r}" for k, v in about.items() if stored.get(k) != v]
        if changed:
            own = stored.get("images", about["images"])
            other = f", or use --real-images {own}" if own != about["images"] else ""
            raise ConfigError(
                f"the statistics in {path} are of another run: {', '.join(changed)}; leave them out{other}"
            )
        return ClassStatistics(**tensors, step=config.stop, steps=config.steps)
    if config.statistics:
        raise ConfigError(f"statistics has no {path.name} in {folder}; name a finished run's folder of statistics")
    seed = seeds.derive(config.seed, "statistics", label)
    gather = SELECTORS[config.selector].gather
    statistics = gather(job.prior, _latents(job, positions), conditioning, config, seed)
    save_tensors(path, {"mean": statistics.mean, "std": statistics.std}, about)
    return statistics


def _provenance(job: SampleJob, label: int, num_images: int) -> dict[str, str]:
    """Say everything that a class's statistics follow from."""
    config, dataset = job.config, job.dataset
    about = {"data": dataset.fingerprint, "class": dataset.class_names[label], "images": num_images}
    if config.selector == "kmeans" or num_images < len(dataset.train.of_class(label)):
        about["seed"] = config.seed  # which decides the centres, or the images
    about |= {"resolution": config.resolution, "prior": job.prior_name, "class_id": job.class_ids[label]}
    about |= {"dtype": config.dtype, "steps": config.steps, "stop": config.stop}
    if config.selector == "kmeans":
        about["prototypes"] = config.ipc
    else:
        about["inversion_guidance"] = float(config.inversion_guidance)
    return {key: str(value) for key, value in about.items()}


def _latents(job: SampleJob, positions: Tensor) -> Iterator[Tensor]:
    """Encode the images, some at a time."""
    for part in positions.split(job.config.micro_batch):
        yield job.prior.encode(job.dataset.train.batch(part, job.device) * 2 - 1)


def _draw_grid(path: Path, result: Result) -> None:
    per_class = min(result.ipc, _GRID_PER_CLASS)
    labels = torch.arange(min(len(result.class_names), _GRID_CLASSES))
    shown = (labels[:, None] * result.ipc + torch.arange(per_class)).flatten()
    pictures.save_png(path / "grid.png", pictures.grid(result.images[shown], max(per_class, 10)))
