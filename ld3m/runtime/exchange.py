"""Folders that are replaced as files are: the former one is in its place until the new one is."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from ld3m.runtime.locks import is_same
from ld3m.runtime.storage import temporary_beside as temporary_beside

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_WITHOUT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_REPLACED = "replaced.tmp"


def exchange(new: Path, target: Path) -> None:
    """Put a folder in the place of another, and remove that one.

    Linux swaps the two names in one step. Elsewhere the former folder has another name for a moment; a kill then leaves
    it there for `restore`.
    """
    if _swapped(new, target):
        shutil.rmtree(new, ignore_errors=True)
        return
    replaced = new.with_suffix(f".{_REPLACED}")
    target.rename(replaced)
    try:
        new.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def held_open(folder: Path) -> Generator[Callable[[], bool]]:
    """Yield what says whether a folder is still the one of before; held open, its number is given to no other."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lambda: is_same(descriptor, folder)
    finally:
        os.close(descriptor)


def restore(target: Path) -> None:
    """Give a folder its name back that `exchange` was killed over."""
    if not target.exists() and (replaced := _left(target, rf"\.{re.escape(_REPLACED)}")):
        replaced[0].rename(target)


def sweep_beside(target: Path) -> None:
    """Remove what killed commands left of folders that were to take a name, which is owned."""
    for left in _left(target, r"(\.replaced)?\.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _left(target: Path, ending: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(target.name)}\.\d+-[0-9a-f]{{8}}{ending}")
    with contextlib.suppress(FileNotFoundError):
        return [path for path in target.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]
    return []


def _swapped(new: Path, target: Path) -> bool:
    """Swap the names of two folders, where the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old one
        return False
    if not rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _WITHOUT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))
