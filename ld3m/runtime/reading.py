"""What is read back: files whose errors are worded, and JSON whose types and ranges are declared and checked.

A check is a function of a value that returns None where it fits and else a `Misfit`. A file's own are declared where
the file is defined, built of those below, and given to `checked`.
"""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld3m.errors import CheckpointError, ConfigError, Ld3mError

_MAX_BYTES = 256 * 2**20
_MAX_DEPTH = 100
_REMEDIES = {
    errno.EACCES: "there is no permission to read it: change that, or run as its owner",
    errno.EPERM: "there is no permission to read it: change that, or run as its owner",
    errno.ENAMETOOLONG: "the name is longer than the file system takes: correct the path",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.EIO: "the disk could not read it: try again, and look at the disk",
    errno.ESTALE: "the file system was lost for a moment: try again",
    errno.ENOMEM: "there is no memory to read it: free some",
    errno.ELOOP: "its links lead in a circle: correct them",
}


@dataclass(frozen=True)
class Misfit:
    """A value that does not fit: where it is, what was expected there, and what came."""

    path: str
    expected: str
    got: object

    def below(self, key: object) -> "Misfit":
        """Return the same from one level up."""
        name = f"[{key}]" if isinstance(key, int) else f".{key}"
        return Misfit(f"{name}{self.path}", self.expected, self.got)


Check = Callable[[object], Misfit | None]


@contextlib.contextmanager
def clear_read_errors(path: str | Path, error: type[Ld3mError] = CheckpointError) -> Generator[None]:
    """Turn an operating system's error of the block into one that names the path and the remedy."""
    try:
        yield
    except FileNotFoundError as found:
        raise error(f"{path} is not there; check the path") from found
    except OSError as found:
        remedy = _REMEDIES.get(found.errno or 0, "check the path")
        raise error(f"could not read {path}: {found.strerror or found}; {remedy}") from found


def require_utf8(path: Path, error: type[Ld3mError] = ConfigError) -> None:
    """Raise where a path, taken from the root, holds bytes that are not UTF-8: no file that names it could be written.

    Python has surrogates in the place of such bytes.
    """
    whole = os.path.abspath(path)
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError as found:
        raise error(f"{whole!a} has a name that is not UTF-8; rename that file or folder") from found


def is_there(path: Path, error: type[Ld3mError] = CheckpointError) -> bool:
    """Whether a file or folder of that name is there; raise where that cannot be told, or said."""
    require_utf8(path, error)
    try:
        with clear_read_errors(path, error):
            path.stat()
    except Ld3mError as found:
        if isinstance(found.__cause__, FileNotFoundError | NotADirectoryError):
            return False
        raise
    except ValueError as found:  # a NUL
        raise error(f"{str(path)!r} is not the name of a file: it holds a NUL; correct the path") from found
    return True


def expanded(path: str | Path, what: str, error: type[Ld3mError] = ConfigError) -> Path:
    """Return a path with ~ as the home folder it stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError as found:
        raise error(f"{what} {str(path)!r} begins with a ~ for which there is no home; write the path out") from found


def read_text(path: Path, error: type[Ld3mError] = CheckpointError) -> str:
    """Read a text file whole."""
    with clear_read_errors(path, error):
        about = path.stat()
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise error(f"{path} is no file but a device or a pipe; check the path")
        if about.st_size > _MAX_BYTES:
            raise error(f"{path} has {about.st_size:,} bytes, too many for such a file; check the path")
        content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as found:
        raise error(f"{path} is damaged: it is not UTF-8 text (byte {found.start}); restore it") from found


def read_json(
    path: Path, check: Check | None = None, *, remedy: str, error: type[Ld3mError] = CheckpointError
) -> dict[str, Any]:
    """Read a JSON file that holds an object, and check it."""
    return parse_json(read_text(path, error), check or mapping({}), source=str(path), remedy=remedy, error=error)


def parse_json(text: str, check: Check, *, source: str, remedy: str, error: type[Ld3mError] = CheckpointError) -> Any:
    """Return the content of a JSON text that fits.

    Args:
        source: what the text is called in an error.
        remedy: what to do about one that does not fit.
    """
    try:
        content = json.loads(text)
    except RecursionError as found:
        raise error(f"{source} is damaged: it is nested too deep for JSON; {remedy}") from found
    except ValueError as found:
        raise error(f"{source} is damaged: it is not JSON ({' '.join(str(found).split())[:100]}); {remedy}") from found
    if _is_deeper(content, _MAX_DEPTH):
        raise error(f"{source} is damaged: it is nested deeper than {_MAX_DEPTH} levels; {remedy}")
    return checked(content, check, source=source, remedy=remedy, error=error)


def checked(content: Any, check: Check, *, source: str, remedy: str, error: type[Ld3mError] = CheckpointError) -> Any:
    """Return the content, or raise one line that names source, key, what was expected and what came."""
    if (misfit := check(content)) is not None:
        key = misfit.path.removeprefix(".")
        raise error(
            f"{source}: {f'{key} is' if key else 'expected'} {misfit.expected}, got {shown(misfit.got)}; {remedy}"
        )
    return content


def shown(value: object) -> str:
    """Return a value for a message: short, on one line, whatever it is."""
    if isinstance(value, dict | list | tuple) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of a number of thousands of digits
        return f"a {type(value).__name__}"
    return shown_text(text, 80)


def shown_text(text: str, most: int = 200) -> str:
    """Return a text for a message: control characters are spelt, and what is long is cut."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


def whole(low: int, high: int) -> Check:
    """Check for a whole number within bounds."""

    def check(value: object) -> Misfit | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else Misfit("", f"a whole number from {low:,} to {high:,}", value)

    return check


def number(low: float, high: float) -> Check:
    """Check for a finite number within bounds."""

    def check(value: object) -> Misfit | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return None if math.isfinite(value) else Misfit("", "a finite number", value)
        return Misfit("", f"a number from {low:g} to {high:g}", value)

    return check


def text(most: int = 4096) -> Check:
    """Check for a text."""

    def check(value: object) -> Misfit | None:
        return None if isinstance(value, str) and len(value) <= most else Misfit("", "a text", value)

    return check


def flag(value: object) -> Misfit | None:
    """Check for true or false."""
    return None if isinstance(value, bool) else Misfit("", "true or false", value)


def anything(value: object) -> Misfit | None:
    """Check nothing."""
    return None


def one_of(*values: object) -> Check:
    """Check for one of some values."""

    def check(value: object) -> Misfit | None:
        fits = any(type(value) is type(one) and value == one for one in values)
        return None if fits else Misfit("", f"one of {', '.join(map(repr, values))}", value)

    return check


def either(*checks: Check) -> Check:
    """Check for a value that fits one of several checks."""

    def check(value: object) -> Misfit | None:
        misfits = [check(value) for check in checks]
        if None in misfits:
            return None
        return Misfit("", " or ".join(misfit.expected for misfit in misfits if misfit), value)

    return check


def both(first: Check, second: Check) -> Check:
    """Check for a value that fits two checks, of which the second may rely on the first."""
    return lambda value: first(value) or second(value)


def optional(check: Check) -> Check:
    """Check for null or a value that fits."""
    return either(one_of(None), check)


def listing(check: Check, least: int = 0, most: int = 10**7) -> Check:
    """Check for a list whose items fit."""

    def check_all(value: object) -> Misfit | None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            return Misfit("", f"a list of {size}" if most < 10**7 or least else "a list", value)
        found = ((k, check(item)) for k, item in enumerate(value))
        return next((misfit.below(k) for k, misfit in found if misfit), None)

    return check_all


def mapping(fields: Mapping[str, Check], possible: Mapping[str, Check] | None = None) -> Check:
    """Check for an object that has all of `fields`, and perhaps the `possible` ones; others are let be."""

    def check_all(value: object) -> Misfit | None:
        if not isinstance(value, dict):
            return Misfit("", "an object of names and values", value)
        missing = next((name for name in fields if name not in value), None)
        if missing is not None:
            return Misfit("", f"an object with {missing!r}", sorted(map(str, value))[:8])
        for name, check in {**fields, **(possible or {})}.items():
            if name in value and (misfit := check(value[name])) is not None:
                return misfit.below(name)
        return None

    return check_all


def mapping_of(check: Check, most: int = 10**6) -> Check:
    """Check for an object whose values all fit."""

    def check_all(value: object) -> Misfit | None:
        if not isinstance(value, dict) or len(value) > most or not all(isinstance(key, str) for key in value):
            return Misfit("", "an object of names and values", value)
        return next((misfit.below(key) for key, one in value.items() if (misfit := check(one)) is not None), None)

    return check_all


def _is_deeper(value: object, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
