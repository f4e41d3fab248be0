"""Files that are either whole or not there: every write goes to a temporary name, is synced, then renamed."""

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ld3m.errors import CheckpointError, Ld3mError
from ld3m.runtime import locks, reading
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.reading import clear_read_errors, is_there, mapping_of, parse_json, require_utf8, shown_text

if TYPE_CHECKING:
    from safetensors import safe_open

DIGEST = "ld3m digest"  # key of the metadata
_FOLDED = "ld3m"
_MAX_TEXT = 64 * 2**20
_AGAIN = "restore it from a copy, or make it again"
_STALE_SECONDS = 600
_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?(\.d)?\.tmp")
_SAFETENSORS_TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # a name of its own, which earlier versions let it write by
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
def clear_write_errors(path: Path) -> Generator[None]:
    """Turn an operating-system error of the block into one that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
        raise Ld3mError(f"could not write {path}: {error.strerror or error}; {remedy}") from error


def require_writable(folder: Path, remedy: str) -> None:
    """Raise, before any work is done that would be lost, where no file can be written into a folder."""
    require_utf8(folder)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Ld3mError(f"could not write into {folder}: {there} is a file; {remedy}")
    if not os.access(there, os.W_OK):
        raise Ld3mError(f"could not write into {folder}: no permission; {remedy}")


@contextlib.contextmanager
def owning(path: Path, *, is_file: bool = False) -> Generator[None]:
    """Own a folder, made where it is missing, for the block; of a file, and of a folder that is replaced, the name.

    A thread that owns it already goes on owning it. Where nothing may be written there is nothing to own.

    Raises:
        ConfigError: another command is writing there.
        Ld3mError: the folder was removed during the block.
    """
    require_utf8(path)
    folder = path.absolute().parent if is_file else path
    with clear_write_errors(path):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = locks.acquire(lock_of(path, is_file=is_file), path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            held = None
    try:
        yield
        if held is not None:
            locks.require_there(held)
    finally:
        is_still_ours = held is None or held.is_there()
        if held is not None:
            locks.release(held)
        if is_new and is_still_ours:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing was written


def require_free(folder: Path) -> None:
    """Raise ConfigError where another command is writing into a folder; nothing is made."""
    with clear_write_errors(folder):
        locks.require_free(lock_of(folder), folder)


def lock_of(path: Path, *, is_file: bool = False) -> Path:
    """Return the lock file of a folder, which lies in it, or of a name, which lies beside it."""
    return path.absolute().parent / f".{path.name}{locks.LOCK}" if is_file else path / locks.LOCK


def remove(path: Path) -> None:
    """Remove a file that may be there."""
    with clear_write_errors(path):
        path.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a name that nobody else takes, and by which `sweep` knows what a kill left."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the name, on failure it is removed.

    What a killed process left is removed when it is too old to be still written, or by `sweep`.
    """
    temporary = temporary_beside(path)
    with clear_write_errors(path):
        try:
            locks.make_parent(path)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    if _is_left(left) and time.time() - left.stat().st_mtime > _STALE_SECONDS:
                        _remove(left)
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)  # as the umask has it
            yield temporary
            with open(temporary, "rb+") as file:
                os.fchmod(file.fileno(), mode)  # safetensors leaves its files readable by the owner alone
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path, *places: str) -> None:
    """Remove what killed writes left in an owned folder, and in folders within it given as patterns."""
    with clear_write_errors(folder):
        for place in (folder, *(path for pattern in places for path in folder.glob(pattern) if path.is_dir())):
            for left in list(place.glob(".*tmp*")):
                if _is_left(left):
                    _remove(left)


def is_temporary(path: Path) -> bool:
    """Whether `path` is what a killed command left behind: a lock, or a file half written."""
    name = path.name
    return (name.startswith(".") and name.endswith((".tmp", locks.LOCK))) or bool(
        _SAFETENSORS_TEMPORARY.fullmatch(name)
    )


def _is_left(path: Path) -> bool:
    """Whether this is surely a temporary file of this package, or of safetensors in its stead."""
    if _TEMPORARY.fullmatch(path.name):
        return True
    if not _SAFETENSORS_TEMPORARY.fullmatch(path.name) or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(9)[8:] in (b"{", b"")  # the header after its length


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
    about = folded(about | {DIGEST: digest_of(written, about)} if sealed else about)
    with replacing(path) as temporary:
        private = temporary.with_suffix(
            ".d.tmp"
        )  # safetensors writes under a name of its own beside the one it is given
        try:
            private.mkdir()
            save_file(written, private / path.name, about)
            os.replace(private / path.name, temporary)
        except Exception as error:  # safetensors wraps the operating system's error in one of its own
            if isinstance(error, OSError) or "os error" not in str(error):
                raise
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number)) from error
        finally:
            shutil.rmtree(private, ignore_errors=True)


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
    seal = about.pop(DIGEST, None)
    if seal is not None and seal != digest_of(tensors, about):
        raise CheckpointError(f"{path} is damaged: it is not what was written there, by its digest; {remedy}")
    return tensors, about
