"""Signals that come where they may not: held back, and handled at a place where nothing is half done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Any, TypeVar

from ld3m.errors import ProcessError

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_T = TypeVar("_T")


class HeldBack:
    """For its block, hold signals back but where `open` lets them in: between processes each exchange has its place,
    and an interrupt may not stand for another one.

    Args:
        is_needed: whether to do so at all.
    """

    def __init__(self, is_needed: bool) -> None:
        self._numbers = SIGNALS if is_needed and threading.current_thread() is threading.main_thread() else []
        self._came: tuple[int, FrameType | None] | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "HeldBack":
        for number in self._numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._put_back()
        if kind is None:
            self._handle()

    @contextlib.contextmanager
    def open(self) -> Generator[None]:
        """Let signals in for the block, the one that was held back first."""
        self._put_back()
        try:
            self._handle()
            yield
        finally:
            for number in self._former:
                signal.signal(number, self._note)

    def attempt(self, work: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
        """Do the work with signals let in; return its outcome, or what ended it, which is then to be exchanged.

        Raises:
            ProcessError: another process is gone, so that there is nobody to exchange with.
        """
        try:
            with self.open():
                return work(), None
        except ProcessError:
            raise
        except BaseException as error:
            return None, error

    def _put_back(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _handle(self) -> None:
        if self._came is not None:
            (number, frame), self._came = self._came, None
            if callable(former := self._former[number]):
                former(number, frame)
            else:
                signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or (number, frame)
