"""Files that are either whole or not there: every write goes to a temporary name, is synced, then renamed."""

import contextlib
import errno
import glob
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ld3m.errors import CheckpointError, Ld3mError
from ld3m.runtime import reading
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.reading import clear_read_errors, is_there, mapping_of, parse_json, shown_text

if TYPE_CHECKING:
    from safetensors import safe_open

_FOLDED, _DIGEST = "ld3m", "ld3m digest"
_MAX_TEXT = 64 * 2**20
_AGAIN = "restore it from a copy, or make it again"
_STALE_SECONDS = 600
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, then run again (--resume goes on with a run)",
    errno.EDQUOT: "the disk quota is used up: free some space, then run again (--resume goes on with a run)",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EROFS: "that file system is read-only: choose another folder",
    errno.EFBIG: "the file would be larger than allowed there: raise the limit (ulimit -f), or choose another folder",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), then run again",
    errno.EIO: "the disk could not take it: look at the disk, or choose another folder",
    errno.ENAMETOOLONG: "the name is longer than the file system takes: choose a shorter one",
}


@contextlib.contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
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
def replacing(path: Path) -> Iterator[Path]:
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


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, sealed: bool = True
) -> None:
    """Write tensors as safetensors, contiguous and on the CPU; the same content gives the same bytes.

    Args:
        sealed: put a digest of all of it into the metadata, by which `load_tensors` notices damage; files for other
            programs' eyes, which look for a key of their own there, go without.
    """
    from safetensors.torch import save_file

    written = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    about = dict(metadata or {})
    about = folded(about | {_DIGEST: digest_of(written, about)} if sealed else about)
    with replacing(path) as temporary:
        try:
            save_file(written, temporary, about)
        except Exception as error:  # safetensors wraps the operating system's error in one of its own
            if isinstance(error, OSError) or "os error" not in str(error):
                raise
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number)) from error


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return what stands for the content of a file: names, types, shapes and bytes of its tensors, and its metadata."""
    names = sorted(tensors)
    facts = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in names]
    return fingerprint((tensors[name] for name in names), facts, {**metadata})


def folded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Put several keys into one: safetensors writes several in random order."""
    return dict(metadata) if len(metadata) < 2 else {_FOLDED: json.dumps(dict(metadata), sort_keys=True)}


def metadata_of(file: "safe_open", path: Path | str = "the file") -> dict[str, str]:
    """Return the metadata of an opened safetensors file as `save_tensors` was given it, and its digest."""
    about = dict(file.metadata() or {})
    if _FOLDED not in about:
        return about
    return parse_json(
        about[_FOLDED], mapping_of(reading.text(_MAX_TEXT)), source=f"the metadata of {path}", remedy=_AGAIN
    )


def load_tensors(path: Path, remedy: str = _AGAIN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file; return its tensors and its metadata.

    Args:
        remedy: what to do about a damaged one.

    Raises:
        CheckpointError: it is missing, cannot be read, is none, or is not what `save_tensors` wrote.
    """
    from safetensors import SafetensorError, safe_open

    if not is_there(path):
        raise CheckpointError(f"{path} is not there; check the path")
    try:
        with clear_read_errors(path):
            open(path, "rb").close()  # safetensors calls every failure "No such file"
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                about = metadata_of(file, path)
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({shown_text(str(error))}); {remedy}") from error
    seal = about.pop(_DIGEST, None)
    if seal is not None and seal != digest_of(tensors, about):
        raise CheckpointError(f"{path} is damaged: it is not what was written there, by its digest; {remedy}")
    return tensors, about
