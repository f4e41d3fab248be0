"""Settings of every command: what a user may say, presets for the rest, and checks of both."""

from ld3m.config.distill import PRESETS, Config, DistillConfig, RunConfig, build, one_of, read_yaml, resolve, to_yaml
from ld3m.config.sample import SampleConfig

__all__ = [
    "PRESETS", "Config", "DistillConfig", "RunConfig", "SampleConfig", "build", "one_of", "read_yaml", "resolve",
    "to_yaml",
]  # fmt: skip
