"""Files that are either whole or not there: every write goes to a temporary name, is synced, then renamed."""

import contextlib
import errno
import glob
import json
import os
import stat
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ld3m.errors import CheckpointError, Ld3mError

if TYPE_CHECKING:
    from safetensors import safe_open

_FOLDED = "ld3m"
_STALE_SECONDS = 600
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, then run again (--resume goes on with a run)",
    errno.EDQUOT: "the disk quota is used up: free some space, then run again (--resume goes on with a run)",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EROFS: "that file system is read-only: choose another folder",
}


@contextlib.contextmanager
def clear_write_errors(path: Path) -> Generator[None]:
    """Turn an operating-system error of the block into one that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
        raise Ld3mError(f"could not write {path}: {error.strerror or error}; {remedy}") from error


def require_writable(folder: Path, remedy: str) -> None:
    """Raise, before any work is done that would be lost, where no file can be written into a folder."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Ld3mError(f"could not write into {folder}: {there} is a file; {remedy}")
    if not os.access(there, os.W_OK):
        raise Ld3mError(f"could not write into {folder}: no permission; {remedy}")


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the name, on failure it is removed.

    The name is the process's own, so that two processes on one folder never write into each other's file; what a killed
    one left is removed when it is too old to be still written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with clear_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                        left.unlink()
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)  # as the umask has it
            yield temporary
            with open(temporary, "rb+") as file:
                os.fchmod(file.fileno(), mode)  # safetensors leaves its files readable by the owner alone
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether `path` is what a killed write left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, contiguous and on the CPU; the same content gives the same bytes."""
    from safetensors.torch import save_file

    about = folded(metadata or {})
    with replacing(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, about)
        except Exception as error:  # safetensors wraps the operating system's error in one of its own
            if isinstance(error, OSError) or "os error" not in str(error):
                raise
            number = next((n for n in _REMEDIES if f"os error {n}" in str(error)), errno.EIO)
            raise OSError(number, os.strerror(number)) from error


def folded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Put several keys into one: safetensors writes several in random order."""
    return dict(metadata) if len(metadata) < 2 else {_FOLDED: json.dumps(dict(metadata), sort_keys=True)}


def metadata_of(file: "safe_open") -> dict[str, str]:
    """Return the metadata of an opened safetensors file as `save_tensors` was given it."""
    about = dict(file.metadata() or {})
    return json.loads(about[_FOLDED]) if _FOLDED in about else about


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file; return its tensors and its metadata."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is not there; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata_of(file)  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); make or fetch it again") from error
