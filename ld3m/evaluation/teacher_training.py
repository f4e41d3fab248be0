"""Training of a teacher on the real training images, by the same loop as every training of an evaluation."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ld3m import networks
from ld3m.config import TeacherTraining
from ld3m.data import Dataset
from ld3m.errors import ConfigError, NumericsError
from ld3m.evaluation.protocols import Protocol, Recipe
from ld3m.evaluation.teacher import Teacher
from ld3m.evaluation.training import NormalizedImages, accuracy, train
from ld3m.runtime import seeds
from ld3m.runtime.devices import resolve_device
from ld3m.runtime.progress import progress_bar
from ld3m.runtime.reading import is_there
from ld3m.runtime.storage import owning, require_writable

logger = logging.getLogger(__name__)
_EMA_EPOCHS = 3  # over about so many epochs the weights are averaged


def train_teacher(
    data: Dataset,
    out: str | Path,
    training: TeacherTraining | None = None,
    *,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Teacher:
    """Train a network on the training split, with DSA on every batch, and write it to the file `out`.

    Where there is a test split, the accuracy on it is measured once, at the end, and kept with the teacher.

    Raises:
        ConfigError: an unknown network, a setting out of range, or a file that is there already.
        NumericsError: the weights diverged.
    """
    out, training = Path(out), training or TeacherTraining()
    if is_there(out, ConfigError) and out.is_dir():
        raise ConfigError(f"{out} is a folder; name the file of the teacher, such as {out / 'teacher.safetensors'}")
    require_writable(out.parent, "name another file")
    with owning(out, is_file=True):
        if is_there(out, ConfigError) and not overwrite:
            raise ConfigError(f"{out} is there already; name another file, or allow overwrite")
        teacher = _train(data, training, resolve_device(device), progress)
        teacher.save(out)
    return teacher


def _train(data: Dataset, training: TeacherTraining, device: torch.device, progress: bool) -> Teacher:
    recipe = Recipe(training.lr, training.epochs, 1 - 1 / _EMA_EPOCHS)
    protocol = Protocol("teacher", (training.network,), {training.network: recipe}, batch=training.batch_size)
    generator = seeds.generator(training.seed, "teacher")
    size: dict[str, Any] = {"num_classes": len(data.class_names), "resolution": data.resolution}
    network = networks.build(training.network, generator=generator, **size).to(device)
    images, labels = NormalizedImages(data.train.images, data, device), data.train.labels.to(device)
    with (
        progress_bar(name="teacher", total=training.epochs, unit="epoch", show=progress) as bar,
        seeds.scoped_global_rng(training.seed, "teacher dropout"),
        torch.enable_grad(),
    ):
        losses = train([network], [images], labels, protocol, recipe, [generator], each_epoch=bar.update)
    if not losses.isfinite().all():
        raise NumericsError(
            f"the teacher diverged: its loss or weights are not finite; lower lr, which is {training.lr}"
        )
    about = asdict(training) | {"train_images": len(data.train)}
    if data.test is not None and len(data.test):
        about["test_accuracy"] = accuracy(network, data)
    network.eval().requires_grad_(False)
    kind = training.network, data.class_names, data.resolution
    teacher = Teacher(network, *kind, data.mean, data.std, data.name, data.fingerprint, about)
    logger.info("%s: %s", teacher.name, f"{about.get('test_accuracy', float('nan')):.1f} % on the test images")
    return teacher
