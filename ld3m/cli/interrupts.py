"""Signals that end a command: each lets it keep its last state, and none ends in a traceback."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from ld3m.runtime.signals import SIGNALS

_PATIENCE = 3.0  # seconds for a command to keep its state; what is written is whole or not there at any moment


class Interrupts:
    """For its block, turn the first signal into a KeyboardInterrupt, and pass over more of them while it is obeyed.

    Another one after seconds ends the process. Signals that are ignored, as under nohup, stay so.

    Attributes:
        status: 128 and the number of the signal that came, 130 until one has.
        has_come: whether one has.
    """

    def __init__(self) -> None:
        self.status, self.has_come, self._first = 130, False, 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for (
            number,
            former,
        ) in self._former.items():  # ignored where the process is about to end: more of them would show
            signal.signal(number, signal.SIG_IGN if self.has_come else former)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if not self.has_come:
            self.has_come, self.status, self._first = True, 128 + number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._first > _PATIENCE:
            os._exit(self.status)
