"""The report of an evaluation: accuracies, by class too, and all that a reader needs to judge or repeat them."""

import dataclasses
import json
import logging
import math
import platform
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import ld3m
from ld3m.evaluation import scores as robustness
from ld3m.evaluation.divergence import Accuracies, at_halved_rate
from ld3m.evaluation.progress import MOST_CLASSES, Progress
from ld3m.evaluation.published import published_for
from ld3m.evaluation.runner import Training
from ld3m.evaluation.storage import storage_bytes
from ld3m.runs.report import Report, summary

if TYPE_CHECKING:
    from ld3m.evaluation.comparison import Comparison

logger = logging.getLogger(__name__)


def gather(comparison: "Comparison", finished: Progress, seconds: float) -> Report:
    """Gather the rows and all that a reader needs to judge or repeat them."""
    own, accuracies = comparison, finished.accuracies
    rows = [_row(own, finished, name, network) for name in own.sets for network in own.networks]
    about = {
        "key": own.name(),
        "data": _describe_data(own),
        "seed": own.config.seed,
        "seeds": own.seeds,
        "storage_bytes": storage_bytes(own),
        "versions": {"ld3m": ld3m.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name(own.device) if own.device.type == "cuda" else own.device.type,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
    }
    about |= {"set": dict(own.result.config)} if own.result.config.get("foreign") else {}
    about |= {"own_networks": own.zoo.describe()} if own.zoo.factories else {}
    about |= {"teacher": {"name": own.teacher.name, **own.teacher.about}} if own.teacher else {}
    about |= {"score_trainings": _score_trainings(own, accuracies)} if own.config.scores else {}
    lost = [t for t in own.trainings if accuracies[t] is None]
    named = ("set", "network", "repeat", "variant")
    about |= {"diverged": [{name: getattr(t, name) for name in named} for t in lost]} if lost else {}
    _warn_of_short_training(own, accuracies)
    return Report(rows, _protocol(own), own.result.config.get("network"), about)


def _protocol(own: "Comparison") -> dict[str, Any]:
    """Return the fields of the protocol as it was used."""
    used = {name: at_halved_rate(own.protocol, name, own.halvings[name]).recipe(name) for name in own.networks}
    protocol = dataclasses.asdict(replace(own.protocol, networks=own.networks, recipes=used))
    if lowered := {name: own.protocol.recipe(name).rate for name, times in own.halvings.items() if times}:
        protocol["lowered"] = lowered
    return json.loads(json.dumps(protocol))  # tuples become lists: equal after to_json and from_json


def _row(own: "Comparison", finished: Progress, name: str, network: str) -> dict[str, Any]:
    trainings = [own.training(name, network, repeat) for repeat in range(own.config.repeats)]
    outcomes = [finished.accuracies[training] for training in trainings]
    last = [None if outcome is None else outcome[-1] for outcome in outcomes]
    row: dict[str, Any] = {"set": name, "network": network} | summary(last)
    if own.teacher:
        row |= {"labels": "soft", "teacher": own.teacher.name}
    tests = len(own.protocol.tested_epochs(own.protocol.recipe(network).epochs))
    if tests > 1:
        row["tests"] = tests
        row["best_epoch"] = summary([None if outcome is None else max(outcome) for outcome in outcomes])
    for score in own.config.scores if name == own.sets[0] else ():
        values = [
            robustness.score(score, lambda t: _last(finished.accuracies[t]), own.protocol.labels, training)
            for training in trainings
        ]
        row[score] = summary([None if math.isnan(value) else value for value in values], "values")
    row |= _by_class([finished.confusions[t] for t in trainings if t in finished.confusions])
    if known := published_for(own.protocol.name, own.result, own.data, name, network, is_own=name == own.sets[0]):
        row["published"] = known
    return row


def _by_class(confusions: list[Tensor]) -> dict[str, Any]:
    """Return the accuracy in each class, in percent over all repeats, and the counts by class and answer."""
    if not confusions:
        return {}
    counts = torch.zeros(confusions[0].shape, dtype=torch.int64)
    for one in confusions:
        counts += one.to_dense()
    shares = 100 * counts.diagonal().double() / counts.sum(1).clamp_min(1)
    found: dict[str, Any] = {"per_class": [round(share, 3) for share in shares.tolist()]}
    return found | ({"confusion": counts.tolist()} if len(counts) <= MOST_CLASSES else {})


def _warn_of_short_training(own: "Comparison", accuracies: Mapping[Training, Accuracies]) -> None:
    """Say where all real images teach no more than a few: rates made for a few images can be too low for them."""
    for full in (training for training in own.extra if training.set == robustness.FULL):
        repeats = [own.training("random", full.network, repeat) for repeat in range(own.config.repeats)]
        all_images, few = _last(accuracies[full]), fmean(_last(accuracies[training]) for training in repeats)
        if all_images <= few:
            logger.warning(
                "lrs of %s says nothing: all real images give %.1f %%, random ones of the set's size %.1f %%; "
                "raise full_epochs, which is %d", full.network, all_images, few, own.config.full_epochs,
            )  # fmt: skip


def _score_trainings(own: "Comparison", accuracies: Mapping[Training, Accuracies]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, str], list[float | None]] = {}
    for t in own.extra:
        outcome = accuracies[t]
        groups.setdefault((t.set, t.network, t.variant), []).append(None if outcome is None else outcome[-1])
    return [dict(zip(("set", "network", "variant"), key, strict=True)) | summary(v) for key, v in groups.items()]


def _describe_data(own: "Comparison") -> dict[str, object]:
    fewest, most = min(own.counts), max(own.counts)
    return {
        "name": own.data.name,
        "class_names": list(own.data.class_names),
        "classes": len(own.data.class_names),
        "resolution": own.data.resolution,
        "images_per_class": most if fewest == most else f"{fewest} to {most}",
        "train_images": len(own.data.train),
        "test_images": len(own.data.test or ()),
        "mean": own.data.mean.tolist(),
        "std": own.data.std.tolist(),
    }


def _last(outcome: Accuracies) -> float:
    """Return the accuracy after the last epoch, NaN where the training diverged."""
    return math.nan if outcome is None else outcome[-1]
