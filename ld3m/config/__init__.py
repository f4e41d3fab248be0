"""Settings of every command: what a user may say, presets for the rest, and checks of both."""

from ld3m.config.checks import (
    check_above_zero,
    check_count,
    check_epochs,
    check_finite,
    check_fraction,
    check_positive,
    check_steps,
    is_count,
    one_of,
)
from ld3m.config.distill import INITS, DistillConfig, ResolvedDistillConfig, resolve
from ld3m.config.evaluate import EvaluateConfig
from ld3m.config.fields import Config, Settings, build, differences, read_yaml, to_plain, to_yaml
from ld3m.config.presets import PRESETS
from ld3m.config.run import RunConfig, SetConfig
from ld3m.config.sample import RefineConfig, ResolvedSampleConfig, SampleConfig
from ld3m.config.select import ResolvedSelectConfig, SelectConfig
from ld3m.config.training import ExpertTraining, TeacherTraining

RESOLVED = (ResolvedDistillConfig, ResolvedSampleConfig, ResolvedSelectConfig)  # of the runs that make a set

__all__ = [
    "INITS", "PRESETS", "RESOLVED", "Config", "DistillConfig", "EvaluateConfig", "ExpertTraining",
    "RefineConfig",
    "ResolvedDistillConfig", "ResolvedSampleConfig", "ResolvedSelectConfig", "RunConfig", "SampleConfig",
    "SelectConfig", "SetConfig", "Settings", "TeacherTraining", "build", "check_above_zero", "check_count",
    "check_epochs", "check_finite", "check_fraction", "check_positive", "check_steps", "differences", "is_count",
    "one_of", "read_yaml", "resolve", "to_plain", "to_yaml",
]  # fmt: skip
