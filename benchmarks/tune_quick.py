"""Find the settings of the protocol `quick`: validation accuracy after training on random real images.

    python benchmarks/tune_quick.py [--networks NAME ...] [--rates R ...] [--epochs E ...] [--ipc N] [--repeats N]

Works on the training split of the embedded set alone: sets are drawn from the first 500 images of each class, the last
100 of each class are the validation images. No distilled and no test image is looked at. Prints a line for each
network, length and learning rate: accuracies in percent (mean ± sample standard deviation over repeats) and CPU seconds
of one training with its test, on one thread.
"""

import argparse
import time
from dataclasses import replace

import torch

from ld3m.data import Dataset, ImageSet, load
from ld3m.data.coreset import random_images
from ld3m.evaluation import PROTOCOLS
from ld3m.evaluation.protocols import Recipe
from ld3m.evaluation.training import train_and_test
from ld3m.runs.report import mean_std
from ld3m.runtime import seeds

POOL = 500  # images of each class that sets are drawn from; the rest validates


def validation_split() -> Dataset:
    """Return the embedded set with validation images in place of its test images."""
    data = load("builtin", resolution=32)
    members = [data.train.of_class(label) for label in range(data.train.num_classes)]
    pool, held_out = (torch.cat([m[part] for m in members]) for part in (slice(POOL), slice(POOL, None)))
    train, test = (
        ImageSet(data.train.images[part], data.train.labels[part], data.class_names) for part in (pool, held_out)
    )
    return replace(data, train=train, test=test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=PROTOCOLS["quick"].networks)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.002, 0.005, 0.01, 0.02, 0.05])
    parser.add_argument("--epochs", nargs="+", type=int, default=[80])
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = validation_split()
    counts = [options.ipc] * data.train.num_classes
    sets = [random_images(data.train, counts, seeds.generator(0, "tune", r)) for r in range(options.repeats)]
    for network in options.networks:
        for epochs in options.epochs:
            for rate in options.rates:
                decay = 0.995 ** (1000 / epochs)  # half-life as in glad-hard: 14 % of the training
                protocol = replace(PROTOCOLS["quick"], recipes={network: Recipe(rate, epochs, decay)})
                start, accuracies = time.process_time(), []
                for repeat, chosen in enumerate(sets):
                    images, labels = data.train.batch(chosen), data.train.labels[chosen]
                    generator = seeds.generator(0, "tune", network, repeat)
                    ((accuracy,),) = train_and_test(network, [images], labels, data, protocol, [generator])
                    accuracies.append(accuracy)
                seconds = (time.process_time() - start) / options.repeats
                mean, std = mean_std(accuracies)
                values = " ".join(f"{value:.1f}" for value in accuracies)
                print(f"{network} ipc {options.ipc} epochs {epochs} rate {rate:g}: ", end="")
                print(f"{mean:.1f} ± {std:.1f} ({values}), {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
