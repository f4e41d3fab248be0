"""From settings to everything that sampling a class needs, checked before the first second of work."""

import copy
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ld3m.data import Dataset
from ld3m.distillation.job import (
    check_latent_size,
    check_outside,
    check_protocol,
    load_data,
    name_of,
    split_prior,
    stored_or_given,
    whole_paths,
)
from ld3m.errors import ConfigError, DataError
from ld3m.priors import ExecutionConfig, Prior, load_prior
from ld3m.priors.classes import match_classes
from ld3m.runs.folder import RunFolder
from ld3m.runs.result import folder_names
from ld3m.runtime import seeds
from ld3m.runtime.devices import usable
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.storage import load_tensors
from ld3m.sampling import ClassStatistics, SampleConfig, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleJob:
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

    @cached_property
    def prior_name(self) -> str:
        """Of the prior, with a fingerprint of its weights."""
        weights = (tensor for module in self.prior.modules() for tensor in module.state_dict().values())
        return f"{self.prior.name} ({fingerprint(weights)})"

    def real_images(self, label: int) -> Tensor:
        """Return the positions of the real images of a class that are used."""
        members = self.dataset.train.of_class(label)
        draw = seeds.generator(self.config.seed, "real images", label)
        chosen = torch.randperm(len(members), generator=draw)[: self.config.real_images]
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
        changed = [f"{k} {stored.get(k)!r} → {v!r}" for k, v in about.items() if stored.get(k) != v]
        if changed:
            own = stored.get("images", about["images"])
            other = f", or use --real-images {own}" if own != about["images"] else ""
            raise ConfigError(
                f"the statistics in {path} are of another run: {', '.join(changed)}; leave them out{other}"
            )
        return ClassStatistics(**tensors, step=self.config.stop, steps=self.config.steps)

    def provenance(self, label: int) -> dict[str, str]:
        """Say everything that a class's statistics follow from."""
        config, dataset, num_images = self.config, self.dataset, len(self.real_images(label))
        about = {"data": dataset.fingerprint, "class": dataset.class_names[label], "images": num_images}
        if config.selector == "kmeans" or num_images < len(dataset.train.of_class(label)):
            about["seed"] = config.seed  # which decides the centres, or the images
        about |= {"resolution": config.resolution, "prior": self.prior_name, "class_id": self.class_ids[label]}
        about |= {"dtype": config.dtype, "steps": config.steps, "stop": config.stop}
        if config.selector == "kmeans":
            about["prototypes"] = config.ipc
        else:
            about["inversion_guidance"] = float(config.inversion_guidance)
        return {key: str(value) for key, value in about.items()}


def prepare_sampling(data: object, settings: dict[str, object], folder: RunFolder) -> SampleJob:
    """Check settings, folder, prior and data, in this order, and build what the classes need."""
    check_outside(folder, data)
    settings, prior = split_prior(whole_paths(settings))
    data_name = name_of(data)
    config = stored_or_given(folder, settings, SampleConfig)
    device = usable(config.device)
    config = replace(config, dtype=config.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    prior = load_prior(
        prior or config.prior,
        device=device,
        dtype=getattr(torch, config.dtype),
        **({"config": config.prior_config} if config.prior_config else {}),
    )
    prior = copy.copy(prior).set_execution(
        ExecutionConfig()
    )  # on the same weights: one that was given runs on as it did
    if prior.num_classes is None:
        raise ConfigError(f"sampling by class needs a prior with classes, and {prior.name} is unconditional")
    is_said = config.real_images is not None  # by the user, or by the run that is resumed
    config = resolve(config, prior.native_resolution)
    check_protocol(config.evaluate, config.resolution)
    prior.require_resolution(config.resolution)
    check_latent_size(config.resolution // prior.downsample, prior)
    dataset = load_data(data, config)
    config = _check_images(config, dataset, is_said)
    class_ids = match_classes(prior, dataset.class_names, dataset.wnids, config.class_ids, is_required=True)
    job = SampleJob(config, data_name, dataset, prior, class_ids, folder, device)
    if config.statistics and not folder.is_resumed:
        for label in range(dataset.train.num_classes):  # before the folder is touched
            job.stored_statistics(label)
    folder.start(data_name, config, dataset.fingerprint)
    return job


def _check_images(config: SampleConfig, dataset: Dataset, is_said: bool) -> SampleConfig:
    """Refuse classes with too few images; say how many of the largest are used, unless the settings said it."""
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
    if used < most and not is_said:
        logger.info("at most %d of up to %d real images of a class are used; --real-images sets how many", used, most)
    return replace(config, real_images=used)
