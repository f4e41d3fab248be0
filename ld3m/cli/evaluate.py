"""`ld3m evaluate`."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ld3m.cli.commands import Command, Flat, Positional
from ld3m.config import EvaluateConfig
from ld3m.errors import ConfigError


@dataclass(frozen=True)
class EvaluateCommand(Command):
    """Train networks from scratch on a small set and on real images of the same number, and compare."""

    is_shared = True

    set: Positional[str]
    """Output folder of a run; or a set of anybody's: folder or zip of a folder for each class, .safetensors, .pt or
    .npz of images and labels, hf:NAME."""
    data: Positional[str | None] = None
    """Data set to test on; the one that was distilled when not given."""
    out: Path | None = None
    """Folder of the report, for a set that is no run, beside which nothing is written."""
    settings: Flat[EvaluateConfig] = field(default_factory=EvaluateConfig)
    cache: str | None = None
    """Folder for decoded images that later commands use, or "off"; the user's cache, for large sets, when not given."""
    quiet: bool = False
    """No progress bars."""

    def execute(self) -> None:
        from ld3m.evaluation import evaluate

        data = self.data or self._own_data()
        report = evaluate(
            os.path.expanduser(self.set), data, out=self.out, **vars(self.settings), progress=not self.quiet
        )
        print(report.table())
        if self.out is not None:
            print(f"\nreport in {self.out}")

    def _own_data(self) -> str:
        """Return the data that a run was distilled from."""
        from ld3m.evaluation.inputs import is_run
        from ld3m.runs.result import load

        folder = os.path.expanduser(self.set)
        if not is_run(folder):
            raise ConfigError(f"{self.set} is no run, which knows its data; name DATA to test on after the set")
        data = str(load(folder).config.get("data", "builtin"))
        if data.startswith("<"):
            raise ConfigError(f"the data of {self.set} was given in memory, as {data}; name DATA after the run")
        return data
