"""A command: a frozen dataclass whose fields are its options, and what it does."""

from dataclasses import dataclass

import tyro

from ld3m.cli.form import read_command

Positional = tyro.conf.Positional
Flat = tyro.conf.OmitArgPrefixes  # a nested dataclass whose options stand beside the others


@dataclass(frozen=True)
class Command:
    """Base of the commands: the docstring of each is its help, `execute` does it."""

    @classmethod
    def call(cls, argv: list[str], prog: str) -> None:
        """Read a command line and do what it says; tyro prints what it refuses, and exits with status 2."""
        read_command(cls, argv, prog).execute()

    def execute(self) -> None:
        raise NotImplementedError
