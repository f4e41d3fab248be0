"""The commands that make a run: settings from a file, the stored run and the command line; then the run itself."""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tyro

from ld3m.config.distill import DistillConfig, build, read_yaml
from ld3m.errors import ConfigError
from ld3m.runs.result import Result
from ld3m.sampling import SampleConfig

Positional = tyro.conf.Positional
Flat = tyro.conf.OmitArgPrefixes  # a nested dataclass whose options stand beside the others


@dataclass(frozen=True)
class _RunOptions:
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


@dataclass(frozen=True)
class DistillCommand(_RunOptions):
    """Distil a data set into a few synthetic images per class."""

    data: Positional[str | None] = None
    """Folder or zip of images, one folder per class; "builtin" when not given."""
    settings: Flat[DistillConfig] = field(default_factory=DistillConfig)


@dataclass(frozen=True)
class SampleCommand(_RunOptions):
    """Sample a few images per class from a prior, by statistics of the real images (D3HR)."""

    data: Positional[str | None] = None
    """Folder or zip of images, one folder per class; "builtin" when not given."""
    settings: Flat[SampleConfig] = field(default_factory=SampleConfig)


_Command = TypeVar("_Command", DistillCommand, SampleCommand)


def run(argv: list[str], name: str, command: type[_Command], function: Callable[..., Result]) -> None:
    """Parse a command line, make the run by `function`, and say where it is and what it scores."""
    from ld3m.evaluation import Report

    prog = f"ld3m {name}"
    file, stored_data = _base_settings(argv)
    base = build(file, command().settings)
    # With the file's or the run's values as defaults, what differs was said on the command line.
    parsed = tyro.cli(command, prog=prog, args=argv, default=command(settings=base))
    said = {
        f.name: getattr(parsed.settings, f.name)
        for f in dataclasses.fields(base)
        if getattr(parsed.settings, f.name) != getattr(base, f.name)
    }
    data = parsed.data or stored_data or "builtin"
    out = parsed.out or _default_folder(data, parsed.settings)
    try:
        result = function(
            data,
            out=out,
            resume=parsed.resume,
            overwrite=parsed.overwrite,
            progress=not parsed.quiet,
            **(said if parsed.resume else file | said),
        )
    except KeyboardInterrupt:
        if (out / "config.yaml").is_file():
            print(f"\ngo on with: {prog} --out {shlex.quote(str(out))} --resume", file=sys.stderr)
        raise
    print(f"\n{len(result.labels)} images of {len(result.class_names)} classes in {out}")
    path = out / "evaluation.json"
    if path.is_file():
        print(Report.from_json(path.read_text(encoding="utf-8")).table())


def _base_settings(argv: list[str]) -> tuple[dict[str, object], str | None]:
    """Return the settings beneath the command line, and the data they name: of --config, or of the resumed run."""
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
    if given.resume:
        if given.config is not None:
            raise ConfigError("config and resume exclude each other: a resumed run has its settings already")
        if given.out is None:
            raise ConfigError("resume needs --out, the folder of the run to go on with")
        path = given.out / "config.yaml"
        if not path.is_file():
            return {}, None
    settings = {} if path is None else read_yaml(path)
    data = settings.pop("data", None)
    return settings, None if data is None else str(data)


def _default_folder(data: str, settings: DistillConfig | SampleConfig) -> Path:
    if isinstance(settings, DistillConfig):
        method = f"{settings.algorithm}-{settings.space}"
    else:
        method = f"sample-{settings.selector}"
    return Path("runs") / f"{Path(data).stem}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
