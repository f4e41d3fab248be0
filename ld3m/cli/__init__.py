"""The command line: each command does what a function of the package does; `ld3m sample` is `sample_dataset`."""

import difflib
import logging
import sys
from dataclasses import MISSING, fields

from ld3m import __version__
from ld3m.cli import processes
from ld3m.cli.commands import Command, one_line
from ld3m.cli.completion import CompletionCommand
from ld3m.cli.doctor import DoctorCommand
from ld3m.cli.evaluate import EvaluateCommand
from ld3m.cli.export import ExportCommand
from ld3m.cli.form import is_positional
from ld3m.cli.info import InfoCommand
from ld3m.cli.interrupts import Interrupts
from ld3m.cli.merge import MergeCommand
from ld3m.cli.processes import complain
from ld3m.cli.run import DistillCommand, RefineCommand, SampleCommand, SelectCommand
from ld3m.cli.streams import drop, open_streams, passing_over_errors
from ld3m.cli.training import ExpertsCommand, PriorTrainCommand, TeacherCommand
from ld3m.errors import Ld3mError

# name: command, its line in the usage
COMMANDS: dict[str, tuple[type[Command], str]] = {
    "distill": (DistillCommand, "distil, evaluate, write a folder with images and report"),
    "sample": (SampleCommand, "sample images from a prior by statistics of the real ones (D3HR), the same folder"),
    "refine": (RefineCommand, "make any set more natural by a prior (DIVER), the same folder"),
    "select": (SelectCommand, "choose real images, by a teacher or without, the same folder"),
    "merge": (MergeCommand, "make one run of the shards that `sample --shard` left"),
    "evaluate": (EvaluateCommand, "train networks on a distilled set and on real images, compare"),
    "experts": (ExpertsCommand, "train expert trajectories for --algorithm mtt"),
    "prior train": (PriorTrainCommand, "train a small latent diffusion model on your own images"),
    "teacher": (TeacherCommand, "train a teacher for soft labels"),
    "export": (ExportCommand, "copy a distilled set out, as an image folder or as tensors"),
    "info": (InfoCommand, "versions, devices, priors, networks"),
    "doctor": (DoctorCommand, "what is there, what is slow and why, and what to do"),
    "completion": (CompletionCommand, "a script that lets bash or zsh complete all of this"),
}
_TITLES = {
    "": "ld3m: distil an image data set into a few synthetic images per class",
    "prior": "ld3m prior: make a prior of your own",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; return 0, 2 for an error with a message, 130 when interrupted, 143 or 129 by SIGTERM or SIGHUP."""
    open_streams()
    with passing_over_errors():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ld3m").setLevel(logging.INFO)
    with Interrupts() as interrupts:
        try:
            status = _status(argv, interrupts)
            if not status or not interrupts.has_come:
                return status
        except KeyboardInterrupt:
            pass
        except Exception:  # what a library made of an interrupt
            if not interrupts.has_come:
                raise
        if processes.speaks():
            print("\ninterrupted", file=sys.stderr)
        return interrupts.status


def _status(argv: list[str], interrupts: Interrupts) -> int:
    """Run a command; say on one line what it is refused for."""
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
    except Ld3mError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader has gone, such as `head`; nothing is left to be said to it
        drop(sys.stdout)
        if interrupts.has_come:
            raise
        return 0
    except (RuntimeError, MemoryError, OSError) as error:
        if interrupts.has_come:
            raise
        return _explain(error)
    return status


def _dispatch(argv: list[str]) -> int:
    """Run what the first words name."""
    if argv[:1] == ["prior"]:
        argv = [" ".join(argv[:2]), *argv[2:]]
    if argv[:1] == ["--version"]:
        print(f"ld3m {__version__}")
        return 0
    if argv[:1] == ["help"]:
        return _dispatch([*argv[1:], "--help"])
    name = argv[0] if argv else ""
    group = name.removesuffix("--help").removesuffix("-h").strip()
    if group in _TITLES:
        print(_usage(group))
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"ld3m: no command {name!r}{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    command = COMMANDS[name][0]
    if processes.is_one_of_several() and not command.is_shared:
        complain(f"ld3m: error: ld3m {name} runs in one process; start it without torchrun")
        return 2
    with processes.joined(argv):
        command.call(argv[1:], f"ld3m {name}")
    return 0


def _explain(error: RuntimeError | MemoryError | OSError) -> int:
    """Say on one line what the machine refused; any other error is one of the program's own, and is raised."""
    from ld3m.runtime.devices import is_out_of_memory

    if is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0] or "there is no more"
        remedy = "lower a batch or the resolution, or take dtype bfloat16 where the command has it"
        return _fail(f"out of memory ({reason}); {remedy}")
    if not isinstance(error, OSError):
        raise error
    drop(sys.stdout)
    where = f" {error.filename}" if error.filename else ""
    reason = error.strerror or error
    return _fail(f"the system refused{where}: {reason}; check the path, its permissions and the room on the disk")


class _Plain(logging.Formatter):
    """Messages without control characters: they name files, whose names may have them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(one_line, super().format(record).split("\n")))  # a traceback has several


def _fail(message: str) -> int:
    complain(f"ld3m: error: {one_line(message)}")
    return 2


def _usage(group: str = "") -> str:
    """Return the usage of all commands, or of those that follow a first word."""
    lines = [
        f"  {f'ld3m {name}{_arguments(kind)}':26} {line}"
        for name, (kind, line) in COMMANDS.items()
        if name.startswith(group)
    ]
    if group:
        return "\n".join([_TITLES[group], "", *lines, "", "`ld3m prior train --help` lists the options.", ""])
    lines.append(f"  {'ld3m help [COMMAND]':26} this, or the options of a command")
    lines.append(f"  {'ld3m --version':26} the version alone")
    about = 'DATA is "builtin" (the default), a folder or zip of one folder per class.'
    return "\n".join([_TITLES[group], "", *lines, "", f"{about} `ld3m COMMAND --help` lists the options.", ""])


def _arguments(kind: type[Command]) -> str:
    """Return the arguments without dashes as a usage has them, " RUN [DATA]"."""
    positional = [f for f in fields(kind) if is_positional(f)]
    return "".join(f" {f.name.upper()}" if f.default is MISSING else f" [{f.name.upper()}]" for f in positional)
