"""A command: a frozen dataclass whose fields are its options, and what it does."""

import contextlib
import io
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import tyro

from ld3m.cli.form import read_command
from ld3m.cli.processes import complain
from ld3m.errors import ConfigError

Positional = tyro.conf.Positional
Flat = tyro.conf.OmitArgPrefixes  # a nested dataclass whose options stand beside the others


@dataclass(frozen=True)
class Command:
    """Base of the commands: the docstring of each is its help, `execute` does it.

    `is_shared` says whether several processes may do it together.
    """

    is_shared: ClassVar[bool] = False

    @classmethod
    def call(cls, argv: list[str], prog: str) -> None:
        """Read a command line and do what it says; tyro prints what it refuses, and exits with status 2."""
        command = parse(cls, argv, prog)
        with command.keeping_images():
            command.execute()

    def keeping_images(self) -> contextlib.AbstractContextManager[None]:
        """Return the block in which decoded images are kept where --cache says, with a bar unless it is --quiet."""
        folder, is_quiet = getattr(self, "cache", None), getattr(self, "quiet", False)
        if folder is None and not is_quiet:
            return contextlib.nullcontext()
        from ld3m.data.cache import kept_in

        return kept_in(folder, show=not is_quiet)

    def execute(self) -> None:
        raise NotImplementedError


_Kind = TypeVar("_Kind", bound=Command)
_TITLES = (
    "Invalid choice", "Invalid value", "Missing arguments", "Parsing error", "Required options", "Unrecognized options",
    "Value error",
)  # fmt: skip
_FRAME = re.compile(r"[\u2500-\u257f]+|-{5,}|^[|+]+|[|+]+$")


def parse(kind: type[_Kind], argv: list[str], prog: str, default: _Kind | None = None) -> _Kind:
    """Return the command that a command line stands for; what tyro says of a faulty one in a box is one line here."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _with_homes(read_command(kind, argv, prog, default))
    except SystemExit as stop:
        if stop.code:
            lines = [" ".join(_FRAME.sub(" ", line).split()) for line in said.getvalue().splitlines()]
            told = " ".join(line for line in lines if line and line not in _TITLES)
            told = re.sub(r" Argument helptext:.*(?= For full helptext)", ";", told)
            complain(f"ld3m: error: {one_line(told) or f'{prog} takes no such option'}")
        raise


def _with_homes(command: _Kind) -> _Kind:
    """Return the command with ~ in its paths as the home folder it stands for, as data and prior have it."""
    paths = {f.name: value for f in fields(command) if isinstance(value := getattr(command, f.name), Path)}
    try:
        return replace(command, **{name: path.expanduser() for name, path in paths.items()})
    except RuntimeError as error:
        names = ", ".join(f"{name} {path}" for name, path in paths.items())
        raise ConfigError(f"{names} begins with a ~ for which there is no home; write the path out") from error


def one_line(text: str) -> str:
    """Return a text without control characters, which would steer the terminal that it is shown on."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else ascii(c)[1:-1] for c in text)
