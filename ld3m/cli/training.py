"""The commands that train on real images: `ld3m experts`, `ld3m teacher`, `ld3m prior train`."""

import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ld3m.cli.commands import Command, Flat, Positional
from ld3m.config import DistillConfig, ExpertTraining, TeacherTraining, resolve
from ld3m.config.run import check_bit_range, check_subset
from ld3m.prior_training.settings import PriorTraining


@dataclass(frozen=True)
class Reading:
    """How images are read and split, the same as of a distillation."""

    holdout: float | None = None
    """Share of each class kept for testing, where the data has no test split of its own (0.1)."""
    strict: bool = False
    """Refuse images that cannot be read instead of skipping them with a count."""
    bit_range: str | None = None
    """Bits in use of pictures of more than 8: "8", "10", "12", "14", "16", "minmax" for the set's own range; the fewest
    that hold them all when not given ("auto")."""
    classes: str | None = None
    """Classes of the data to use, in order: imagenette, imagewoof, ..., names or wnids with commas, or a file."""
    per_class: int | None = None
    """Training images of each class to use: the first, or drawn ones."""
    per_class_seed: int | None = None
    """Draw them by this seed."""

    def __post_init__(self) -> None:
        check_bit_range(self.bit_range)
        check_subset(self.classes, self.per_class, self.per_class_seed)

    def words(self) -> list[str]:
        """Return the options that were given."""
        given = {name: value for name, value in vars(self).items() if value is not None and value is not False}
        pairs = ([f"--{name.replace('_', '-')}", str(value)] for name, value in given.items())
        return [word for pair in pairs for word in pair if word != "True"]


@dataclass(frozen=True)
class ExpertsCommand(Command):
    """Train expert trajectories for trajectory matching and store them as safetensors."""

    is_shared = True

    out: Path
    """Folder of the trajectories; those that are there already are kept."""
    data: Positional[str] = "builtin"
    """Folder or zip of images, one folder per class."""
    resolution: int = 32
    """Image side in pixels."""
    training: Flat[ExpertTraining] = field(default_factory=ExpertTraining)
    reading: Flat[Reading] = field(default_factory=Reading)
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    cache: str | None = None
    """Folder for decoded images that later commands use, or "off"; the user's cache, for large sets, when not given."""
    quiet: bool = False
    """No progress bars."""

    def execute(self) -> None:
        from ld3m.data import load
        from ld3m.distillation.experts import train_experts
        from ld3m.runs.opening import require_outside

        require_outside(self.data, self.out)
        training = self.training
        dataset = load(self.data, resolution=self.resolution, **vars(self.reading))
        config = DistillConfig(algorithm="mtt", network=training.network, width=training.width)
        options: dict[str, Any] = vars(training) | {"width": resolve(config, self.resolution).width}
        train_experts(dataset, self.out, **options, device=self.device, progress=not self.quiet)
        print(f"{training.num_experts} experts in {self.out}")


@dataclass(frozen=True)
class TeacherCommand(Command):
    """Train a teacher for soft labels on the real training images and store it as safetensors."""

    out: Path
    """File of the teacher."""
    data: Positional[str] = "builtin"
    """Folder or zip of images, one folder per class."""
    resolution: int = 32
    """Image side in pixels: that of the distilled images."""
    training: Flat[TeacherTraining] = field(default_factory=TeacherTraining)
    reading: Flat[Reading] = field(default_factory=Reading)
    overwrite: bool = False
    """Replace the file --out."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    cache: str | None = None
    """Folder for decoded images that later commands use, or "off"; the user's cache, for large sets, when not given."""
    quiet: bool = False
    """No progress bars."""

    def execute(self) -> None:
        from ld3m.data import load
        from ld3m.evaluation import train_teacher
        from ld3m.runs.opening import require_outside

        require_outside(self.data, self.out.parent)
        dataset = load(self.data, resolution=self.resolution, **vars(self.reading))
        options = {"device": self.device, "overwrite": self.overwrite, "progress": not self.quiet}
        teacher = train_teacher(dataset, self.out, self.training, **options)
        print(f"{teacher.name} in {self.out}; use it with: ld3m evaluate RUN --labels soft --teacher {self.out}")


@dataclass(frozen=True)
class PriorTrainCommand(Command):
    """Train a latent diffusion model on your own images: a KL first stage, then a class-conditional U-Net."""

    is_shared = True

    out: Path
    """Folder of the training; the prior itself goes to OUT/prior."""
    data: Positional[str] = "builtin"
    """Folder or zip of images, one folder per class, or a folder of IDX files (MNIST family)."""
    training: Flat[PriorTraining] = field(default_factory=PriorTraining)
    resume: bool = False
    """Go on with the training in --out."""
    preview_every: int = 500
    """Denoiser steps between two grids of samples."""
    reading: Flat[Reading] = field(default_factory=Reading)
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    cache: str | None = None
    """Folder for decoded images that later commands use, or "off"; the user's cache, for large sets, when not given."""
    quiet: bool = False
    """No progress bars."""

    def execute(self) -> None:
        from ld3m.data import load
        from ld3m.prior_training.preview import save_samples
        from ld3m.prior_training.train import train_prior
        from ld3m.runs.opening import require_outside

        require_outside(self.data, self.out)
        training = self.training
        dataset = load(self.data, resolution=training.resolution, **vars(self.reading))
        try:
            folder = train_prior(
                dataset,
                self.out,
                training,
                device=self.device,
                resume=self.resume,
                preview=partial(save_samples, seed=training.seed, at_once=training.first_stage_batch),
                preview_every=self.preview_every,
                progress=not self.quiet,
            )
        except KeyboardInterrupt:
            print("\ngo on with the same command and --resume", file=sys.stderr)
            raise
        words = ["ld3m", "distill", self.data, "--prior", str(folder)]
        words += self.reading.words() + ([] if self.cache is None else ["--cache", self.cache])
        print(f"prior in {folder}; use it with: {shlex.join(words)}")
