"""Is a prior typical and diverse? Two figures, from networks trained on real and on sampled images.

    python benchmarks/prior_quality.py [--prior builtin] [--out benchmarks/results/prior_quality.json]

typical: how many of 100 guided samples a class (g = 3, 20 steps) a ConvNet trained on the real training images puts
into their class. diverse: test accuracy of a ConvNet trained on 600 unguided samples a class, as a share of that of the
one trained on the 600 real ones.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import ld3m
from ld3m import networks
from ld3m.data import Dataset, load
from ld3m.evaluation.protocols import Protocol, Recipe
from ld3m.evaluation.training import accuracy, train
from ld3m.prior_training.preview import sample_images
from ld3m.runs.facts import versions
from ld3m.runtime import seeds

# Plain training, no averaging of weights.
RECIPE = Recipe(rate=0.02, epochs=12, ema_decay=0.0)
PROTOCOL = Protocol(name="prior-quality", networks=("ConvNet",), recipes={"ConvNet": RECIPE}, batch=64)


def fitted(dataset: Dataset, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    draw = seeds.generator(seed, "prior quality")
    network = networks.build("ConvNet", num_classes=10, resolution=32, width=64, generator=draw)
    train(network, dataset.normalize(images), labels, PROTOCOL, RECIPE, draw)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="builtin")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prior_quality.json")
    arguments = parser.parse_args()
    started = time.perf_counter()
    dataset = load("builtin", resolution=32)
    prior = ld3m.load_prior(arguments.prior)
    per_class = len(dataset.train) // 10

    images = dataset.train.batch(torch.arange(len(dataset.train)))
    judge = fitted(dataset, images, dataset.train.labels, seed=0)
    real_accuracy = accuracy(judge, dataset)
    print(f"ConvNet on {per_class} real images per class: {real_accuracy:.1f} % on the test split", flush=True)

    ids = torch.arange(10).repeat_interleave(100)
    guided = sample_images(prior, ids, seeds.generator(1, "guided"), steps=20, guidance_scale=3.0)
    with torch.no_grad():
        found = judge.eval()(dataset.normalize(guided)).argmax(1)
    typical = [100 * (found[ids == k] == k).float().mean().item() for k in range(10)]
    print(f"typical: {sum(typical) / 10:.1f} % of guided samples in their class", flush=True)

    ids = torch.arange(10).repeat_interleave(per_class)
    unguided = sample_images(prior, ids, seeds.generator(1, "unguided"), steps=20, guidance_scale=1.0)
    sampled_accuracy = accuracy(fitted(dataset, unguided, ids, seed=0), dataset)
    share = 100 * sampled_accuracy / real_accuracy
    print(
        f"diverse: {sampled_accuracy:.1f} % on {per_class} unguided samples a class, {share:.1f} % of real",
        flush=True,
    )

    result = {
        "command": f"python benchmarks/prior_quality.py --prior {arguments.prior}",
        "classes": dataset.class_names,
        "typical_percent_by_class": [round(value, 1) for value in typical],
        "typical_percent": round(sum(typical) / 10, 2),
        "real_accuracy_percent": round(real_accuracy, 2),
        "sampled_accuracy_percent": round(sampled_accuracy, 2),
        "diverse_percent_of_real": round(share, 2),
        "seconds": round(time.perf_counter() - started),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
