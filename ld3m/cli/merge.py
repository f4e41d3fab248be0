"""`ld3m merge`."""

from dataclasses import dataclass
from pathlib import Path

from ld3m.cli.commands import Command, Positional


@dataclass(frozen=True)
class MergeCommand(Command):
    """Make one run of the shards that `ld3m sample --shard` left; it is evaluated as their settings say."""

    run: Positional[Path]
    """The --out of the shards."""
    data: Positional[str | None] = None
    """Data of the shards, where it is in another place now."""
    quiet: bool = False
    """No progress bars."""

    def execute(self) -> None:
        from ld3m.sampling.merging import merge

        result = merge(self.run, self.data, progress=not self.quiet)
        print(f"{len(result.labels)} images of {len(result.class_names)} classes in {self.run}")
