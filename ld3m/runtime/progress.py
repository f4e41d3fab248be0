"""Progress of long work: a bar on a terminal or in a notebook, a plain line now and then in a log file."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm as plain
from tqdm.auto import tqdm as automatic

if TYPE_CHECKING:
    Bar = plain[Any]
else:
    Bar = plain  # which takes no type at run time

_SECONDS = 30.0  # between two lines


class _Stderr:
    """Standard error as it is at the moment, line by line: what a bar writes over itself becomes a line."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n\x1b[A "):
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class _Lines(Bar):
    """A bar that says where it is in lines of its own, every half minute and at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        layout = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} to go{postfix}"
        fixed = {"file": _Stderr(), "mininterval": _SECONDS, "miniters": 1, "bar_format": layout, "ncols": 10_000}
        super().__init__(*args, **{**options, **fixed, "dynamic_ncols": False})

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **values: Any) -> None:
        super().set_postfix(ordered_dict, False, **values)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, False)


def time_text(seconds: float) -> str:
    """Say a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_bar(work: Iterable[Any] | None = None, name: str = "", *, show: bool = True, **options: Any) -> Bar:
    """Return a bar over `work`, or one to be moved by `update`; options are those of tqdm."""
    from ld3m.runtime import processes  # torch, which the commands' help does without

    if not show or not processes.is_main():
        return plain(work, name, disable=True, **options)
    is_notebook = any(kind.__module__ == "tqdm.notebook" for kind in automatic.__mro__)
    return (automatic if is_notebook or sys.stderr.isatty() else _Lines)(work, name, **options)
