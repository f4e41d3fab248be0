"""`evaluate`: train fresh networks on a small set and on real images beside it, and report how well they do."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch

from ld3m.config import EvaluateConfig, build
from ld3m.config.keywords import EvaluateKeywords, keywords_of
from ld3m.data import Dataset
from ld3m.errors import ConfigError
from ld3m.evaluation import scores as robustness
from ld3m.evaluation.baselines import BASELINES, teachers
from ld3m.evaluation.comparison import Comparison
from ld3m.evaluation.gathering import gather
from ld3m.evaluation.inputs import is_run, open_inputs, reading_of
from ld3m.evaluation.outputs import keep_set, open_out
from ld3m.evaluation.progress import Progress
from ld3m.evaluation.protocols import Protocol, find
from ld3m.evaluation.teacher import Teacher
from ld3m.evaluation.views import framed, zoomed
from ld3m.networks import Zoo
from ld3m.networks.own import Factory
from ld3m.runs.folder import DISTILLED
from ld3m.runs.report import Report, save_report
from ld3m.runs.result import Result
from ld3m.runtime import processes
from ld3m.runtime.devices import resolve_device
from ld3m.runtime.storage import owning, require_writable


@keywords_of(EvaluateConfig, but=("protocol", "teacher", "networks"))
def evaluate(
    result_or_folder: object,
    data: object,
    *,
    protocol: str | Protocol = EvaluateConfig.protocol,
    teacher: Teacher | str | Path | None = None,
    networks: Sequence[str] | Mapping[str, Factory | str | None] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    image_range: str = "unit",
    **settings: Unpack[EvaluateKeywords],
) -> Report:
    """Measure how well networks do on real test images after training on a small set, whoever made it.

    A repeat of a network starts from the same weights and augmentation on every set. A training that diverges is no
    result: all trainings of its network are repeated at half the rate, up to three times, and what diverges still has
    None for an accuracy. With a folder, `evaluation.json` (`evaluation-soft.json` for soft labels) is written there at
    the end, an earlier one is kept in `evaluations/`, and an interrupted evaluation goes on with the trainings that are
    left.

    Args:
        result_or_folder: a Result, the output folder of a distillation, images (N, 3, H, H) in [0, 1] with labels, or
            a set of anybody's as `ld3m.data.load` reads it: a folder or archive of a folder for each class, a
            .safetensors, .pt or .npz of images and labels, a Hugging Face set, an object. Nothing is written beside it.
        data: what `ld3m.data.load` reads: the data the set stands for, with its test images.
        protocol: a name of `ld3m.evaluation.PROTOCOLS`, or a Protocol.
        teacher: of soft labels: a Teacher, or the file of one.
        networks: names, perhaps with a width suffix, package.module:factory or timm:NAME; or {name: factory}, a
            factory being called with num_classes, and with resolution where it takes that; by default the protocol's.
        out: folder of the report, instead of that of a run; a set of anybody's has none otherwise.
        progress: show a bar.
        repeats: trainings of each network on each set, each from fresh weights.
        epochs: length of a training, at least 2; by default the protocol's.
        baselines: real images to compare with, as many of each class: "random" (drawn anew for every repeat), "kmeans"
            (nearest to the k-means centres of the class) and the selectors of `ld3m.select`. Those that go by a teacher
            take `teacher`, or one that is trained first.
        labels: "hard", or "soft": a teacher's answers to every batch as it was augmented; by default the protocol's.
            Soft labels need "random" among the baselines.
        scores: of the distilled set, "lrs" and "ars", see `ld3m.evaluation.scores`; they cost extra trainings.
        full_epochs: length, at least 2, of the one training of each network on all real images that "lrs" needs.
        dtype: "float32", or "bfloat16" for layers under autocast: convolutions and matrix products, and between them
            what torch has no rule for. Up to twice as fast on a CPU with AVX-512 BF16. By default the protocol's.
        together: train the repeats of a network at once, on a CPU in float32 alone; by default on a GPU, since it is
            slower on a CPU. Networks with dropout are always trained one by one.
        device: of the trainings; by default a GPU where there is one.
        strict, bit_range, classes, per_class, per_class_seed: of reading the data, as of `ld3m.data.load`.
        match: classes of set and data by "name" (wnids too), or "order" for those that no name matches.
        resolution: of set and data in pixels; the set's own when not given.
        set_mean, set_std, set_normalized: by which the tensors of the set were normalized.
        image_range: of floating-point images: "unit" for [0, 1], "signed" for [-1, 1], "bytes" for 0…255, "normalized"
            by the mean and standard deviation of the data.

    Raises:
        ConfigError: an unknown protocol, network, baseline, score or dtype, too few repeats or epochs, or a teacher
            that is missing or of other classes or images.
        DataError: other classes than the distilled set's, no test split, or fewer real images than distilled ones.
        CheckpointError: the folder is not there or holds no distilled set.
    """
    own = Path(os.fspath(result_or_folder)) if isinstance(result_or_folder, str | os.PathLike) else None
    folder = own if own is not None and out is None and is_run(own) else None
    if out is not None:
        folder = processes.from_main(lambda: open_out(Path(out), result_or_folder, data), "open the folder")
    with owning(folder) if folder and folder.is_dir() and processes.is_main() else nullcontext():
        return _evaluate(result_or_folder, data, folder, protocol, teacher, networks, progress, image_range, settings)


def _evaluate(
    given: object,
    data: object,
    folder: Path | None,
    protocol: str | Protocol,
    teacher: Teacher | str | Path | None,
    networks: Sequence[str] | Mapping[str, Factory | str | None] | None,
    progress: bool,
    image_range: str,
    settings: Mapping[str, object],
) -> Report:
    config = build(settings, EvaluateConfig())
    protocol = find(protocol).with_labels(config.labels).with_dtype(config.dtype)
    for name in config.baselines:
        if name not in BASELINES:
            raise ConfigError(f"baselines are of {', '.join(BASELINES)}; got {name!r}")
    robustness.check(config.scores, config.baselines)
    zoo = Zoo(_names(networks, protocol))
    config = replace(config, networks=zoo.names)
    teacher, judge = teachers(teacher, protocol, config.baselines)
    device = resolve_device(config.device)
    together = _together(config.together, protocol, device)
    opened, dataset, _ = open_inputs(given, data, reading=reading_of(config, image_range))
    if folder:
        require_writable(folder, "evaluate(ld3m.load(folder), ...) keeps the report in memory")
    protocol = _for_set(protocol, config, zoo, opened, dataset)
    result, dataset = framed(opened, zoomed(dataset, data, protocol, config, opened.config), protocol)
    comparison = Comparison(result, dataset, protocol, config, device, teacher, zoo, judge=judge, progress=progress)
    processes.require_same({"what is evaluated": comparison.name()})

    start = time.perf_counter()
    finished = Progress(folder if processes.is_main() else None, comparison.key())
    done = processes.from_main(lambda: (finished.accuracies, finished.confusions), "read what is finished")
    finished.accuracies, finished.confusions = done
    comparison.run(finished, together, progress)
    report = gather(comparison, finished, time.perf_counter() - start)
    if folder and processes.is_main():
        from ld3m.runs.page import publish  # which shows evaluations

        if not (folder / DISTILLED).is_file():
            keep_set(opened, folder)
        save_report(report, folder)
        finished.forget(comparison.tried)
        publish(folder)
    return report


def _names(
    given: Sequence[str] | Mapping[str, Factory | str | None] | None, protocol: Protocol
) -> Sequence[str] | Mapping[str, Factory | str | None]:
    if given is None:
        return protocol.networks
    if isinstance(given, str):
        raise ConfigError(f"networks are a list of names, got the text {given!r}; write [{given!r}]")
    if not given:
        raise ConfigError(f"networks names at least one; leave it out for {', '.join(protocol.networks)}")
    return given


def _for_set(protocol: Protocol, config: EvaluateConfig, zoo: Zoo, result: Result, data: Dataset) -> Protocol:
    """Return the protocol for a set of that size, with the epochs that were asked for and the user's own networks."""
    classes = len(data.class_names)
    protocol = protocol.for_set(len(result.labels) // classes, classes, data.resolution)
    return protocol.with_epochs(config.epochs).with_own(tuple(zoo.factories))


def _together(given: bool | None, protocol: Protocol, device: torch.device) -> bool:
    """Return whether the repeats of a network are trained at once."""
    if given and device.type == "cpu" and protocol.dtype != "float32":  # vmap's convolutions have no autocast there
        raise ConfigError("repeats trained together on a CPU stay in float32; leave out together, or dtype")
    return device.type != "cpu" if given is None else given
