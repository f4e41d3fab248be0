"""Defaults of a distillation by name."""

from typing import Any

# Learning rates by algorithm. What stands under a space's name holds in that space, where scales are others.
PRESETS: dict[str, dict[str, Any]] = {
    # Sized for five minutes, evaluation included, on two CPU cores; found in benchmarks/NOTES.md.
    "builtin": {
        "lr": {"dc": 0.3, "dm": 0.3, "mtt": 100.0},
        "pixel": {"lr": {"dc": 1.0, "dm": 1.0, "mtt": 100.0}},
        "glad": {
            "lr": {"dc": 3.0, "dm": 3.0, "mtt": 3000.0}, "lr_codes": {"dc": 0.1, "dm": 0.1, "mtt": 100.0}, "layer": 4,
        },
        "iterations": 50,
        "steps": 10, "width": 64, "real_batch": 32, "num_experts": 4, "expert_training_epochs": 6,
        "expert_epochs": 2, "max_start_epoch": 4, "student_steps": 10, "evaluate": "quick",
    },
    # arXiv 2403.03881, supplement.
    "paper": {
        "lr": {"dc": 1e-3, "dm": 1e-2, "mtt": 10.0},
        # The commands of GLaD (arXiv 2305.01649).
        "glad": {
            "lr": {"dc": 1.0, "dm": 10.0, "mtt": 1e4}, "lr_codes": {"dc": 1e-3, "dm": 1e-2, "mtt": 10.0},
            "layer": {"dc": 16, "dm": 20, "mtt": 12}, "iterations": 1000,
        },
        "iterations": 5000, "steps": 10, "width": 128, "real_batch": 256, "num_experts": 5000,
        "expert_training_epochs": 15, "expert_epochs": 3, "max_start_epoch": 5, "student_steps": 20,
        "evaluate": "glad-hard",
    },
    # Defaults of the released code's command line.
    "released": {
        "lr": {"dc": 0.1, "dm": 1.0, "mtt": 1000.0},
        "glad": {
            "lr": {"dc": 1.0, "dm": 10.0, "mtt": 1e4}, "lr_codes": {"dc": 1e-3, "dm": 1e-2, "mtt": 10.0},
            "layer": {"dc": 16, "dm": 20, "mtt": 5},
        },
        "iterations": 10000, "steps": 10, "width": 128, "real_batch": 256, "num_experts": 5000,
        "expert_training_epochs": 15, "expert_epochs": 2, "max_start_epoch": 2, "student_steps": 10,
        "evaluate": "glad-hard",
    },
}  # fmt: skip
