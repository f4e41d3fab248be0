"""Find the settings of the protocol `quick`: trainings on random real images, and which of them diverge.

    python -m benchmarks.tune_quick [--data DATA] [--resolution R] [--classes N] [--networks NAME ...] [--rates R ...]
        [--epochs E ...] [--clip NORM ...] [--ipc N] [--repeats N] [--stop EPOCH] [--state FILE]

Works on the training split alone: sets are drawn from the first five sixths of each class, the rest are the validation
images. No distilled and no test image is looked at. Prints a line for each network, length, clipping and learning rate:
accuracies in percent (mean ± sample standard deviation over the repeats that did not diverge), how many diverged, and
CPU seconds of one training with its test, on one thread.

With `--state` every training is kept in a JSON file as soon as it is done, and is not done again. With `--stop` a
training ends before that epoch, untested: enough to see whether it diverges, once the rate has come down from its peak.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ld3m.data import Dataset, ImageSet, load
from ld3m.data.coreset import random_images
from ld3m.evaluation import PROTOCOLS
from ld3m.evaluation.protocols import Recipe
from ld3m.evaluation.training import train_and_test
from ld3m.runs.report import mean_std
from ld3m.runtime import seeds
from ld3m.runtime.storage import write_json

POOL = 5 / 6  # of the images of each class: that sets are drawn from; the rest validates
KEY = ("data", "resolution", "classes", "network", "ipc", "epochs", "rate", "clip", "repeat", "stop")


class Stopped(Exception):
    """A training that has gone as far as it is to go."""


def validation_split(source: str, resolution: int, classes: int | None = None) -> Dataset:
    """Return data of the first classes, with validation images in place of the test images."""
    data = load(source, resolution=resolution)
    names = data.class_names[:classes]
    members = [data.train.of_class(label) for label in range(len(names))]
    pool, held_out = (
        torch.cat([m[part(round(POOL * len(m)))] for m in members])
        for part in (lambda cut: slice(cut), lambda cut: slice(cut, None))
    )
    train, test = (ImageSet(data.train.images[part], data.train.labels[part], names) for part in (pool, held_out))
    return replace(data, train=train, test=test, class_names=names)


def outcome(data: Dataset, case: dict) -> dict:
    """Do one training; return its accuracy, the epoch in which it diverged, and its CPU seconds."""
    decay = 0.995 ** (1000 / case["epochs"])  # half-life as in glad-hard: 14 % of the training
    recipe = Recipe(case["rate"], case["epochs"], decay, case["clip"])
    protocol = replace(PROTOCOLS["quick"], recipes={case["network"]: recipe})
    counts = [case["ipc"]] * data.train.num_classes
    chosen = random_images(data.train, counts, seeds.generator(0, "tune", case["repeat"]))
    generator = seeds.generator(0, "tune", case["network"], case["repeat"])
    epochs, start, accuracies = 0, time.process_time(), None

    def each_epoch() -> None:
        nonlocal epochs
        if epochs == case["stop"]:
            raise Stopped
        epochs += 1

    is_stopped = False
    try:
        images, labels = data.train.batch(chosen), data.train.labels[chosen]
        [accuracies] = train_and_test(
            case["network"], [images], labels, data, protocol, [generator], each_epoch=each_epoch
        )
    except Stopped:
        is_stopped = True
    is_diverged = accuracies is None and not is_stopped
    seconds = round(time.process_time() - start, 2)
    accuracy = None if accuracies is None else accuracies[-1]
    return {"accuracy": accuracy, "diverged_in_epoch": epochs if is_diverged else None, "seconds": seconds}


def say(cases: Sequence[dict]) -> None:
    """Print what became of the repeats of one setting."""
    first, tested = cases[0], [case["accuracy"] for case in cases if case["accuracy"] is not None]
    mean, std = mean_std(tested) if tested else (float("nan"), 0.0)
    diverged = [case["diverged_in_epoch"] for case in cases if case["diverged_in_epoch"] is not None]
    print(
        f"{first['data']} {first['resolution']} px, {first['classes']} classes: {first['network']} ipc {first['ipc']} "
        f"epochs {first['epochs']} rate {first['rate']:g} clip {first['clip']}: {mean:.1f} ± {std:.1f} "
        f"({' '.join(f'{value:.1f}' for value in tested)}), diverged {len(diverged)} of {len(cases)} "
        f"{diverged or ''}, {sum(case['seconds'] for case in cases) / len(cases):.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="what ld3m.data.load reads")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--classes", type=int, help="the first so many; all when not given")
    parser.add_argument("--networks", nargs="+", default=PROTOCOLS["quick"].networks)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.002, 0.005, 0.01, 0.02, 0.05])
    parser.add_argument("--epochs", nargs="+", type=int, default=[80])
    parser.add_argument("--clip", nargs="+", type=float, default=[0], metavar="NORM", help="0 leaves gradients alone")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--stop", type=int, metavar="EPOCH")
    parser.add_argument("--state", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = validation_split(options.data, options.resolution, options.classes)
    done = json.loads(options.state.read_text()) if options.state and options.state.is_file() else []
    known = {tuple(case[name] for name in KEY): case for case in done}
    size = {"data": data.name, "resolution": data.resolution, "classes": len(data.class_names), "ipc": options.ipc}
    for network in options.networks:
        for epochs in options.epochs:
            for clip in [clip or None for clip in options.clip]:
                for rate in options.rates:
                    cases = []
                    for repeat in range(options.repeats):
                        case = size | {"network": network, "epochs": epochs, "rate": rate, "clip": clip}
                        case |= {"repeat": repeat, "stop": options.stop}
                        key = tuple(case[name] for name in KEY)
                        if key not in known:
                            known[key] = case | outcome(data, case)
                            if options.state:
                                write_json(options.state, list(known.values()))
                        cases.append(known[key])
                    say(cases)


if __name__ == "__main__":
    main()
