"""Standard output and error: there, able to take every character, and no reason to stop work that is under way."""

import contextlib
import io
import os
import sys
from collections.abc import Generator
from typing import Any


class Messages:
    """Standard error, whose own errors are passed over: what it would say is worth less than the work it is about."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Make the standard streams take every character, and be there: a closed one would fail at the first line."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def passing_over_errors() -> Generator[None]:
    """Pass over errors of standard error in the block, and what is left of its text at the end."""
    stream = sys.stderr
    try:
        with contextlib.redirect_stderr(Messages(stream)):  # pyright: ignore[reportArgumentType]
            yield
    finally:
        try:
            stream.flush()
        except (OSError, ValueError):
            drop(stream)


def drop(stream: Any) -> None:
    """Point a stream nowhere: what is buffered would fail again when the interpreter flushes it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
