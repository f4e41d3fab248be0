"""From settings to everything an iteration needs, checked before the first second of work."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ld3m import data as data_room
from ld3m import networks
from ld3m.chain.schedule import INJECTIONS, SCHEDULES
from ld3m.config import distill as configuration
from ld3m.config.distill import STARTS, Config, DistillConfig, RunConfig
from ld3m.data import Dataset
from ld3m.distillation.experts import Experts, load_experts, train_experts
from ld3m.distillation.objectives import ClassMatching, Objective, TrajectoryMatching
from ld3m.errors import ConfigError, DataError
from ld3m.evaluation import PROTOCOLS
from ld3m.memory.plan import Plan, plan_memory
from ld3m.priors import ExecutionConfig, Prior, StyleGAN, load_prior, load_stylegan
from ld3m.priors.classes import match_classes
from ld3m.runs.folder import RunFolder, claim
from ld3m.runtime.devices import usable
from ld3m.spaces import ChainSettings, LatentSpace, PixelSpace, Space
from ld3m.spaces.glad_start import check_generator, generator_name, glad_space, plan_glad
from ld3m.spaces.start import initial_conditioning, initial_images, initial_latents

logger = logging.getLogger(__name__)
_PATHS = ("prior", "prior_config", "experts", "init", "statistics")  # settings that may name a file or a folder


@dataclass(frozen=True)
class Job:
    """A distillation ready to run. `config` is resolved: it says everything that decides the outcome; `space` is None
    once nothing is left to be rendered."""

    config: DistillConfig
    data_name: str
    dataset: Dataset
    space: Space | None
    plan: Plan | None
    folder: RunFolder | None
    device: torch.device

    def stored_settings(self) -> dict[str, object]:
        """Return what is stored with the distilled set: nothing that differs between equal runs."""
        return {"data": self.data_name, **configuration.to_plain(self.config)}


def prepare(
    data: object, settings: Mapping[str, object], *, out: str | Path | None, resume: bool, overwrite: bool
) -> Job:
    """Check settings, folder, prior and data, in this order, and build what the loop needs."""
    folder = claim(out, resume=resume, overwrite=overwrite)
    check_outside(folder, data)
    settings, prior = split_prior(whole_paths(settings if folder else in_memory(settings)))
    data_name = name_of(data)
    config = stored_or_given(folder, settings, DistillConfig)
    configuration.one_of(config.injection, "injection", INJECTIONS)
    configuration.one_of(config.schedule, "schedule", tuple(SCHEDULES))
    is_set = config.init not in STARTS
    if out is not None and is_set and Path(config.init).resolve() == Path(out).resolve():
        raise ConfigError(
            f"init {config.init} is the folder of this run, which replaces what is there; choose another out"
        )
    device = usable(config.device)
    # A generator's filters would be rounded as well: it stays in float32.
    is_cuda = device.type == "cuda"
    dtype = config.dtype or ("bfloat16" if is_cuda and config.space != "glad" else "float32")
    config = replace(config, dtype=dtype, compile=is_cuda if config.compile is None else config.compile)
    prior = _open_prior(config, prior, device)
    config = replace(config, cuda_graphs=config.space == "ld3m" and prior.frozen.graphs is not None)
    num_layers = len(prior.layers) if isinstance(prior, StyleGAN) else None
    config = configuration.resolve(config, prior.native_resolution, num_layers)
    _check(config, prior)
    dataset = load_data(data, config)
    dataset.train.require_per_class(config.ipc, "--ipc")
    if config.algorithm == "mtt":
        _check_experts(config, dataset, folder)
    plan = None
    if config.space != "pixel":
        plan = _plan(config, prior, dataset)
        logger.info("%s", plan)
        config = replace(config, retain=plan.retain)
    space = _space(config, prior, dataset, plan, device)
    if folder is not None:
        folder.start(data_name, config, dataset.fingerprint)
    return Job(config, data_name, dataset, space, plan, folder, device)


def name_of(data: object) -> str:
    """Return what stands for the data in a run's files: the whole path of a file or folder."""
    if not isinstance(data, str | Path):
        return f"<{type(data).__name__}>"
    return str(Path(data).resolve()) if str(data) != "builtin" and Path(data).exists() else str(data)


def whole_paths(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings with paths from the root: a run can be resumed from another folder."""
    return {
        name: name_of(value) if name in _PATHS and isinstance(value, str | Path) and value not in STARTS else value
        for name, value in settings.items()
    }


def check_outside(folder: RunFolder | None, data: object) -> None:
    """Raise where the run's own images would become images of its data."""
    if folder is not None and data_room.would_read(data, folder.path):
        raise ConfigError(
            f"out {folder.path} lies in the data {data}, where it would be read as a class; choose an --out elsewhere"
        )


def in_memory(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of a run without a folder: it ends without evaluation, whose report would have no place."""
    if settings.get("evaluate") not in (None, "none"):
        raise ConfigError(
            f"evaluate {settings['evaluate']!r} needs out=, where its report goes; or pass the result to ld3m.evaluate"
        )
    return {**settings, "evaluate": "none"}


def load_data(data: object, config: RunConfig) -> Dataset:
    """Load the data as the settings say, with a test split where the run ends with an evaluation."""
    dataset = data_room.load(data, resolution=config.resolution, holdout=config.holdout, strict=config.strict)
    if config.evaluate != "none" and dataset.test is None:
        raise DataError(f"evaluate {config.evaluate!r} needs a test split; give holdout above 0, or evaluate none")
    return dataset


def split_prior(settings: dict[str, object]) -> tuple[dict[str, object], Prior | StyleGAN | None]:
    """Take a loaded prior out of the settings; its name stands for it in what is stored, and it keeps its dtype."""
    prior = settings.get("prior")
    if not isinstance(prior, Prior | StyleGAN):
        return settings, None
    return settings | {"prior": prior.name, "dtype": settings.get("dtype") or prior.dtype}, prior


def _open_prior(config: DistillConfig, given: Prior | StyleGAN | None, device: torch.device) -> Prior | StyleGAN:
    """Load the prior that the space takes, run as the settings say."""
    options = {"device": device, "dtype": getattr(torch, config.dtype)}
    if given is not None and isinstance(given, StyleGAN) != (config.space == "glad"):
        wanted = "StyleGAN" if config.space == "glad" else "latent diffusion model"
        raise ConfigError(f"space {config.space!r} takes a {wanted} as prior, got {given.name}; choose one that fits")
    if config.space == "glad":
        return load_stylegan(given or generator_name(config), **options)
    switches = given.frozen.execution if given else None  # those not named here stay as they are
    execution = replace(switches or ExecutionConfig(), attention=config.attention, cuda_graphs=config.cuda_graphs)
    if config.prior_config:
        options["config"] = config.prior_config
    prior = load_prior(given or config.prior, **options)
    return copy.copy(prior).set_execution(execution)  # on the same weights: one that was given runs on as it did


def stored_or_given(folder: RunFolder | None, settings: Mapping[str, object], kind: type[Config]) -> Config:
    """Make the config of a new run, or take that of the resumed one, from which no setting may differ."""
    if folder is None or not folder.is_resumed:
        return configuration.build(settings, kind())
    _, stored = folder.stored(kind)
    given = configuration.build({k: v for k, v in settings.items() if v is not None}, base=stored)
    changed = configuration.differences(stored, given)
    if changed:
        raise ConfigError(
            f"resume needs the settings of the stored run; these differ: {', '.join(changed)}. Leave them out, or "
            "start anew with another --out"
        )
    return stored


def _check(config: DistillConfig, prior: Prior | StyleGAN) -> None:
    """Refuse what can be refused before any data is read."""
    networks.blueprint(config.network, num_classes=10, resolution=config.resolution, width=config.width)
    check_protocol(config.evaluate, config.resolution)
    if config.space == "glad":
        check_generator(config, prior)
        return
    if config.space != "pixel" and config.latent_size is None:
        prior.require_resolution(config.resolution)
    if config.space == "ld3m":
        check_latent_size(config.latent_size or config.resolution // prior.downsample, prior)
    if "latents" not in config.learn and (config.space != "ld3m" or prior.conditioning_shape is None):
        reason = f"{prior.name} is unconditional" if config.space == "ld3m" else f"space {config.space!r} has no chain"
        raise ConfigError(f"{reason}, so learn needs 'latents'; got {list(config.learn)}")
    if config.class_ids is not None:
        match_classes(prior, config.class_ids, [None] * len(config.class_ids), config.class_ids)


def check_latent_size(latent_size: int, prior: Prior) -> None:
    if latent_size % prior.latent_multiple:
        raise ConfigError(
            f"{prior.name} takes latents whose side is a multiple of {prior.latent_multiple}, got {latent_size}; "
            f"choose a resolution divisible by {prior.latent_multiple * prior.downsample}, or latent_size"
        )


def check_protocol(name: str, resolution: int) -> None:
    """Raise unless the protocol, or "none", can end a run and its networks take images of that size."""
    known = [known for known, protocol in PROTOCOLS.items() if protocol.labels == "hard"]  # a run has no teacher
    configuration.one_of(name, "evaluate", (*known, "none"))
    for network in PROTOCOLS[name].networks if name != "none" else ():
        try:
            networks.blueprint(network, num_classes=10, resolution=resolution)
        except ConfigError as error:
            raise ConfigError(
                f"evaluate {name!r} cannot be done at {resolution} px: {error}; choose another resolution, or evaluate "
                "none"
            ) from error


def _plan(config: DistillConfig, prior: Prior | StyleGAN, dataset: Dataset) -> Plan:
    if config.space == "glad":
        return plan_glad(config, prior, dataset.train.num_classes)
    return plan_memory(
        prior,
        resolution=config.resolution,
        steps=config.steps if config.space == "ld3m" else 0,
        ipc=config.ipc,
        num_classes=dataset.train.num_classes,
        algorithm=config.algorithm,
        budget=config.memory_budget,
        guidance_scale=config.guidance_scale,
        network=config.network,
        width=config.width,
        real_batch=min(config.real_batch, int(torch.bincount(dataset.train.labels).max())),
        student_steps=config.student_steps,
        latent_size=config.latent_size,
        retain=config.retain,
    )


def _space(
    config: DistillConfig, prior: Prior | StyleGAN, dataset: Dataset, plan: Plan | None, device: torch.device
) -> Space:
    if config.space == "glad":
        return glad_space(config, prior, dataset, plan)
    images = initial_images(config, dataset)
    if config.space == "pixel":
        return PixelSpace(images.to(device), dataset.mean, dataset.std)
    chain = None
    if config.space == "ld3m":
        chain = ChainSettings(
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            injection=config.injection,
            schedule=config.schedule,
            noise=config.noise,
            retain=plan.retain,
            micro_batch=plan.micro_batch,
            seed=config.seed,
        )
    return LatentSpace(
        prior,
        initial_latents(config, prior, images, min(plan.micro_batch, plan.decoder_batch or 16, 16)),
        initial_conditioning(config, prior, dataset) if chain else None,
        learn=config.learn if chain else ("latents",),
        resolution=config.resolution,
        chain=chain,
        decoder_batch=plan.decoder_batch,
    )


def objective_of(job: Job, progress: bool) -> Objective:
    """Build the matching objective; for trajectories without `experts`, train them first."""
    config, dataset = job.config, job.dataset
    if config.algorithm != "mtt":
        in_flight, chunk = dataset.train.num_classes, None
        if job.plan is not None:
            in_flight, chunk = job.plan.classes_in_flight, job.plan.real_chunk
        options = {"classes_in_flight": in_flight, "real_chunk": chunk, "device": job.device}
        return ClassMatching(job.space, dataset, config, **options)
    experts = _open_experts(config.experts or _train_experts(job, progress), config, dataset)
    return TrajectoryMatching(job.space, dataset, config, experts=experts, device=job.device)


def _check_experts(config: DistillConfig, dataset: Dataset, folder: RunFolder | None) -> None:
    """Refuse experts that cannot serve before the run's folder is touched, and before any are trained."""
    needed = config.max_start_epoch - 1 + config.expert_epochs
    if config.experts is not None:
        _open_experts(config.experts, config, dataset)
    elif folder is None:
        raise ConfigError("algorithm mtt needs experts=, a folder of trajectories, or out= to train and keep them in")
    elif config.expert_training_epochs < needed:
        raise ConfigError(
            f"expert_training_epochs is at least max_start_epoch - 1 + expert_epochs = {needed}, "
            f"got {config.expert_training_epochs}; train experts for longer, or lower one of the two"
        )


def _open_experts(folder: str | Path, config: DistillConfig, dataset: Dataset) -> Experts:
    return load_experts(
        folder,
        network=config.network,
        width=config.width,
        num_classes=dataset.train.num_classes,
        resolution=dataset.resolution,
        epochs=config.max_start_epoch - 1 + config.expert_epochs,
        fingerprint=dataset.fingerprint,
    )


def _train_experts(job: Job, progress: bool) -> Path:
    """Train what the preset says under the run's folder, or reuse what an interrupted run left there."""
    folder = job.folder.path / "experts"
    train_experts(
        job.dataset,
        folder,
        network=job.config.network,
        width=job.config.width,
        num_experts=job.config.num_experts,
        epochs=job.config.expert_training_epochs,
        augment=job.config.augment,
        seed=job.config.seed,
        device=job.device,
        progress=progress,
    )
    return folder
