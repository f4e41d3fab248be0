"""The job of a sampling: everything a class needs, checked before the first second of work."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ld3m.config import ResolvedSampleConfig, SampleConfig, one_of
from ld3m.config.sample import resolve
from ld3m.data import Dataset
from ld3m.errors import CheckpointError, ConfigError, DataError
from ld3m.evaluation.finish import check_protocol
from ld3m.priors import ExecutionConfig, Prior, StyleGAN, load_prior
from ld3m.priors.classes import match_classes
from ld3m.runs.folder import DISTILLED, RunFolder
from ld3m.runs.marker import is_run
from ld3m.runs.opening import Run, open_run, sources_of, with_dtype
from ld3m.runs.result import folder_names
from ld3m.runs.shards import WHOLE, Share, share_of
from ld3m.runtime import processes, seeds
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.reading import expanded
from ld3m.runtime.storage import load_tensors
from ld3m.sampling import SELECTORS
from ld3m.sampling.statistics import OPTIONAL, ClassStatistics
from ld3m.spaces.latent import check_latent_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleJob(Run):
    """A sampling ready to run."""

    config: ResolvedSampleConfig
    folder: RunFolder
    prior: Prior
    class_ids: list[int]
    share: Share = WHOLE

    @property
    def classes(self) -> range:
        """The labels that are sampled here."""
        return self.share.classes(self.dataset.train.num_classes)

    def first_row(self, label: int) -> int:
        """Return where the images of a class begin in the set."""
        return self.share.position(label) * self.config.ipc

    @cached_property
    def folder_names(self) -> list[str]:
        return folder_names(self.dataset.class_names)

    @cached_property
    def prior_name(self) -> str:
        """Of the prior, with a fingerprint of its weights."""
        weights = (tensor for module in self.prior.modules() for tensor in module.state_dict().values())
        return f"{self.prior.name} ({fingerprint(weights)})"

    def real_images(self, label: int) -> Tensor:
        """Return the positions of the real images of a class that are used."""
        members = self.dataset.train.of_class(label)
        generator = seeds.generator(self.config.seed, "real images", label)
        chosen = torch.randperm(len(members), generator=generator)[: self.config.real_images]
        return members[chosen.sort().values]

    def statistics_file(self, label: int) -> Path:
        """Return where a class's statistics are, or go to: the folder that the settings name, or this run's."""
        folder = Path(self.config.statistics) if self.config.statistics else self.folder.path / "statistics"
        return folder / f"class-{label:05}.safetensors"

    def stored_statistics(self, label: int) -> ClassStatistics | None:
        """Return a class's statistics, None where they are still to be gathered.

        Raises:
            ConfigError: they follow from other data, prior or settings, or the folder that the settings name has none.
        """
        path, about = self.statistics_file(label), self.provenance(label)
        if not path.is_file():
            if self.config.statistics:
                raise ConfigError(
                    f"statistics has no {path.name} in {path.parent}; name a finished run's folder of statistics"
                )
            return None
        tensors, stored = load_tensors(path)
        if tensors.keys() - set(OPTIONAL) != {"mean", "std"}:
            raise CheckpointError(f"{path} holds no statistics of a class, mean and std, but {sorted(tensors)[:5]}")
        changed = [f"{k} {stored.get(k)!r} → {v!r}" for k, v in about.items() if stored.get(k) != v]
        if changed:
            own = stored.get("images", about["images"])
            other = f", or use --real-images {own}" if own != about["images"] else ""
            raise ConfigError(
                f"the statistics in {path} are of another run: {', '.join(changed)}; leave them out{other}"
            )
        config = self.config
        step = config.steps - 1 if SELECTORS[config.selector].is_from_noise else config.stop
        return ClassStatistics(**tensors, step=step, steps=config.steps, spacing=config.spacing)

    def statistics_fingerprint(self) -> str | None:
        """Return a fingerprint of the statistics that the settings name; None where they name none, or all is done."""
        if not self.config.statistics or (self.folder.is_resumed and (self.folder.path / DISTILLED).is_file()):
            return None
        found = [self.stored_statistics(label) for label in range(self.dataset.train.num_classes)]
        return fingerprint([t for one in found if one is not None for t in (one.mean, one.std)])

    def provenance(self, label: int) -> dict[str, str]:
        """Say everything that a class's statistics follow from."""
        config, dataset, num_images = self.config, self.dataset, len(self.real_images(label))
        selector = SELECTORS[config.selector]
        about = {"data": dataset.fingerprint, "class": dataset.class_names[label], "images": num_images}
        if selector.is_seeded or num_images < len(dataset.train.of_class(label)):
            about["seed"] = config.seed  # which decides the centres, or the images
        about |= {"resolution": config.resolution, "prior": self.prior_name, "class_id": self.class_ids[label]}
        about |= {"dtype": config.dtype, "steps": config.steps, "stop": config.stop}
        if config.spacing != "leading":  # which earlier releases had alone
            about["spacing"] = config.spacing
        about |= selector.follows(config)
        return {key: str(value) for key, value in about.items()}


# Of a job, and the fingerprints of what it follows from beside its data
Check = Callable[[SampleJob, Mapping[str, str]], None]


def prepare(
    data: object,
    settings: Mapping[str, object],
    *,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    scratch: Path,
    shard: object = None,
    check: Check | None = None,
    kind: type[SampleConfig] = SampleConfig,
    dataset: Dataset | None = None,
    more_sources: Mapping[str, str] = MappingProxyType({}),
) -> SampleJob:
    """Check settings, folder, prior and data, in this order, and build what the classes need.

    Args:
        scratch: empty folder that stands for `out` where there is none.
        shard: as of `sample_dataset`.
        check: called before anything is written.
        kind: of the settings.
        dataset: what is sampled from in place of the data, at the resolution of the settings.
        more_sources: fingerprints of what else the run follows from.
    """
    share = share_of(shard)
    if shard is not None:
        out, resume = _open_shard(share, out, overwrite)
    opening = open_run(data, settings, kind, out=out, resume=resume, overwrite=overwrite)
    folder = opening.folder or _scratch_or_other(opening.path, scratch, resume, overwrite)
    one_of(opening.config.selector, "selector", tuple(SELECTORS))
    asked, device = with_dtype(opening.config, opening.device), opening.device
    is_said = asked.real_images is not None  # by the user, or by the run that is resumed
    prior = _open_prior(asked, opening.prior, device)
    config = resolve(asked, prior.native_resolution, _of_method(asked, prior))
    check_protocol(config.evaluate, config.resolution)
    prior.require_resolution(config.resolution)
    check_latent_size(config.resolution // prior.downsample, prior)
    dataset = dataset or opening.load_data(config)
    config = _check_images(config, dataset, is_said)
    class_ids = match_classes(prior, dataset.class_names, dataset.wnids, config.class_ids, is_required=True)
    share.classes(dataset.train.num_classes)  # which refuses more shards than classes
    job = SampleJob(config, opening.data_name, dataset, folder, device, prior, class_ids, share)
    sources = sources_of(prior, statistics=job.statistics_fingerprint(), **more_sources)
    if check is not None:
        check(job, sources)
    processes.from_main(lambda: folder.start(opening.data_name, config, dataset.fingerprint, sources), "begin the run")
    return job


def _open_shard(share: Share, out: str | Path | None, overwrite: bool) -> tuple[Path, bool]:
    """Return the folder of a shard, and whether it is there already: then it is gone on with."""
    if out is None:
        raise ConfigError("a shard needs out=, the folder of the run that the shards are merged to")
    if processes.world_size() > 1:
        raise ConfigError("shard is for commands on their own, and these processes share one; leave one of the two out")
    folder = share.folder(expanded(out, "out"))
    if is_run(expanded(out, "out")) and not is_run(folder):
        raise ConfigError(f"out {out} is a run already, not one in shards; choose another --out")
    return folder, is_run(folder) and not overwrite


def _scratch_or_other(path: Path | None, scratch: Path, resume: bool, overwrite: bool) -> RunFolder:
    """Return the folder of a run without one, or what stands for the main process's in another one."""
    if path is not None:
        return RunFolder(path, resume=resume, overwrite=overwrite)
    if processes.world_size() > 1:
        raise ConfigError("several processes sample into a folder that all of them see: give out=, or start one")
    return RunFolder(scratch, resume=False, overwrite=False)


def _open_prior(config: SampleConfig, given: Prior | StyleGAN | None, device: torch.device) -> Prior:
    """Open the prior, which has classes, with the default execution."""
    if isinstance(given, StyleGAN):
        raise ConfigError(f"sampling takes a latent diffusion model as prior, got {given.name}; choose one that fits")
    options = {"config": config.prior_config} if config.prior_config else {}
    prior = load_prior(given or config.prior, device=device, dtype=config.dtype or "float32", **options)
    if prior.num_classes is None:
        raise ConfigError(f"sampling by class needs a prior with classes, and {prior.name} is unconditional")
    return copy.copy(prior).set_execution(
        ExecutionConfig()
    )  # on the same weights: one that was given runs on as it did


def _of_method(config: SampleConfig, prior: Prior) -> dict[str, object]:
    """Return what selector and prior fill in where the settings leave it open."""
    selector = SELECTORS[config.selector]
    if config.pull and not selector.pull:
        pulling = ", ".join(name for name, one in SELECTORS.items() if one.pull)
        raise ConfigError(f"pull is for {pulling}, and the selector is {config.selector!r}; leave it out")
    found: dict[str, object] = {"pull": selector.pull}
    if selector.window is not None:
        found["pull_steps"] = tuple(min(config.steps - 1, round(share * config.steps)) for share in selector.window)
    if prior.learns_variance:
        found["variance"] = "learned"
    return found


def _check_images(config: ResolvedSampleConfig, dataset: Dataset, is_said: bool) -> ResolvedSampleConfig:
    """Refuse classes with too few images; say how many of the largest are used, unless the settings said it."""
    counts = torch.bincount(dataset.train.labels, minlength=dataset.train.num_classes)
    name, fewest, most = dataset.class_names[int(counts.argmin())], int(counts.min()), int(counts.max())
    wanted = SELECTORS[config.selector].fewest
    if config.evaluate != "none" or wanted is None:  # as many real images are compared with, or clustered
        dataset.train.require_per_class(config.ipc, "--ipc")
    used = min(most, config.real_images or most)
    needed = config.ipc if wanted is None else wanted
    if min(fewest, used) < needed:
        reason = f"class {name!r} has {fewest}" if fewest < needed else f"real_images leaves {used}"
        raise DataError(
            f"selector {config.selector!r} at ipc {config.ipc} needs at least {needed} real images of every class; "
            f"{reason}: add images, or leave the class out"
        )
    if used < most and not is_said and needed:
        logger.info("at most %d of up to %d real images of a class are used; --real-images sets how many", used, most)
    return replace(config, real_images=used)
