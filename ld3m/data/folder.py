"""ImageFolder layouts: a folder for each class, in a directory or in a zip archive, which is read in place."""

import logging
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ld3m.data.ilsvrc import name_of
from ld3m.data.items import TEST_SPLITS, Items, Source, check_same_classes
from ld3m.data.pixels import EXTENSIONS, open_image
from ld3m.errors import DataError

logger = logging.getLogger(__name__)
_TRAIN = ("train", "training")
_MAX_MEMBER_BYTES = 2**28  # a longer archive member is taken for a decompression bomb

Parts = tuple[str, ...]  # a path below the source: ("train", "cat", "7.png")


def read_folder(path: Path) -> Source:
    """List the images below a directory or inside a zip archive.

    train/ and test/ or val/ hold a folder for each class; or the class folders stand alone, and there is no test
    split. Classes are ordered by folder name; a single folder around everything is looked through; hidden files and
    files that are not images by extension are ignored.
    """
    files, folders, read = _list_directory(path) if path.is_dir() else _list_archive(path)
    top = _top(folders)
    splits = {name.casefold(): name for name in _children(folders, top)}
    train_name = next((splits[name] for name in _TRAIN if name in splits), None)
    if train_name is None or not _children(folders, (*top, train_name)):  # no split, or a class called "train"
        if splits and splits.keys() <= set(TEST_SPLITS):
            raise DataError(f"{path} holds {', '.join(splits.values())} but no train; add a folder train/ of classes")
        by_class = _classes(files, folders, top, path)
        return _source(path, len(top), by_class, None, read)

    held_out = [splits[name] for name in TEST_SPLITS if name in splits]  # of two, one may have no classes
    test_name = next((name for name in held_out if _children(folders, (*top, name))), next(iter(held_out), None))
    if unused := sorted(set(splits.values()) - {train_name, test_name}):
        read_names = " and ".join(filter(None, (train_name, test_name)))
        logger.warning("%s: beside %s, %s is not read", path, read_names, ", ".join(unused))
    train = _classes(files, folders, (*top, train_name), path)
    if test_name is None:
        return _source(path, len(top), train, None, read)
    test = _classes(files, folders, (*top, test_name), path)
    check_same_classes(list(train), list(test))
    return _source(path, len(top), train, test, read)


def would_read(root: Path, folder: Path) -> bool:
    """Whether `read_folder(root)` takes what lies in a folder, or will, for images of the data."""
    root, folder = root.resolve(), folder.resolve()
    if not folder.is_relative_to(root):
        return False
    parts = folder.relative_to(root).parts
    has_train = any(child.is_dir() and child.name.casefold() in _TRAIN for child in root.iterdir())
    is_beside = has_train and parts and parts[0].casefold() not in _TRAIN + TEST_SPLITS
    return not is_beside and all(map(_is_visible, parts))


def _source(
    path: Path,
    depth: int,
    train: dict[str, list[Parts]],
    test: dict[str, list[Parts]] | None,
    read: Callable[[Parts], bytes],
) -> Source:
    wnids = tuple(name if re.fullmatch(r"n\d{8}", name) else None for name in train)
    names = tuple((wnid and name_of(wnid)) or folder for wnid, folder in zip(wnids, train, strict=True))
    if len(set(names)) < len(names):  # ILSVRC has two classes "crane" and two "maillot"
        names = tuple(train)
    items = [None if by_class is None else _items(by_class, depth, read) for by_class in (train, test)]
    return Source(path.stem if path.is_file() else path.resolve().name, *items, names, wnids)


def _items(by_class: dict[str, list[Parts]], depth: int, read: Callable[[Parts], bytes]) -> Items:
    files = [file for members in by_class.values() for file in members]
    labels = [label for label, members in enumerate(by_class.values()) for _ in members]
    return Items(
        read=lambda i: open_image(read(files[i])),
        labels=torch.tensor(labels, dtype=torch.int64),
        keys=["/".join(file[depth:]) for file in files],  # without a folder around everything: one split for both
        is_threadsafe=True,
    )


def _classes(files: Sequence[Parts], folders: set[Parts], top: Parts, path: Path) -> dict[str, list[Parts]]:
    """Return the image files of each class folder directly below `top`, all sorted."""
    where = "/".join((str(path), *top))
    by_class: dict[str, list[Parts]] = {name: [] for name in _children(folders, top)}
    for file in files:
        if len(file) > len(top) + 1 and file[: len(top)] == top:
            by_class[file[len(top)]].append(file)
    if not by_class:
        found = "images, but no folder around them" if files else "nothing of the kind"
        raise DataError(f"{where} must hold a folder of images for each class, and holds {found}")
    for name, members in by_class.items():
        if re.search("[\ud800-\udfff]", name):  # what Python makes of bytes that are not UTF-8
            raise DataError(f"class folder {name!r} in {where} has a name that is not UTF-8; rename the folder")
        if not members:
            raise DataError(
                f"class {name!r} in {where} holds no image file ({', '.join(sorted(EXTENSIONS))}); "
                "add images or remove the folder"
            )
        members.sort()
    return by_class


def _children(folders: set[Parts], top: Parts) -> list[str]:
    depth = len(top)
    return sorted(folder[depth] for folder in folders if len(folder) == depth + 1 and folder[:depth] == top)


def _top(folders: set[Parts]) -> Parts:
    """Return the folder that holds train/ or the classes: archives often have one folder around everything."""
    top: Parts = ()
    while len(names := _children(folders, top)) == 1 and names[0].casefold() not in _TRAIN + TEST_SPLITS:
        if not _children(folders, (*top, names[0])):
            break
        top = (*top, names[0])
    return top


def _is_visible(name: str) -> bool:
    return bool(name) and not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return _is_visible(name) and os.path.splitext(name)[1].lower() in EXTENSIONS


def _list_directory(path: Path) -> tuple[list[Parts], set[Parts], Callable[[Parts], bytes]]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); give read permission") from error

    files, folders, seen = [], set(), set()
    for folder, below, names in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else filter(_is_visible, below)  # a link may lead back to where it stands
        seen.add(real)
        here = Path(folder).relative_to(path).parts
        folders.update((*here, name) for name in below)
        files += [(*here, name) for name in names if _is_image(name)]
    return files, folders, lambda file: path.joinpath(*file).read_bytes()


def _list_archive(path: Path) -> tuple[list[Parts], set[Parts], Callable[[Parts], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is neither a folder nor a zip archive ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror})") from error

    members, folders = {}, set()
    for member in archive.infolist():
        *parents, name = member.filename.split("/")
        if not all(map(_is_visible, parents)):  # also ".." and absolute names
            continue
        folders.update(tuple(parents[: depth + 1]) for depth in range(len(parents)))
        if _is_image(name):
            members[*parents, name] = member

    def read(file: Parts) -> bytes:
        if members[file].file_size > _MAX_MEMBER_BYTES:
            raise ValueError(f"the archive member unpacks to {members[file].file_size} bytes")
        return archive.read(members[file])

    return list(members), folders, read
