"""The share of the rate of a matrix product that whole iterations and trainings reach on one thread.

`share/{dc,dm,mtt,autoencoder,pixel}` is an iteration of `ld3m distill` on the embedded set, `share/sample` a set of
`ld3m sample`, `share/NETWORK` a training under `quick`: its first tenth, and a tenth of its test. `ratio` is the share:
FLOP of products and convolutions over the time, against a 1536³ float32 product timed between the runs.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch

from benchmarks.iteration import gradients
from benchmarks.main_job import SETTINGS
from ld3m.data import load
from ld3m.distillation.experts import train_experts
from ld3m.distillation.job import objective_of, prepare
from ld3m.evaluation.protocols import find
from ld3m.evaluation.training import train_and_test
from ld3m.priors import load_prior
from ld3m.sampling.dataset import sample_dataset

SIDE = {"cpu": 1536, "smoke": 64}  # of the matrices
PARTS = {"cpu": 10, "smoke": 100}  # of a training and its test images, of which one is run
SAMPLING: dict[str, dict[str, object]] = {
    "cpu": {"prior": "builtin", "real_images": 16, "steps": 10, "stop": 6},
    "smoke": {"prior": "random:tiny", "class_ids": (0,) * 10, "steps": 2, "stop": 1, "real_images": 8},
}
NETWORKS = ("AlexNet-w0.5", "ResNet18-w0.5", "VGG11-w0.5", "ConvNet-w0.5")
ITERATIONS: dict[str, dict[str, object]] = {
    "dc": {},
    "dm": {"algorithm": "dm"},
    "mtt": {"algorithm": "mtt", "max_start_epoch": 1, "expert_epochs": 1},
    "autoencoder": {"space": "autoencoder"},
    "pixel": {"space": "pixel"},
}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time beside a matrix product; each is made when it is first called, for `--op`."""
    if suite in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:  # of experts, read in every iteration
            yield from _cases(suite, folder)


def _cases(suite: str, folder: str) -> Iterator[dict]:
    side = SIDE[suite]
    factors = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
    works: dict[str, Callable[[], Callable[[], object]]] = {
        **{name: partial(_iteration, suite, settings, folder) for name, settings in ITERATIONS.items()},
        "sample": partial(_sampling, SAMPLING[suite]),
        **{name: partial(_training, name, PARTS[suite]) for name in NETWORKS},
    }
    for name, make in works.items():
        make = cache(make)
        run = lambda make=make: make()()  # noqa: E731
        yield {
            "name": f"share/{name}",
            "mode": "training" if name in NETWORKS else "set" if name == "sample" else "iteration",
            "shape": (10, 3, 32, 32),
            "dtype": "float32",
            "against": f"{side}x{side}x{side} product",
            "ours": run,
            "work": run,
            "baseline": lambda: torch.mm(*factors),
            "baseline_flop": 2 * side**3,
            "baseline_runs": 4,
            "tolerance": None,
            "runs": 5 if suite == "cpu" else 1,
        }


def _iteration(suite: str, settings: dict[str, object], folder: str) -> Callable[[], object]:
    """Return an iteration: the gradients of all that is learnt."""
    settings = {"evaluate": "none", **SETTINGS[suite], **settings}
    if settings.get("space") in ("pixel", "autoencoder"):
        settings.pop("steps", None)
    if settings.get("space") == "pixel":
        settings.pop("prior", None)
    options = {"out": None, "resume": False, "overwrite": False}
    if settings.get("algorithm") == "mtt":
        own = prepare("builtin", {k: v for k, v in settings.items() if k in SETTINGS[suite]}, **options)
        network = {"network": own.config.network, "width": own.config.width, "device": own.device}
        train_experts(own.dataset, folder, **network, num_experts=1, epochs=2, progress=False)
        settings["experts"] = folder
    job = prepare("builtin", settings, **options)
    objective = objective_of(job, progress=False)
    return lambda: gradients(job, lambda: objective.backward(0))


def _sampling(options: dict[str, object]) -> Callable[[], object]:
    """Return a short set of `ld3m sample` without its start: one image of each class out of few groups, few steps."""
    options = options | {"prior": load_prior(options["prior"], device="cpu"), "groups": 1000}
    return lambda: sample_dataset("builtin", progress=False, evaluate="none", **options).images


def _training(name: str, parts: int) -> Callable[[], object]:
    """Return the first part of a training on one image of each class, with the same part of its test."""
    dataset, protocol = load("builtin", resolution=32), find("quick")
    kept = len(dataset.test) // parts
    test = replace(dataset.test, images=dataset.test.images[:kept], labels=dataset.test.labels[:kept])
    dataset, recipe = replace(dataset, test=test), protocol.recipe(name)
    recipe = recipe.with_epochs(max(2, recipe.epochs // parts), ema_scales=True)
    protocol = replace(protocol, recipes={name.partition("-")[0]: recipe})
    first = torch.stack([dataset.train.of_class(label)[0] for label in range(dataset.train.num_classes)])
    images, labels = dataset.train.batch(first), dataset.train.labels[first]
    return lambda: torch.tensor(
        train_and_test(name, [images], labels, dataset, protocol, [torch.Generator().manual_seed(0)])
    )
