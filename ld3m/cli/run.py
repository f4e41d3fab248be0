"""The commands that make a run: settings from a file, the stored run and the command line; then the run itself."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ld3m.cli.commands import Command, Flat, Positional, parse
from ld3m.cli.processes import TIMEOUT, is_one_of_several, launcher, speaks
from ld3m.config import DistillConfig, RefineConfig, SampleConfig, SelectConfig, SetConfig, build, read_yaml
from ld3m.errors import ConfigError, ProcessError

if TYPE_CHECKING:
    from ld3m.runs.result import Result


@dataclass(frozen=True)
class RunCommand(Command):
    """Base of the commands that make a run."""

    out: Path | None = None
    """Output folder; one named by data, method and time under runs/ when not given."""
    resume: bool = False
    """Go on with the run in --out; settings that are not given are the stored ones."""
    overwrite: bool = False
    """Replace the run in --out."""
    config: Path | None = None
    """YAML of settings; options on the command line win over it."""
    quiet: bool = False
    """No progress bars."""
    timeout: float = TIMEOUT
    """Minutes that one of several processes waits for the others."""
    cache: str | None = None
    """Folder for decoded images that later commands use, or "off"; the user's cache, for large sets, when not given."""
    data: Positional[str | None] = None
    """Folder or zip of images, one folder per class; "builtin" when not given."""
    settings: Flat[SetConfig] = field(default_factory=SetConfig)

    @property
    def method(self) -> str:
        """The middle of a run's name, between data and time."""
        raise NotImplementedError

    @staticmethod
    def function() -> "Callable[..., Result]":
        """Return what makes the run."""
        raise NotImplementedError

    @classmethod
    def default_data(cls, stored: str | None) -> str:
        """Return the data where none are named: those of the resumed run, or the embedded ones."""
        return stored or "builtin"

    def more(self) -> dict[str, object]:
        """Return what it takes beside what all take."""
        return {}

    @classmethod
    def call(cls, argv: list[str], prog: str) -> None:
        """Parse a command line, make the run, and say where it is and what it scores."""
        file, stored_data = _base_settings(argv)
        base = cls()
        base = replace(base, settings=build(file, base.settings))
        # With the file's or the run's values as defaults, what differs was said on the command line.
        parsed = parse(cls, argv, prog, base)
        pairs = {
            f.name: (getattr(parsed.settings, f.name), getattr(base.settings, f.name)) for f in fields(base.settings)
        }
        said = {name: now for name, (now, before) in pairs.items() if now != before}
        data = parsed.data or cls.default_data(stored_data)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = parsed.out or _common(Path("runs") / f"{Path(data).stem}-{parsed.method}-{stamp}")
        with parsed.keeping_images():
            parsed.make(data, out, said if parsed.resume else file | said, prog)

    def make(self, data: str, out: Path, settings: dict[str, Any], prog: str) -> None:
        """Make the run; print the command to go on with when it is interrupted, and what came out at the end."""
        from ld3m.runs.folder import EVALUATION
        from ld3m.runs.marker import settings_path
        from ld3m.runs.report import Report

        options = {"resume": self.resume, "overwrite": self.overwrite, "progress": not self.quiet, **self.more()}
        try:
            result = self.function()(data, out=out, **options, **settings)
        except (KeyboardInterrupt, ProcessError):
            if settings_path(out).is_file() and speaks():
                kept = "" if self.cache is None else f" --cache {shlex.quote(self.cache)}"
                again = f"{launcher(prog)} --out {shlex.quote(str(out))} --resume{kept}"
                print(f"\ngo on with: {again}", file=sys.stderr)
            raise
        print(f"\n{len(result.labels)} images of {len(result.class_names)} classes in {out}")
        if (out / EVALUATION).is_file():
            print(Report.from_json((out / EVALUATION).read_text(encoding="utf-8")).table())


@dataclass(frozen=True)
class DistillCommand(RunCommand):
    """Distil a data set into a few synthetic images per class."""

    is_shared = True

    settings: Flat[DistillConfig] = field(default_factory=DistillConfig)

    @property
    def method(self) -> str:
        return f"{self.settings.algorithm}-{self.settings.space}"

    @staticmethod
    def function() -> "Callable[..., Result]":
        from ld3m.distillation.loop import distill

        return distill


@dataclass(frozen=True)
class SampleCommand(RunCommand):
    """Sample a few images per class from a prior, by statistics of the real images (D3HR)."""

    is_shared = True

    shard: str | None = None
    """i/n, i from 0: sample every n-th class from class i on, in shards/ of --out, for `ld3m merge`."""
    settings: Flat[SampleConfig] = field(default_factory=SampleConfig)

    @property
    def method(self) -> str:
        return f"sample-{self.settings.selector}"

    def more(self) -> dict[str, object]:
        return {} if self.shard is None else {"shard": self.shard}

    @staticmethod
    def function() -> "Callable[..., Result]":
        from ld3m.sampling.dataset import sample_dataset

        return sample_dataset


@dataclass(frozen=True)
class RefineCommand(RunCommand):
    """Noise the images of any set and sample them back by a prior, each pulled to what it was (DIVER)."""

    data: Positional[str | None] = None
    """The set: the folder of a run, or anything that `ld3m evaluate` scores."""
    real: Positional[str | None] = None
    """The data that the set stands for; that of the run when not given."""
    settings: Flat[RefineConfig] = field(default_factory=RefineConfig)

    @property
    def method(self) -> str:
        return "refine"

    @classmethod
    def default_data(cls, stored: str | None) -> str:
        raise ConfigError("refine needs a set: the folder of a run, or anything that ld3m evaluate scores")

    def more(self) -> dict[str, object]:
        return {} if self.real is None else {"data": self.real}

    @staticmethod
    def function() -> "Callable[..., Result]":
        from ld3m.sampling.refined import refine

        return refine


@dataclass(frozen=True)
class SelectCommand(RunCommand):
    """Choose a few real images per class, as a set that a distilled one has to beat."""

    settings: Flat[SelectConfig] = field(default_factory=SelectConfig)

    @property
    def method(self) -> str:
        return f"select-{self.settings.by}"

    @staticmethod
    def function() -> "Callable[..., Result]":
        from ld3m.sampling.selected import select

        return select


def _common(out: Path) -> Path:
    """Return the folder that the main process names: its name has the time in it."""
    if not is_one_of_several():
        return out
    from ld3m.runtime import processes

    return processes.from_main(lambda: out)


def _base_settings(argv: list[str]) -> tuple[dict[str, object], str | None]:
    """Return the settings beneath the command line, and the data they name: of --config, or of the resumed run."""
    from ld3m.runs.marker import settings_path

    # Only what says where they are is read here: whether the others agree shows on top of them.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=False)
    try:
        given, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError:  # an option without its value, which the whole command line is refused for
        return {}, None
    path = given.config
    path = None if path is None else _home_written_out(path)
    if given.resume:
        if given.config is not None:
            raise ConfigError("config and resume exclude each other: a resumed run has its settings already")
        if given.out is None:
            raise ConfigError("resume needs --out, the folder of the run to go on with")
        path = settings_path(_home_written_out(given.out))
        if not os.path.isfile(path):
            return {}, None
    settings = {} if path is None else read_yaml(path)
    data = settings.pop("data", None)
    return settings, None if data is None else str(data)


def _home_written_out(path: Path) -> Path:
    return Path(os.path.expanduser(path))
