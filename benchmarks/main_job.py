"""An iteration of `ld3m distill` without options, against the same iteration before there were kernels.

Before: torch's operations in place of every op, the prior as diffusers wrote it, and classes matched one by one.
"""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import torch

from benchmarks.iteration import gradients
from ld3m import matching
from ld3m.distillation.job import Job, objective_of, prepare
from ld3m.distillation.objectives import ClassMatching

SETTINGS = {"cpu": {}, "smoke": {"prior": "random:tiny", "steps": 2, "width": 4, "real_batch": 4}}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield the one case: the gradients of all parameters, by one iteration."""
    if suite not in SETTINGS:
        return
    now, before = (_job(SETTINGS[suite]) for _ in range(2))
    before.space.prior.set_execution(None)
    options = {"classes_in_flight": before.plan.classes_in_flight, "device": before.device}
    before_objective = ClassMatching(before.space, before.dataset, before.config, **options)
    objective = objective_of(now, progress=False)
    yield {
        "name": "main-job",
        "mode": "iteration",
        "shape": tuple(now.space.parameters["latents"].shape),
        "dtype": "float32",
        "against": "without kernels",
        "ours": lambda: gradients(now, lambda: objective.backward(0)),
        "baseline": lambda: gradients(before, lambda: before_objective.backward(0)),
        "context": without_kernels,
        "tolerance": 2e-2,  # as in `dc_loss`
        "runs": 5 if suite == "cpu" else 1,
    }


def _job(settings: dict[str, object]) -> Job:
    return prepare("builtin", {"evaluate": "none", **settings}, out=None, resume=False, overwrite=False)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Run the block on torch's own operations, with one class at a time in `dc_loss`."""

    def by_class(network, real, synthetic, labels, **options):
        parts = zip(real.split(1), synthetic.split(1), labels.split(1), strict=True)
        return torch.cat([matching.dc_loss(network, *part, **options) for part in parts])

    with (
        patch("ld3m.ops.backends.FORCED", "eager"),
        patch("ld3m.matching.gradient.fused", lambda network: network),
        patch("ld3m.matching.dc.dc_loss", by_class),
    ):
        yield
