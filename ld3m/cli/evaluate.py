"""`ld3m evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path

from ld3m.cli.commands import Command, Flat, Positional
from ld3m.config import EvaluateConfig
from ld3m.errors import ConfigError


@dataclass(frozen=True)
class EvaluateCommand(Command):
    """Train networks from scratch on a distilled set and on real images of the same number, and compare."""

    is_shared = True

    run: Positional[Path]
    """Output folder of a distillation."""
    data: Positional[str | None] = None
    """Data set to test on; the one that was distilled when not given."""
    settings: Flat[EvaluateConfig] = field(default_factory=EvaluateConfig)
    quiet: bool = False
    """No progress bars."""

    def execute(self) -> None:
        from ld3m.evaluation import evaluate
        from ld3m.runs.result import load

        data = self.data or str(load(self.run).config.get("data", "builtin"))
        if data.startswith("<"):
            raise ConfigError(f"the data of {self.run} was given in memory, as {data}; name DATA after the run")
        print(evaluate(self.run, data, **vars(self.settings), progress=not self.quiet).table())
