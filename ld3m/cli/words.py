"""The words of the help: groups of options, the defaults that are left open, and choices."""

from collections.abc import Mapping
from typing import Any

from ld3m.config import PRESETS

# Settings: group -> options, in the order of the help
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "DistillConfig": {
        "main": (
            "prior", "ipc", "iterations", "resolution", "algorithm", "space", "lr", "preset", "evaluate", "seed",
        ),
        "start": ("init", "init_conditioning", "class_ids", "learn"),
        "matching": ("network", "width", "metric", "real_batch", "augment", "keep", "teacher"),
        "chain": ("steps", "guidance_scale", "injection", "schedule", "noise", "latent_size"),
        "mtt": (
            "experts", "num_experts", "expert_training_epochs", "expert_epochs", "max_start_epoch", "student_steps",
            "student_lr", "unroll",
        ),
        "glad": ("layer", "lr_codes"),
        "images": ("holdout", "strict", "bit_range", "classes", "per_class", "per_class_seed", "prior_config"),
        "machine": (
            "device", "dtype", "memory_budget", "retain", "classes_in_flight", "micro_batch", "decoder_batch",
            "real_chunk", "compile", "attention", "cuda_graphs",
        ),
    },
    "SampleConfig": {
        "main": (
            "prior", "ipc", "selector", "resolution", "steps", "stop", "guidance_scale", "inversion_guidance",
            "evaluate", "seed",
        ),
        "sampler": ("sampler", "variance", "spacing", "guided_channels", "modes", "pull", "pull_steps"),
        "selection": ("groups", "weights", "compat", "real_images", "statistics", "class_ids"),
        "images": ("holdout", "strict", "bit_range", "classes", "per_class", "per_class_seed", "prior_config"),
        "machine": ("device", "dtype", "micro_batch"),
    },
    "RefineConfig": {
        "main": ("prior", "resolution", "steps", "stop", "guidance_scale", "pull", "pull_steps", "evaluate", "seed"),
        "sampler": ("sampler", "variance", "spacing", "guided_channels", "class_ids", "prior_config"),
        "machine": ("device", "dtype", "micro_batch"),
    },
    "SelectConfig": {
        "main": ("by", "ipc", "resolution", "teacher", "scores_from", "evaluate", "seed"),
        "selection": ("tiles", "candidates", "crops", "early_networks", "early_epochs"),
        "images": ("holdout", "strict", "bit_range", "classes", "per_class", "per_class_seed"),
        "machine": ("device",),
    },
}  # fmt: skip

# What holds where an option is left out and no preset has it
DEFAULTS = {
    "data": "builtin",
    "EvaluateCommand.data": "the data that was distilled",
    "EvaluateCommand.out": "the folder of the run; none for another set",
    "EvaluateConfig.resolution": "that of the set",
    "set_mean": "not normalized",
    "set_std": "not normalized",
    "set_normalized": "not normalized",
    "classes": "all",
    "per_class": "all",
    "per_class_seed": "the first ones",
    "EvaluateConfig.dtype": "the protocol's",
    "EvaluateConfig.bit_range": "as in the distillation",
    "out": "a new folder under runs/",
    "config": "no file",
    "prior_config": "none is needed by most priors",
    "resolution": "the prior's",
    "class_ids": "matched by name",
    "device": "cuda where there is one, else cpu",
    "dtype": "bfloat16 on a GPU, else float32",
    "holdout": "0.1 where the data has no test split",
    "bit_range": "auto",
    "evaluate": "quick below 128 px, else glad-hard",
    "preset": "builtin below 128 px, else paper",
    "keep": "all",
    "tiles": "2, but 1 for rded below 64 px",
    "SelectConfig.resolution": "the teacher's, else 32",
    "SelectConfig.teacher": "one is trained",
    "scores_from": "measured anew",
    "DistillConfig.teacher": "one is trained, with keep",
    "experts": "they are trained first",
    "memory_budget": "0.8 of a GPU's, 0.25 of a computer's",
    "retain": "planned by the memory",
    "DistillConfig.classes_in_flight": "planned by the memory",
    "DistillConfig.micro_batch": "planned by the memory",
    "DistillConfig.decoder_batch": "planned by the memory",
    "DistillConfig.real_chunk": "planned by the memory",
    "compile": "True on a GPU",
    "cuda_graphs": "True on a GPU",
    "latent_size": "by the resolution",
    "real_images": "100 below 128 px, else all",
    "statistics": "gathered anew",
    "variance": "learned where the prior has learned them, else fixed-small",
    "guided_channels": "all",
    "pull": "0.1 for modes, 0.5 for transport",
    "RefineCommand.data": "none",
    "RefineCommand.real": "the data of the run",
    "RefineConfig.resolution": "that of the set",
    "RefineConfig.pull": "0.1",
    "RefineConfig.pull_steps": "half to a quarter of the grid",
    "pull_steps": "the noisier half of the grid; 0.9 to 0.6 of it for transport",
    "compat": "as in this package",
    "networks": "the protocol's",
    "epochs": "the protocol's",
    "labels": "the protocol's",
    "teacher": "none, for hard labels",
    "together": "True on a GPU",
    "steps": "by preset",
    "real_batch": "by preset",
    "width": "that of ld3m distill --algorithm mtt",
    "budget": "no plan",
}


def choices(option: str) -> tuple[str, ...]:
    """Return the words that an option of the tables of other rooms takes; nothing for other options."""
    from ld3m import networks
    from ld3m.evaluation import PROTOCOLS
    from ld3m.evaluation.comparison import BASELINES
    from ld3m.matching import LOSSES
    from ld3m.runs.exporting import FORMATS
    from ld3m.runs.report import SCORES
    from ld3m.sampling import SELECTORS
    from ld3m.selection import SELECTIONS
    from ld3m.spaces import SPACES

    hard = (name for name, protocol in PROTOCOLS.items() if protocol.labels == "hard")
    tables = {
        "algorithm": LOSSES, "space": SPACES, "network": networks.NETWORKS, "networks": networks.NETWORKS,
        "protocol": PROTOCOLS, "evaluate": (*hard, "none"), "selector": SELECTORS, "baselines": BASELINES,
        "scores": SCORES, "by": SELECTIONS, "format": FORMATS, "learn": ("latents", "conditioning"),
    }  # fmt: skip
    return tuple(tables.get(option, ()))


def preset_words(setting: str) -> str:
    """Say what the presets give a setting of a distillation; "" where none does."""
    said = {name: _shown(preset, setting) for name, preset in PRESETS.items()}
    if not any(said.values()):
        return ""
    first, *others = said.items()
    more = (f"; {name}: {text}" for name, text in others if text and text != first[1])
    return f"by preset: {first[1]}{''.join(more)}"


def _shown(preset: Mapping[str, Any], setting: str) -> str:
    value = preset.get(setting, preset["glad"].get(setting) if "glad" in preset else None)
    if isinstance(value, Mapping):
        same = len(set(value.values())) == 1
        return f"{next(iter(value.values())):g}" if same else ", ".join(f"{k} {v:g}" for k, v in value.items())
    return "" if value is None else str(value)
