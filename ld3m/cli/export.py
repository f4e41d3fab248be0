"""`ld3m export`."""

from dataclasses import dataclass
from pathlib import Path

from ld3m.cli.commands import Command, Positional


@dataclass(frozen=True)
class ExportCommand(Command):
    """Copy a distilled set out of a run, with a README that says how to load it."""

    run: Positional[Path]
    """Output folder of a distillation."""
    to: Path
    """New folder."""
    format: str = "imagefolder"
    """"imagefolder" (PNG files by class) or "safetensors"."""
    overwrite: bool = False
    """Replace what is in --to."""

    def execute(self) -> None:
        from ld3m.runs.exporting import export

        print(f"exported to {export(self.run, self.format, self.to, overwrite=self.overwrite)}")
