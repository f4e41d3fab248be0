"""The contents of a folder or an archive: pictures, tables, and what is passed over. Nothing is unpacked or run.

Names are compared in their composed form (NFC): macOS writes decomposed ones, which look the same and are not.
"""

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from ld3m.data.pixels import EXTENSIONS, looks_like_picture
from ld3m.errors import DataError
from ld3m.runtime.reading import shown_text

MAX_FILE_BYTES = 2**28  # a longer file is taken for a decompression bomb
_MAX_DEPTH = 32  # folders below each other
_HEAD = 16  # bytes that tell a picture from other files
# What the standard library raises for archives that are damaged, encrypted, of a later version, or named in no UTF-8
ODD = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, RuntimeError, ValueError, OverflowError,
)  # fmt: skip
_TABLES = frozenset((".csv", ".jsonl", ".tsv", ".txt"))
_NO_PICTURES = _TABLES | {
    ".bib", ".c", ".cfg", ".db", ".doc", ".docx", ".gz", ".h5", ".htm", ".html", ".ini", ".ipynb", ".json",
    ".log", ".lock", ".m", ".mat", ".md", ".npy", ".npz", ".pdf", ".pkl", ".py", ".pt", ".rst", ".sh", ".tar",
    ".toml", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip
_UNREAD_PICTURES = frozenset((
    ".arw", ".avif", ".avifs", ".bpg", ".cr2", ".cr3", ".dcm", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic",
    ".heif", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".jxr", ".nef", ".nii", ".orf", ".pcx", ".psd", ".raf",
    ".raw", ".rw2", ".svg", ".tga", ".wmf", ".xcf",
))  # fmt: skip
# Folders that systems and programs keep beside pictures, in any case; hidden folders are left out as well.
_SYSTEM_FOLDERS = frozenset((
    "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "recycled", "lost+found", "__macosx", "__pycache__", "appledouble", "_vti_cnf", "temporaryitems",
    "system volume information", "network trash folder", "temporary items",
))  # fmt: skip
_THUMBNAIL_FOLDER = re.compile(r"[\W_]*(thumbs?|thumbnails?|vignettes|mini(atures?|s))[\W_]*(\d+(x\d+)?)?")

Parts = tuple[str, ...]  # a path below the source: ("train", "cat", "7.png")


class File(NamedTuple):
    """A file: its path, what the listing reads it by, and its bytes."""

    parts: Parts
    handle: Any
    size: int


@dataclass
class Listing:
    """The files of a source.

    Args:
        read: bytes of a file.
        pictures, tables: files to read; tables may say the labels.
        folders: all of them, also the empty ones.
        passed: path and reason of files that look like pictures and are not read.
        foreign: number of pictures in folders of systems and programs, by the folder's name.
        encoding: a doubt about the names, or "".
    """

    read: Callable[[File], bytes]
    pictures: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    folders: set[Parts] = field(default_factory=set)
    passed: list[tuple[Parts, str]] = field(default_factory=list)
    foreign: dict[str, int] = field(default_factory=dict)
    encoding: str = ""

    def add(self, parents: Parts, name: str, handle: Any, size: int, head: Callable[[], bytes]) -> None:
        """Sort a file in; `head` reads its first bytes."""
        ending = os.path.splitext(name)[1].lower()
        if not _is_visible(name):
            return
        parts = tuple(unicodedata.normalize("NFC", part) for part in (*parents, name))
        file = File(parts, handle, size)
        if foreign := next((part for k, part in enumerate(parts[:-1]) if is_foreign(part, k)), None):
            self.foreign[foreign] = self.foreign.get(foreign, 0) + (ending in EXTENSIONS)
            return
        self.folders.update(parts[:depth] for depth in range(1, len(parts)))
        if ending in EXTENSIONS:
            self.pictures.append(file)
        elif ending in _TABLES:
            self.tables.append(file)
        elif ending in _UNREAD_PICTURES:
            self.passed.append((parts, f"{ending} is not read"))
        elif ending not in _NO_PICTURES and size and looks_like_picture(head()):
            if ending and not ending[1:].isdigit():
                self.passed.append((parts, f"a picture under the ending {ending}"))
            else:  # names without an ending, "7" or "scan.0001"
                self.pictures.append(file)

    def add_folder(self, parts: Parts) -> None:
        parts = tuple(unicodedata.normalize("NFC", part) for part in parts)
        if all(_is_visible(part) and not is_foreign(part, k) for k, part in enumerate(parts)):
            self.folders.add(parts)


def list_files(path: Path) -> Listing:
    """List a directory, a zip or a tar archive."""
    if path.is_dir():
        return _list_directory(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is a device or a pipe; expected a folder, a zip or a tar archive")
    try:
        return next(lister for is_kind, lister in _ARCHIVES if is_kind(path))(path)
    except StopIteration:
        raise DataError(
            f"{path} is neither a folder nor a zip archive nor another kind of data that is known"
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{path} is neither a folder nor a zip archive ({error})") from error
    except ODD as error:
        raise DataError(
            f"{path} is an archive that cannot be read ({shown_text(str(error))}); pack it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror or error})") from error


def is_foreign(name: str, depth: int = 1) -> bool:
    """Whether a folder of that name holds pictures of a program, at some depth below the source."""
    return name.casefold() in _SYSTEM_FOLDERS or (depth > 0 and bool(_THUMBNAIL_FOLDER.fullmatch(name.casefold())))


def is_hidden(name: str) -> bool:
    return not _is_visible(name)


def _is_visible(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not name.endswith("~")


def _list_directory(path: Path) -> Listing:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); give read permission") from error

    listing = Listing(lambda file: _read_file(path.joinpath(*file.handle)))
    seen: set[str] = set()
    for folder, below, names in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        here = Path(folder).relative_to(path).parts
        # A link may lead back to where it stands.
        below[:] = [] if real in seen or len(here) >= _MAX_DEPTH else filter(_is_visible, below)
        seen.add(real)
        for name in below:
            listing.add_folder((*here, name))
        for name in filter(_is_visible, names):
            file = os.path.join(folder, name)
            status = _status(file)
            if status is None or not stat.S_ISREG(status.st_mode):
                if os.path.splitext(name)[1].lower() in EXTENSIONS:
                    listing.passed.append(((*here, name), "no regular file" if status else "a link to nothing"))
                continue
            listing.add(here, name, (*here, name), status.st_size, lambda file=file: _head(file))
    return listing


def _status(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)
    except FileNotFoundError:
        return None


def _head(file: str) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(_HEAD)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"the file is no regular one, or of {status.st_size} bytes, more than {MAX_FILE_BYTES}")
        return stream.read(MAX_FILE_BYTES + 1)


def _is_safe(parents: tuple[str, ...]) -> bool:
    return all(part and not part.startswith(".") for part in parents)  # also ".." and absolute names


def _list_zip(path: Path) -> Listing:
    archive = zipfile.ZipFile(path)

    def read(file: File) -> bytes:
        if file.size > MAX_FILE_BYTES:
            raise ValueError(f"the archive member unpacks to {file.size} bytes")
        try:
            return archive.read(file.handle)
        except ODD as error:
            raise ValueError(f"the archive member cannot be read: {shown_text(str(error))}") from error

    def head(member: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(member) as stream:
                return stream.read(_HEAD)
        except ODD:
            return b""

    listing = Listing(read)
    for member in archive.infolist():
        if member.header_offset < 0:
            raise zipfile.BadZipFile("its list of files lies elsewhere than it says")
        name = _zip_name(member, listing)
        if name.count("/") > _MAX_DEPTH:
            listing.passed.append(((name[:40] + "…",), f"more than {_MAX_DEPTH} folders deep"))
            continue
        *parents, name = name.split("/")
        if _is_safe(tuple(parents)):
            listing.add_folder(tuple(parents))
            for depth in range(1, len(parents)):
                listing.add_folder(tuple(parents[:depth]))
            listing.add(tuple(parents), name, member, member.file_size, lambda member=member: head(member))
    listing.folders.discard(())
    return listing


def _zip_name(member: zipfile.ZipInfo, listing: Listing) -> str:
    r"""Return a member's name with / between folders, where Windows programs write \, and decoded as UTF-8.

    Without the flag for UTF-8 the standard says code page 437, and many programs write UTF-8 or their own all the same.
    """
    name = member.filename.replace("\\", "/")
    if member.flag_bits & 0x800 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        listing.encoding = f"{name!r} is in an unknown code page, read as 437"
        return name


def _list_tar(path: Path) -> Listing:
    stream = _plain_tar(path)
    lock = threading.Lock()

    def read(file: File) -> bytes:
        if file.size > MAX_FILE_BYTES:
            raise ValueError(f"the archive member unpacks to {file.size} bytes")
        return at(file.handle, file.size)

    def at(offset: int, count: int) -> bytes:
        with lock:
            stream.seek(offset)
            return stream.read(count)

    listing = Listing(read)
    for member in tarfile.TarFile(fileobj=stream):
        *parents, name = member.name.removeprefix("./").split("/")
        if len(parents) > _MAX_DEPTH or not _is_safe(tuple(parents)):
            continue
        if member.isdir() and _is_visible(name):
            listing.add_folder((*parents, name))
        elif member.isreg():
            count = min(_HEAD, member.size)
            data = member.offset_data
            listing.add(tuple(parents), name, data, member.size, lambda data=data, count=count: at(data, count))
        elif os.path.splitext(name)[1].lower() in EXTENSIONS:
            listing.passed.append(((*parents, name), "no regular file"))
    return listing


_COMPRESSIONS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open,
}  # fmt: skip


def _plain_tar(path: Path) -> IO[bytes]:
    """Open a tar archive; a compressed one, which cannot be read in any order, is unpacked into an unnamed file."""
    with path.open("rb") as file:
        start = file.read(8)
    opener = next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
    if opener is None:
        return path.open("rb")
    room = shutil.disk_usage(tempfile.gettempdir()).free // 2
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the images)
    try:
        with opener(path, "rb") as source:
            for block in _blocks(source):
                if unpacked.tell() + len(block) > room:
                    raise DataError(
                        f"{path} unpacks to more than half of what is free in {tempfile.gettempdir()}; unpack it to a "
                        "folder, or name one with more room in the environment variable TMPDIR"
                    )
                unpacked.write(block)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); fetch it again") from error
    unpacked.seek(0)
    return unpacked


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(2**20):
        yield block


def _is_tar(path: Path) -> bool:
    names = path.name.casefold()
    return names.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz"))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4)[:2] == b"PK" or path.suffix.casefold() == ".zip"


_ARCHIVES: tuple[tuple[Callable[[Path], bool], Callable[[Path], Listing]], ...] = (
    (_is_tar, _list_tar),
    (_is_zip, _list_zip),
)
