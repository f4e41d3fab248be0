"""The job of a distillation: everything an iteration needs, checked before the first second of work."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ld3m import networks
from ld3m.chain.schedule import INJECTIONS, SCHEDULES
from ld3m.config import INITS, DistillConfig, ResolvedDistillConfig, one_of, resolve
from ld3m.data import Dataset
from ld3m.distillation.experts import Experts, load_experts, train_experts
from ld3m.distillation.objectives import ClassMatching, Objective, TrajectoryMatching
from ld3m.errors import ConfigError
from ld3m.evaluation.finish import check_protocol
from ld3m.matching import LOSSES
from ld3m.memory.plan import Plan
from ld3m.priors import Prior, StyleGAN
from ld3m.runs.folder import DISTILLED, RunFolder
from ld3m.runs.opening import Run, open_run, sources_of, with_dtype
from ld3m.runs.result import load
from ld3m.spaces import Space, setup_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job(Run):
    """A distillation ready to run."""

    config: ResolvedDistillConfig
    space: Space
    plan: Plan | None

    def ended(self) -> Run:
        """Return the run without what it has on the device."""
        return Run(self.config, self.data_name, self.dataset, self.folder, self.device)


def prepare(
    data: object, settings: Mapping[str, object], *, out: str | Path | None, resume: bool, overwrite: bool
) -> Job:
    """Check settings, folder, prior and data, in this order, and build what the loop needs."""
    opening = open_run(data, settings, DistillConfig, out=out, resume=resume, overwrite=overwrite)
    asked, folder, device = opening.config, opening.folder, opening.device
    _check_names(asked)
    setup = setup_of(asked)
    _check_init(asked.init, setup.inits, folder)
    asked = with_dtype(asked, device, setup.gpu_dtype)
    asked = replace(asked, compile=device.type == "cuda" if asked.compile is None else asked.compile)
    prior = setup.open_prior(asked, opening.prior, device)
    has_graphs = setup.has_chain and isinstance(prior, Prior) and prior.frozen.graphs is not None
    num_layers = len(prior.layers) if isinstance(prior, StyleGAN) else None
    config = resolve(replace(asked, cuda_graphs=has_graphs), prior.native_resolution, num_layers)
    networks.blueprint(config.network, num_classes=10, resolution=config.resolution, width=config.width)
    check_protocol(config.evaluate, config.resolution)
    setup.check(config, prior)
    dataset = opening.load_data(config)
    dataset.train.require_per_class(config.ipc, "--ipc")
    experts = None if LOSSES[config.algorithm].is_streamed else _check_experts(config, dataset, folder)
    plan = setup.plan(config, prior, dataset)
    if plan is not None:
        logger.info("%s", plan)
        config = replace(config, retain=plan.retain)
    space = setup.build(config, prior, dataset, plan, device)
    if folder is not None:
        init = None if config.init in INITS else load(config.init).fingerprint()
        sources = sources_of(prior, experts=None if experts is None else experts.fingerprint(), init=init)
        folder.start(opening.data_name, config, dataset.fingerprint, sources)
    return Job(config, opening.data_name, dataset, folder, device, space, plan)


def _check_names(config: DistillConfig) -> None:
    """Refuse names of rooms above the settings' own, which have the tables."""
    one_of(config.algorithm, "algorithm", tuple(LOSSES))
    one_of(config.injection, "injection", INJECTIONS)
    one_of(config.schedule, "schedule", tuple(SCHEDULES))


def _check_init(init: str, words: tuple[str, ...], folder: RunFolder | None) -> None:
    """Refuse a start that is neither one of the space's words nor another run's folder."""
    if init in INITS:
        return
    if not (Path(init) / DISTILLED).is_file():
        raise ConfigError(f"init is {', '.join(map(repr, words))} or the folder of a distilled set, got {init!r}")
    if folder is not None and Path(init).resolve() == folder.path.resolve():
        raise ConfigError(f"init {init} is the folder of this run, which replaces what is there; choose another out")


def objective_of(job: Job, progress: bool) -> Objective:
    """Build the matching objective; for trajectories without `experts`, train them first."""
    config, dataset = job.config, job.dataset
    if LOSSES[config.algorithm].is_streamed:
        in_flight, chunk = dataset.train.num_classes, None
        if job.plan is not None:
            in_flight, chunk = job.plan.classes_in_flight, job.plan.real_chunk
        options = {"classes_in_flight": in_flight, "real_chunk": chunk, "device": job.device}
        return ClassMatching(job.space, dataset, config, **options)
    experts = _open_experts(config.experts or _train_experts(job, progress), config, dataset)
    return TrajectoryMatching(job.space, dataset, config, experts=experts, device=job.device)


def _check_experts(config: ResolvedDistillConfig, dataset: Dataset, folder: RunFolder | None) -> Experts | None:
    """Refuse experts that cannot serve before the run's folder is touched, and before any are trained.

    Returns:
        Those that the settings name, None where some are to be trained.
    """
    needed = config.max_start_epoch - 1 + config.expert_epochs
    if config.experts is not None:
        return _open_experts(config.experts, config, dataset)
    if folder is None:
        raise ConfigError("algorithm mtt needs experts=, a folder of trajectories, or out= to train and keep them in")
    if config.expert_training_epochs < needed:
        raise ConfigError(
            f"expert_training_epochs is at least max_start_epoch - 1 + expert_epochs = {needed}, "
            f"got {config.expert_training_epochs}; train experts for longer, or lower one of the two"
        )
    return None


def _open_experts(folder: str | Path, config: ResolvedDistillConfig, dataset: Dataset) -> Experts:
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
    assert job.folder is not None  # else refused by `_check_experts`
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
