"""Distil an image data set into a few synthetic images per class through a frozen latent diffusion model."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as in _HOMES, for type checkers and editors
    from ld3m import chain as chain
    from ld3m import config as config
    from ld3m import data as data
    from ld3m import evaluation as evaluation
    from ld3m import matching as matching
    from ld3m import networks as networks
    from ld3m import priors as priors
    from ld3m.chain import invert, reverse_chain, sample
    from ld3m.distillation.loop import distill
    from ld3m.evaluation import evaluate
    from ld3m.memory import plan_memory
    from ld3m.priors import load_prior
    from ld3m.runs.exporting import export
    from ld3m.runs.result import Result, load
    from ld3m.sampling.dataset import sample_dataset
    from ld3m.sampling.merging import merge
    from ld3m.sampling.refined import refine
    from ld3m.sampling.selected import select

__version__ = "0.1.0"

# Public names are imported when first used, so that `import ld3m` costs little and needs neither diffusers nor Pillow.
_HOMES = {
    "Result": "ld3m.runs.result",
    "distill": "ld3m.distillation.loop",
    "evaluate": "ld3m.evaluation",
    "export": "ld3m.runs.exporting",
    "invert": "ld3m.chain",
    "load": "ld3m.runs.result",
    "merge": "ld3m.sampling.merging",
    "load_prior": "ld3m.priors",
    "plan_memory": "ld3m.memory",
    "refine": "ld3m.sampling.refined",
    "reverse_chain": "ld3m.chain",
    "sample": "ld3m.chain",
    "sample_dataset": "ld3m.sampling.dataset",
    "select": "ld3m.sampling.selected",
}

__all__ = [
    "Result", "__version__", "distill", "evaluate", "export", "invert", "load", "load_prior", "merge", "plan_memory",
    "refine", "reverse_chain", "sample", "sample_dataset", "select",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        try:
            return importlib.import_module(f"ld3m.{name}")  # ld3m.networks, ld3m.matching ... without an import line
        except ModuleNotFoundError as error:
            if error.name != f"ld3m.{name}":
                raise
            raise AttributeError(f"module 'ld3m' has no attribute {name!r}") from None
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
