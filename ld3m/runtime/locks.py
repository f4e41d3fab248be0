"""One owner for each folder or file that is written: a lock that lasts as long as its process, and goes with it.

The lock is flock's, on a hidden file: the system lets go of it however the process ends, so that no lock is ever stale.
Where a file system has no such locks, a warning says that two commands there would not notice each other.
"""

import contextlib
import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld3m.errors import ConfigError, Ld3mError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK = ".ld3m.lock"
_PATIENCE = 5.0  # seconds for a killed process to be gone
_PATIENCE_WITH_ORPHANS = 60.0  # for one whose parent was killed: whoever started it takes it for ended as well
_PAUSE = 0.05
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass
class Held:
    """A lock of this process; the thread that has it may take it again."""

    path: Path
    subject: Path
    descriptor: int
    thread: int
    depth: int = 1

    def is_there(self) -> bool:
        return is_same(self.descriptor, self.path)


_held: dict[Path, Held] = {}  # of the process, as flock's locks are
_guard = threading.Lock()


def acquire(path: Path, subject: Path) -> Held:
    """Take the lock file `path`, made where it is missing, for what is written.

    Raises:
        ConfigError: another process, or another thread, has it, and keeps it for the seconds that a killed one needs.
    """
    path = path.parent.resolve() / path.name
    if own := _own(path):
        own.depth += 1
        return own
    descriptor = _wait(path, subject, os.O_RDWR | os.O_CREAT)
    about = {"pid": os.getpid(), "parent": os.getppid(), "host": socket.gethostname(), "command": _command()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(about).encode(), 0)
    held = Held(path, subject, descriptor, threading.get_ident())
    with _guard:
        _held[path] = held
    return held


def release(held: Held) -> None:
    """Let go of a lock, whose file goes too; of one that was taken twice, once."""
    held.depth -= 1
    if held.depth:
        return
    with _guard:
        if _held.get(held.path) is held:
            del _held[held.path]
    with contextlib.suppress(OSError):
        if held.is_there():
            held.path.unlink()  # while it is still locked: who waits for it sees that the file is another one
    os.close(held.descriptor)


def require_free(path: Path, subject: Path) -> None:
    """Raise as `acquire` does where another has the lock; nothing is made."""
    path = path.parent.resolve() / path.name
    if path.is_file() and not _own(path):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.close(_wait(path, subject, os.O_RDONLY))


def make_parent(path: Path) -> None:
    """Make the folder of a file that is to be written; a locked folder around it is not made anew.

    Raises:
        Ld3mError: that folder was removed since it was locked.
    """
    folder = path.absolute().parent
    real = folder.resolve()
    with _guard:
        roots = [held for held in _held.values() if real.is_relative_to(held.path.parent)]
    if not roots:
        folder.mkdir(parents=True, exist_ok=True)
        return
    held = max(roots, key=lambda held: len(held.path.parts))
    require_there(held)
    for missing in reversed([path for path in (real, *real.parents) if held.path.parent in path.parents]):
        missing.mkdir(exist_ok=True)


def require_there(held: Held) -> None:
    """Raise where what is locked was removed, perhaps made anew by another, since it was locked."""
    if not held.is_there():
        raise Ld3mError(
            f"{held.subject} was removed while it was written, and what was done with it; leave it there, and start "
            "again"
        )


def is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still names what was opened."""
    try:
        own, there = os.fstat(descriptor), os.stat(path)
    except OSError:
        return False
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _own(path: Path) -> Held | None:
    with _guard:
        held = _held.get(path)
        if held and held.thread == threading.get_ident() and held.is_there():
            return held
    return None


def _wait(path: Path, subject: Path, flags: int) -> int:
    """Return the descriptor of the locked file."""
    started, is_said = time.monotonic(), False
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            _flock(descriptor, path)
            if is_same(descriptor, path):
                return descriptor
            os.close(descriptor)  # of a file that its holder has removed meanwhile
            if not flags & os.O_CREAT and not path.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            continue
        except BlockingIOError:
            os.close(descriptor)
        holder = _holder(path)
        is_orphan = _is_orphan(holder)
        if time.monotonic() - started > (_PATIENCE_WITH_ORPHANS if is_orphan else _PATIENCE):
            who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} ({holder.get('command', '?')})"
            raise ConfigError(f"{subject} is being written by {who}; let that end, or choose another place")
        if is_orphan and not is_said:
            logger.info("waiting for process %s, which still writes %s", holder["pid"], subject)
            is_said = True
        time.sleep(_PAUSE)


def _flock(descriptor: int, path: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        logger.warning("%s: no locks on this file system; two commands there would not notice each other", path.parent)


def _holder(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            about = json.loads(file.read(10_000))
    except (OSError, ValueError):  # not yet written, or gone
        return {}
    return about if isinstance(about, dict) else {}


def _is_orphan(holder: dict[str, Any]) -> bool:
    """Whether the parent of a process on this machine has ended since the process took its lock."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        with open(f"/proc/{int(holder['pid'])}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False
    return parent != holder.get("parent")


def _command() -> str:
    """Return the command line, short and on one line."""
    words = [os.path.basename(sys.argv[0]) if sys.argv else "python", *sys.argv[1:]]
    line = "".join(c if c.isprintable() else "?" for c in shlex.join(words))
    return line if len(line) <= 200 else f"{line[:200]}…"


def _forget() -> None:
    """Close, in a forked child, what its parent has locked: the lock ends with the parent."""
    global _guard
    for held in _held.values():
        with contextlib.suppress(OSError):
            os.close(held.descriptor)
    _held.clear()
    _guard = threading.Lock()  # which another thread of the parent may have had


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
