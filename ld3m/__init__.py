"""Distil an image data set into a few synthetic images per class through a frozen latent diffusion model."""

import importlib

__version__ = "0.1.0"

# Public names are imported when first used, so that `import ld3m` costs little and needs neither diffusers nor Pillow.
_HOMES = {
    "Result": "ld3m.runs.result",
    "distill": "ld3m.distillation.loop",
    "evaluate": "ld3m.evaluation",
    "export": "ld3m.runs.exporting",
    "invert": "ld3m.chain",
    "load": "ld3m.runs.result",
    "load_prior": "ld3m.priors",
    "plan_memory": "ld3m.memory",
    "reverse_chain": "ld3m.chain",
    "sample": "ld3m.chain",
    "sample_dataset": "ld3m.sampling.dataset",
}

__all__ = ["__version__", *_HOMES]


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
