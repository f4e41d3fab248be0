"""The job of a distillation: everything an iteration needs, checked before the first second of work."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ld3m import networks
from ld3m.chain.schedule import INJECTIONS, SCHEDULES
from ld3m.config import INITS, DistillConfig, ResolvedDistillConfig, SelectConfig, one_of, resolve
from ld3m.data import Dataset
from ld3m.distillation.experts import Experts, load_experts, train_experts
from ld3m.distillation.objectives import ClassMatching, Objective, TrajectoryMatching, groups_of, rows_of
from ld3m.errors import ConfigError
from ld3m.evaluation.finish import check_protocol
from ld3m.evaluation.measuring import Judges, easiest, open_teacher
from ld3m.matching import LOSSES
from ld3m.memory.plan import Plan, planned
from ld3m.priors import Prior, StyleGAN
from ld3m.runs.folder import DISTILLED, RunFolder
from ld3m.runs.opening import Run, open_run, sources_of, with_dtype
from ld3m.runs.result import load
from ld3m.runtime import processes
from ld3m.spaces import Space, keep_rows, setup_of

logger = logging.getLogger(__name__)
_PLANNED = ("retain", "micro_batch", "decoder_batch", "real_chunk")  # of the settings, where the space takes them


@dataclass(frozen=True)
class Job(Run):
    """A distillation ready to run."""

    config: ResolvedDistillConfig
    space: Space
    plan: Plan | None
    real: Dataset  # what is distilled: the data, or the part of it that is kept
    rows: tuple[Tensor, ...] = ()  # of each process, which the spaces hold
    path: Path | None = None  # of the folder, in every process

    @property
    def labels(self) -> Tensor:
        """The classes of this process, where classes are matched."""
        return self.rows[processes.rank()][:: self.config.ipc] // self.config.ipc

    def ended(self) -> Run:
        """Return the run without what it has on the device."""
        return Run(self.config, self.data_name, self.dataset, self.folder, self.device)


def prepare(
    data: object,
    settings: Mapping[str, object],
    *,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    progress: bool = False,
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
    _check_shared(config)
    setup.check(config, prior)
    dataset = opening.load_data(config)
    dataset.train.require_per_class(config.ipc, "--ipc")
    judges = None if config.keep is None else _judges(config, dataset, folder, device, progress)
    real = dataset if config.keep is None or judges is None else easiest(dataset, judges, config.keep)
    real.train.require_per_class(config.ipc, f"--keep {config.keep:g} and --ipc" if config.keep else "--ipc")
    experts = None if LOSSES[config.algorithm].is_streamed else _check_experts(config, real, opening.path)
    plan = planned(lambda: _cut(setup.plan(config, prior, real), config, real), "plan the memory")
    if plan is not None:
        logger.info("%s", plan)
        config = replace(config, **{name: getattr(plan, name) for name in _PLANNED if name in setup.settings})
    in_flight = _classes_in_flight(config, plan, real)
    if LOSSES[config.algorithm].is_streamed and (plan is not None or processes.world_size() > 1):
        config = replace(config, classes_in_flight=in_flight)
    rows = _shares(config, real, in_flight)
    space = setup.build(config, prior, real, plan, device)
    if len(rows) > 1:
        keep_rows(space, rows[processes.rank()])

    def start() -> None:
        if folder is not None:
            given = judges.given.digest if judges is not None and judges.given is not None else None
            init = None if config.init in INITS else load(config.init).fingerprint()
            others = {"experts": None if experts is None else experts.fingerprint(), "teacher": given, "init": init}
            folder.start(opening.data_name, config, dataset.fingerprint, sources_of(prior, **others))
            if judges is not None:
                judges.keep(folder.path)

    processes.from_main(start, "begin the run's folder")
    return Job(config, opening.data_name, dataset, folder, device, space, plan, real, rows, opening.path)


def _judges(
    config: ResolvedDistillConfig, dataset: Dataset, folder: RunFolder | None, device: torch.device, progress: bool
) -> Judges:
    """Return what says which images are easy: a run that is gone on with has it in its folder."""
    asked = SelectConfig(by="easy", seed=config.seed)
    stored = folder.path if folder is not None and folder.is_resumed else None
    return Judges(dataset, asked, device, open_teacher(config.teacher, dataset), stored, progress)


def _check_shared(config: ResolvedDistillConfig) -> None:
    """Refuse several processes where a class's draws depend on the classes before it, or a teacher is trained."""
    if processes.world_size() > 1 and config.keep is not None:
        raise ConfigError("keep measures all images by one teacher, in one process; start one, or leave keep out")
    network = networks.blueprint(config.network, num_classes=10, resolution=config.resolution, width=config.width)
    is_drawing = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in network.modules())
    if processes.world_size() > 1 and is_drawing and LOSSES[config.algorithm].is_streamed:
        raise ConfigError(
            f"{config.network} has dropout, whose masks follow from all classes in their order: that is not shared out "
            "over processes; choose another network, or start one process"
        )


def _cut(plan: Plan | None, config: ResolvedDistillConfig, dataset: Dataset) -> Plan | None:
    """Return the plan within what the settings say, and with work for every process."""
    if plan is None:
        return None
    images, count = config.micro_batch, processes.world_size()
    classes = _classes_in_flight(config, plan, dataset)
    if count > 1 and not LOSSES[config.algorithm].is_streamed:
        classes, most = plan.classes_in_flight, math.ceil(dataset.train.num_classes * config.ipc / count)
        images = min(images or most, most)
    return plan.cut(classes=classes, images=images, decoded=config.decoder_batch, real=config.real_chunk)


def _classes_in_flight(config: ResolvedDistillConfig, plan: Plan | None, dataset: Dataset) -> int:
    """Return how many classes are rendered together at most.

    Raises:
        ConfigError: that leaves a process without any.
    """
    num_classes, count = dataset.train.num_classes, processes.world_size()
    planned = num_classes if plan is None else plan.classes_in_flight
    size = min(config.classes_in_flight or planned, planned)
    if not LOSSES[config.algorithm].is_streamed:
        num_units, remedy = num_classes * config.ipc, ""
    elif config.classes_in_flight is None and len(_groups(config, dataset, size)) < count:
        size, num_units, remedy = max(1, num_classes // count), num_classes, ""
    else:
        num_units = len(_groups(config, dataset, size))
        remedy = ", or a new run with a smaller --classes-in-flight" if size > 1 else ""
    if num_units < count:
        raise ConfigError(
            f"{count} processes share {num_units} groups of classes or images; start at most {num_units}{remedy}"
        )
    return size


def _groups(config: ResolvedDistillConfig, dataset: Dataset, in_flight: int) -> list[Tensor]:
    sizes = torch.bincount(dataset.train.labels, minlength=dataset.train.num_classes)
    return groups_of(sizes.clamp(max=config.real_batch).tolist(), in_flight)


def _shares(config: ResolvedDistillConfig, dataset: Dataset, in_flight: int) -> tuple[Tensor, ...]:
    """Return the rows of each process: whole groups of classes, or blocks of whole micro-batches of images."""
    count, num_classes = processes.world_size(), dataset.train.num_classes
    if not LOSSES[config.algorithm].is_streamed:
        rows, batch = torch.arange(num_classes * config.ipc), config.micro_batch or 1
        edges = [min(round(k * len(rows) / batch / count) * batch, len(rows)) for k in range(count)] + [len(rows)]
        if min(high - low for low, high in pairwise(edges)) == 0:
            edges = [k * len(rows) // count for k in range(count + 1)]
        return tuple(rows[low:high] for low, high in pairwise(edges))
    sizes = torch.bincount(dataset.train.labels, minlength=num_classes).clamp(max=config.real_batch)

    def cost(group: Tensor) -> float:
        rendered = len(group) * config.ipc * (config.steps + 1)
        return 3 * rendered + float(sizes[group].sum())

    groups = _groups(config, dataset, in_flight)
    parts = (torch.cat(processes.share(groups, index, count, cost)).sort().values for index in range(count))
    return tuple(rows_of(part, config.ipc) for part in parts)


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
    config, dataset = job.config, job.real
    if LOSSES[config.algorithm].is_streamed:
        in_flight, chunk = config.classes_in_flight or dataset.train.num_classes, config.real_chunk
        room = 0 if job.plan is None else job.plan.budget_bytes - job.plan.peak_bytes
        options = {"classes_in_flight": in_flight, "real_chunk": chunk, "device": job.device, "labels": job.labels}
        return ClassMatching(job.space, dataset, config, room=room, **options)
    experts = _open_experts(config.experts or _train_experts(job, progress), config, dataset)
    counts = [len(rows) for rows in job.rows]
    return TrajectoryMatching(job.space, dataset, config, experts=experts, device=job.device, counts=counts)


def _check_experts(config: ResolvedDistillConfig, dataset: Dataset, folder: Path | None) -> Experts | None:
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
    assert job.path is not None  # else refused by `_check_experts`
    folder = job.path / "experts"
    train_experts(
        job.real,
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
