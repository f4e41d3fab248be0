"""The command line: each command does what a function of the package does; `ld3m sample` is `sample_dataset`."""

import difflib
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import tyro

from ld3m import __version__
from ld3m.cli.run import DistillCommand, Flat, Positional, SampleCommand, run
from ld3m.config.distill import build, resolve
from ld3m.errors import ConfigError, Ld3mError
from ld3m.evaluation.teacher_training import TeacherTraining
from ld3m.prior_training.settings import PriorTraining

_Command = TypeVar("_Command")

_USAGE = """ld3m: distil an image data set into a few synthetic images per class

  ld3m distill [DATA]        distil, evaluate, write a folder with images and report
  ld3m sample [DATA]         sample images from a prior by statistics of the real ones (D3HR), the same folder
  ld3m evaluate RUN [DATA]   train networks on a distilled set and on real images, compare
  ld3m experts [DATA]        train expert trajectories for --algorithm mtt
  ld3m prior train [DATA]    train a small latent diffusion model on your own images
  ld3m teacher [DATA]        train a teacher for soft labels
  ld3m export RUN            copy a distilled set out, as an image folder or as tensors
  ld3m info                  versions, devices, priors, networks
  ld3m --version             the version alone

DATA is "builtin" (the default), a folder or zip of one folder per class. `ld3m COMMAND --help` lists the options.
"""

_PRIOR_USAGE = """ld3m prior: make a prior of your own

  ld3m prior train [DATA]    train a small latent diffusion model on your own images

`ld3m prior train --help` lists the options.
"""


@dataclass(frozen=True)
class EvaluateCommand:
    """Train networks from scratch on a distilled set and on real images of the same number, and compare."""

    run: Positional[Path]
    """Output folder of a distillation."""
    data: Positional[str | None] = None
    """Data set to test on; the one that was distilled when not given."""
    protocol: str = "glad-hard"
    """"glad-hard" (1,000 epochs), "quick", or "rded" (soft labels)."""
    networks: tuple[str, ...] | None = None
    """Networks to train; the protocol's when not given."""
    repeats: int = 5
    """Trainings of each network on each set."""
    epochs: int | None = None
    """Epochs, at least 2; the protocol's when not given."""
    baselines: tuple[str, ...] = ("random", "kmeans")
    """Sets of real images to compare with."""
    labels: str | None = None
    """"hard", or "soft": the answers of a teacher; the protocol's when not given."""
    teacher: Path | None = None
    """File of the teacher, from `ld3m teacher`."""
    scores: tuple[str, ...] = ()
    """"lrs", "ars": label- and augmentation-robust score, which cost extra trainings."""
    full_epochs: int = 20
    """Epochs on all real images, at least 2, for "lrs"."""
    dtype: str | None = None
    """"float32", or "bfloat16" for layers in training, up to twice as fast; the protocol's when not given."""
    together: bool | None = None
    """Train the repeats of a network at once; on a GPU when not given."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    seed: int = 0
    """Everything random follows from it."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class ExpertsCommand:
    """Train expert trajectories for trajectory matching and store them as safetensors."""

    out: Path
    """Folder of the trajectories; those that are there already are kept."""
    data: Positional[str] = "builtin"
    """Folder or zip of images, one folder per class."""
    resolution: int = 32
    """Image side in pixels."""
    network: str = "ConvNet"
    """Network to train."""
    width: int | None = None
    """Its width; that of `ld3m distill --algorithm mtt` at this resolution when not given."""
    holdout: float | None = None
    """Share of each class kept for testing, where the data has no test split of its own (0.1)."""
    num_experts: int = 100
    """Trajectories in all."""
    epochs: int = 15
    """Epochs of each."""
    lr: float = 0.01
    """Learning rate (SGD)."""
    batch_size: int = 256
    """Images a step."""
    augment: bool = True
    """Differentiable augmentation (DSA) of every batch."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    seed: int = 0
    """Everything random follows from it."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class TeacherCommand:
    """Train a teacher for soft labels on the real training images and store it as safetensors."""

    out: Path
    """File of the teacher."""
    data: Positional[str] = "builtin"
    """Folder or zip of images, one folder per class."""
    resolution: int = 32
    """Image side in pixels: that of the distilled images."""
    training: Flat[TeacherTraining] = field(default_factory=TeacherTraining)
    holdout: float | None = None
    """Share of each class kept for testing, where the data has no test split of its own (0.1)."""
    overwrite: bool = False
    """Replace the file --out."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class ExportCommand:
    """Copy a distilled set out of a run, with a README that says how to load it."""

    run: Positional[Path]
    """Output folder of a distillation."""
    to: Path
    """New folder."""
    format: str = "imagefolder"
    """"imagefolder" (PNG files by class) or "safetensors"."""
    overwrite: bool = False
    """Replace what is in --to."""


@dataclass(frozen=True)
class PriorTrainCommand:
    """Train a latent diffusion model on your own images: a KL first stage, then a class-conditional U-Net."""

    out: Path
    """Folder of the training; the prior itself goes to OUT/prior."""
    data: Positional[str] = "builtin"
    """Folder or zip of images, one folder per class, or a folder of IDX files (MNIST family)."""
    training: Flat[PriorTraining] = field(default_factory=PriorTraining)
    resume: bool = False
    """Go on with the training in --out."""
    preview_every: int = 500
    """Denoiser steps between two grids of samples."""
    holdout: float | None = None
    """Share of each class kept for testing, where the data has no test split of its own (0.1)."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class InfoCommand:
    """Print versions, devices and names; with --budget, the memory plan of a distillation."""

    budget: str | None = None
    """Memory on the device, such as "8GB": print the plan for it without running."""
    prior: str = "builtin"
    """Prior of the plan."""
    resolution: int | None = None
    """Image side in pixels; the prior's own when not given."""
    steps: int | None = None
    """Steps of the chain."""
    ipc: int = 1
    """Images per class."""
    num_classes: int = 10
    """Classes."""
    algorithm: str = "dc"
    """dc, dm or mtt."""
    network: str = "ConvNet"
    """Network that is matched."""
    real_batch: int | None = None
    """Real images a class and iteration."""
    dtype: str | None = None
    """Precision of the prior's weights."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; return 0, 2 for an error with a message, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ld3m").setLevel(logging.INFO)
    if argv[:1] == ["prior"]:
        argv = [" ".join(argv[:2]), *argv[2:]]
    if argv[:1] == ["--version"]:
        print(f"ld3m {__version__}")
        return 0
    name = argv[0] if argv else ""
    if name in _HELP:
        print(_HELP[name])
        return 0
    command = _COMMANDS.get(name)
    if command is None:
        print(_unknown(name), file=sys.stderr)
        return 2
    try:
        command(argv[1:])
    except Ld3mError as error:
        print(f"ld3m: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        from ld3m.memory.plan import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or "there is no more"
        remedy = "lower a batch or the resolution, or take dtype bfloat16 where the command has it"
        print(f"ld3m: error: out of memory ({reason}); {remedy}", file=sys.stderr)
        return 2
    return 0


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _COMMANDS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"ld3m: no command {name!r}{hint}\n\n{_USAGE}"


def _parse(command: type[_Command], argv: list[str]) -> _Command:
    name = {v: k for k, v in _PARSED.items()}[command]
    return tyro.cli(command, prog=f"ld3m {name}", args=argv)


def _distill(argv: list[str]) -> None:
    from ld3m.distillation.loop import distill

    run(argv, "distill", DistillCommand, distill)


def _sample(argv: list[str]) -> None:
    from ld3m.sampling.dataset import sample_dataset

    run(argv, "sample", SampleCommand, sample_dataset)


def _evaluate(argv: list[str]) -> None:
    from ld3m.evaluation import evaluate
    from ld3m.runs.result import load

    command = _parse(EvaluateCommand, argv)
    data = command.data or str(load(command.run).config.get("data", "builtin"))
    if data.startswith("<"):
        raise ConfigError(f"the data of {command.run} was given in memory, as {data}; name DATA after the run")
    options = {k: v for k, v in vars(command).items() if k not in ("run", "data", "quiet")}
    report = evaluate(command.run, data, **options, progress=not command.quiet)
    print(report.table())


def _experts(argv: list[str]) -> None:
    from ld3m.data import load
    from ld3m.distillation.experts import train_experts

    command = _parse(ExpertsCommand, argv)
    named = ("out", "data", "resolution", "width", "holdout", "quiet")
    dataset = load(command.data, resolution=command.resolution, holdout=command.holdout)
    options = {k: v for k, v in vars(command).items() if k not in named}
    settings = {"algorithm": "mtt", "network": command.network, "width": command.width}
    width = resolve(build(settings), command.resolution).width
    train_experts(dataset, command.out, **options, width=width, progress=not command.quiet)
    print(f"{command.num_experts} experts in {command.out}")


def _teacher(argv: list[str]) -> None:
    from ld3m.data import load
    from ld3m.evaluation import train_teacher

    command = _parse(TeacherCommand, argv)
    dataset = load(command.data, resolution=command.resolution, holdout=command.holdout)
    options = {name: getattr(command, name) for name in ("training", "device", "overwrite")}
    teacher = train_teacher(dataset, command.out, **options, progress=not command.quiet)
    print(f"{teacher.name} in {command.out}; use it with: ld3m evaluate RUN --labels soft --teacher {command.out}")


def _export(argv: list[str]) -> None:
    from ld3m.runs.exporting import export

    command = _parse(ExportCommand, argv)
    print(f"exported to {export(command.run, command.format, command.to, overwrite=command.overwrite)}")


def _train_prior(argv: list[str]) -> None:
    from ld3m.data import load
    from ld3m.prior_training.preview import save_samples
    from ld3m.prior_training.train import train_prior

    command = _parse(PriorTrainCommand, argv)
    dataset = load(command.data, resolution=command.training.resolution, holdout=command.holdout)
    try:
        folder = train_prior(
            dataset,
            command.out,
            command.training,
            device=command.device,
            resume=command.resume,
            preview=partial(save_samples, seed=command.training.seed, at_once=command.training.first_stage_batch),
            preview_every=command.preview_every,
            progress=not command.quiet,
        )
    except KeyboardInterrupt:
        print("\ngo on with the same command and --resume", file=sys.stderr)
        raise
    words = ["ld3m", "distill", command.data, "--prior", str(folder)]
    words += [] if command.holdout is None else ["--holdout", str(command.holdout)]
    print(f"prior in {folder}; use it with: {shlex.join(words)}")


def _info(argv: list[str]) -> None:
    import torch

    from ld3m import networks
    from ld3m.evaluation import PROTOCOLS
    from ld3m.evaluation.finish import versions
    from ld3m.memory.plan import plan_memory
    from ld3m.ops.backends import describe
    from ld3m.priors import NAMES, ExecutionConfig, load_prior
    from ld3m.priors.stylegan.loading import NAMES as GENERATORS

    command = _parse(InfoCommand, argv)
    named = ("prior", "ipc", "resolution", "algorithm", "steps", "network", "real_batch", "dtype")
    settings = build({name: getattr(command, name) for name in named})  # which checks them, also without a budget
    cuda = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    lines = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "devices": ", ".join([f"cpu ({torch.get_num_threads()} threads)", *cuda]),
        "backends": "; ".join(f"{name}: {text}" for name, text in describe().items()),
        "priors": ", ".join(NAMES) + ", a CompVis or DiT checkpoint, a diffusers folder, a hub id",
        "generators": ", ".join(GENERATORS) + ", a .safetensors file (space glad)",
        "networks": ", ".join(networks.NAMES),
        "protocols": ", ".join(PROTOCOLS),
    }
    for name, text in lines.items():
        print(f"{name:10} {text}")
    if command.budget is None:
        return
    prior = load_prior(command.prior, device="meta", dtype=settings.dtype or "float32")
    prior = prior.set_execution(ExecutionConfig())
    config = resolve(settings, prior.native_resolution)
    plan = plan_memory(
        prior,
        resolution=config.resolution,
        steps=config.steps,
        ipc=config.ipc,
        num_classes=command.num_classes,
        algorithm=config.algorithm,
        budget=command.budget,
        network=config.network,
        width=config.width,
        real_batch=config.real_batch,
        student_steps=config.student_steps,
    )
    print(f"{'plan':10} {plan}")


_HELP = {
    **dict.fromkeys(("", "-h", "--help"), _USAGE),
    **dict.fromkeys(("prior", "prior -h", "prior --help"), _PRIOR_USAGE),
}
_PARSED: dict[str, type] = {
    "distill": DistillCommand,
    "sample": SampleCommand,
    "evaluate": EvaluateCommand,
    "experts": ExpertsCommand,
    "prior train": PriorTrainCommand,
    "teacher": TeacherCommand,
    "export": ExportCommand,
    "info": InfoCommand,
}
_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "distill": _distill,
    "sample": _sample,
    "evaluate": _evaluate,
    "experts": _experts,
    "prior train": _train_prior,
    "teacher": _teacher,
    "export": _export,
    "info": _info,
}
