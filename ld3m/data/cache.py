"""Decoded images that are kept between commands, a folder for each data set and way of reading it.

A folder is named after the path and what decides how it is read. The key inside follows from names, sizes and times of
the files, so that a set that changed is decoded anew, in place of what was kept of it. It is made under another name,
block by block, by one process while others wait; who is killed goes on where it was. Pixels are mapped into memory, so
that processes share them.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from ld3m.data.images import Dataset, ImageSet
from ld3m.errors import CheckpointError, ConfigError, DataError, Ld3mError
from ld3m.runtime import locks
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.storage import load_tensors, save_tensors

logger = logging.getLogger(__name__)
OFF = "off"
_FORMAT = 1  # of what is kept; to be raised with a change of how pictures are decoded
_LARGE_COUNT, _LARGE_BYTES = 20_000, 2**28  # of files: some seconds of decoding, below which nothing is kept unasked
_FACTS, _DONE, _KEY = "facts.safetensors", "done", "key"
_SECONDS = 5.0  # between two times that blocks are forced to the disk


@dataclass(frozen=True)
class _Wish:
    """Where to keep decoded images, None for the user's cache, and whether to show a bar."""

    folder: str | None = None
    show: bool = True


_wish: ContextVar[_Wish] = ContextVar("decoded images", default=_Wish())  # noqa: B039 (frozen)


@contextlib.contextmanager
def kept_in(folder: str | Path | None, *, show: bool = True) -> Generator[None]:
    """Let `load` keep decoded images in a folder for the block, or none of them where it is "off"."""
    token = _wish.set(_Wish(None if folder is None else os.path.expanduser(folder), show))
    try:
        yield
    finally:
        _wish.reset(token)


def default_folder() -> Path:
    """Return the folder of the user's cache where decoded images are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ld3m" / "decoded"


def describe() -> str:
    """Say what is kept in the user's cache, and where: it may be deleted at any time."""
    folder = default_folder()
    files = [file for file in folder.glob("*/*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return f"{len({file.parent for file in files})} data sets, {size / 2**30:.1f} GiB, in {folder}"


def shelf_of(
    path: Path, asked: str | Path | None, resolution: int, settings: object, is_read: Callable[[str], bool]
) -> "Shelf | None":
    """Return where the decoded images of a path are kept, or are to be; None where none are.

    Args:
        asked: folder or "off"; where None, what `kept_in` says, or else for large sets the user's cache.
        settings: what else decides the images, for JSON.
        is_read: whether a folder directly below the path, by its name, is part of the data.
    """
    wish = _wish.get()
    asked = wish.folder if asked is None else asked
    if str(asked) == OFF:
        return None
    key, count, size = _stamp(path, is_read)
    if asked is None and count < _LARGE_COUNT and size < _LARGE_BYTES:
        return None
    slot = fingerprint((), str(path.resolve()), resolution, settings, _FORMAT, PIL.__version__)
    root = default_folder() if asked is None else Path(asked).expanduser()
    return Shelf(root / f"{path.resolve().stem[:64]}-{slot}", key, resolution, asked is None, wish.show)


@dataclass
class Shelf:
    """The decoded images of a data set at one resolution.

    Args:
        key: of the files that they are decoded from.
        is_optional: whether to do without where there is no room.
    """

    folder: Path
    key: str
    resolution: int
    is_optional: bool
    show: bool
    _rooms: dict[str, np.memmap] = field(default_factory=dict)
    _pending: dict[str, list[str]] = field(default_factory=dict)
    _flushed_at: float = 0.0

    def load(self, make: Callable[["Shelf | None"], Dataset]) -> Dataset:
        """Return what is kept; make it first, in this shelf, where there is nothing of this key."""
        if found := self._open(is_new=False):
            return found
        try:
            with self._sole_maker():
                if found := self._open(is_new=False):
                    return found
                self._begin()
                with _heard() as said:
                    dataset = self._made(make)
                self._finish(dataset, said)
            found = self._open(is_new=True)
            assert found is not None
            return found
        except NotKeptError as error:
            self._rooms.clear()
            if not self.is_optional:
                raise DataError(f"{error}; name another folder by --cache, or --cache off to keep none") from error
            logger.warning("%s; going on without. --cache names another folder", error)
        return make(None)

    # What `decode` asks of a store.

    def room(self, split_name: str, count: int) -> np.ndarray:
        side, path = self.resolution, self._partial / f"{split_name}.u8"
        needed, there = 3 * count * side**2, path.stat().st_size if path.is_file() else 0
        free = shutil.disk_usage(self._partial).free
        if free < needed - there:  # a memory map on a full disk would kill the process
            raise NotKeptError(
                f"the decoded images need {needed / 2**30:.1f} GiB in {self.folder.parent}, where "
                f"{free / 2**30:.1f} GiB are free"
            )
        with _keeping(self.folder.parent), open(path, "rb+" if there else "wb+") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            file.truncate(needed)
            self._rooms[split_name] = np.memmap(file, np.uint8, "r+", shape=(count, 3, side, side))
        return self._rooms[split_name]

    def known(self, split_name: str) -> dict[int, dict[int, str]]:
        path, found = self._partial / f"{split_name}.{_DONE}", {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):  # of a line torn by a kill
                start, failed = json.loads(line)
                found[start] = {int(position): reason for position, reason in failed.items()}
        if found:
            logger.info("going on: %d blocks of %s images are decoded", len(found), split_name)
        return found

    def note(self, split_name: str, start: int, failed: Mapping[int, str]) -> None:
        self._pending.setdefault(split_name, []).append(json.dumps([start, failed]) + "\n")
        if time.monotonic() - self._flushed_at > _SECONDS:
            self._flush()

    # How the folder comes to be.

    @property
    def _partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    def _begin(self) -> None:
        partial = self._partial
        note = partial / _KEY
        with _keeping(self.folder.parent):
            if note.is_file() and note.read_text() != self.key:
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            note.write_text(self.key)
        self._flushed_at = time.monotonic()
        logger.info(
            "decoding into %s, for this and later commands; --cache DIR sets where, --cache off keeps none", self.folder
        )

    def _made(self, make: Callable[["Shelf | None"], Dataset]) -> Dataset:
        try:
            return make(self)
        except BaseException:  # interrupts too: what is decoded is not decoded again
            self._flush()
            raise

    def _flush(self) -> None:
        """Force pixels to the disk, then what says that they are there."""
        with _keeping(self.folder.parent):
            for split_name, lines in self._pending.items():
                self._rooms[split_name].flush()
                with open(self._partial / f"{split_name}.{_DONE}", "a", encoding="utf-8") as file:
                    file.writelines(lines)
        self._pending.clear()
        self._flushed_at = time.monotonic()

    def _finish(self, dataset: Dataset, said: list[str]) -> None:
        splits = {"train": dataset.train, "test": dataset.test}
        labels = {f"{name}_labels": one.labels for name, one in splits.items() if one is not None}
        about = {
            "key": self.key, "name": dataset.name, "class_names": list(dataset.class_names),
            "wnids": list(dataset.wnids), "resolution": dataset.resolution, "said": said,
        }  # fmt: skip
        tensors = {"mean": dataset.mean, "std": dataset.std, **labels}
        with _keeping(self.folder.parent):
            save_tensors(self._partial / _FACTS, tensors, {key: json.dumps(value) for key, value in about.items()})
            for name, room in self._rooms.items():
                room.flush()
                one = splits[name]
                os.truncate(self._partial / f"{name}.u8", 0 if one is None else one.images.numel())
            self._rooms.clear()
            for left in (_KEY, f"train.{_DONE}", f"test.{_DONE}"):
                (self._partial / left).unlink(missing_ok=True)
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
            os.replace(self._partial, self.folder)

    @contextlib.contextmanager
    def _sole_maker(self) -> Generator[None]:
        """Wait until no other process makes the folder; let none until the end of the block."""
        with _keeping(self.folder.parent):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        held, is_said = None, False
        while held is None:
            try:
                with _keeping(self.folder.parent):
                    held = locks.acquire(self.folder.with_name(f".{self.folder.name}.lock"), self.folder)
            except ConfigError as error:
                if not is_said:
                    logger.info("waiting: %s", str(error).partition(";")[0])
                is_said = True
        try:
            yield
        finally:
            locks.release(held)

    def _open(self, *, is_new: bool) -> Dataset | None:
        """Map what is kept; None where it is not there, not whole, or of other files."""
        try:
            tensors, texts = load_tensors(self.folder / _FACTS)
            about = {name: json.loads(text) for name, text in texts.items()}
            if about["key"] != self.key:
                return None
            side, names = about["resolution"], tuple(about["class_names"])
            splits = {
                name: ImageSet(_mapped(self.folder / f"{name}.u8", len(labels), side), labels, names)
                for name in ("train", "test")
                if (labels := tensors.get(f"{name}_labels")) is not None
            }
        except (CheckpointError, OSError, KeyError, ValueError):
            return None
        for text in () if is_new else about["said"]:
            logger.warning("%s", text)
        size = sum(one.images.numel() for one in splits.values())
        logger.info("%s: decoded images are kept in %s (%.2f GiB)", about["name"], self.folder, size / 2**30)
        train, test = splits["train"], splits.get("test")
        wnids, statistics = tuple(about["wnids"]), (tensors["mean"], tensors["std"])
        return Dataset(about["name"], train, test, *statistics, names, wnids, side)


class NotKeptError(Exception):
    """Decoded images cannot be kept: the disk is full, or not to be written to."""


@contextlib.contextmanager
def _keeping(place: Path) -> Generator[None]:
    """Let what goes wrong with files in the block be known from what goes wrong with the data."""
    try:
        yield
    except (OSError, Ld3mError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # what `runtime.storage` words already
        if not isinstance(cause, OSError):
            raise
        raise NotKeptError(f"the decoded images cannot be kept in {place} ({cause.strerror or cause})") from error


@contextlib.contextmanager
def _heard() -> Generator[list[str]]:
    """Note the warnings of this room in the block."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    room, ear = logging.getLogger("ld3m.data"), Ear(logging.WARNING)
    room.addHandler(ear)
    try:
        yield said
    finally:
        room.removeHandler(ear)


def _mapped(path: Path, count: int, side: int) -> Tensor:
    if path.stat().st_size != 3 * count * side**2:
        raise ValueError(f"{path} is not whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing may be written to it
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=(count, 3, side, side)))


def _stamp(path: Path, is_read: Callable[[str], bool]) -> tuple[str, int, int]:
    """Return what follows from names, sizes and times of all files, how many there are, and their bytes."""
    digest, count, size, seen = hashlib.blake2b(digest_size=16), 0, 0, set[str]()
    if not path.is_dir():
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest(), 1, status.st_size
    folders = [(str(path), "")]
    while folders:
        folder, below = folders.pop()
        if (real := os.path.realpath(folder)) in seen:  # a link may lead back to where it stands
            continue
        seen.add(real)
        with os.scandir(folder) as listed:
            entries = sorted((entry for entry in listed if not entry.name.startswith(".")), key=lambda e: e.name)
        for entry in entries:
            name = f"{below}/{entry.name}"
            if entry.is_dir():
                if below or is_read(entry.name):
                    folders.append((entry.path, name))
                continue
            with contextlib.suppress(FileNotFoundError):  # a link to nothing
                status = entry.stat()
                line = f"{name}\0{status.st_size} {status.st_mtime_ns}\n"
                digest.update(line.encode(errors="surrogatepass"))
                count, size = count + 1, size + status.st_size
    return digest.hexdigest(), count, size
