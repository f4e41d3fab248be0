"""ImageFolder layouts: a folder for each class, in a directory or in an archive, which is read in place."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from ld3m.data.items import Items, Source, check_same_classes
from ld3m.data.label_tables import MAX_TABLE_BYTES, read_labels
from ld3m.data.listing import File, Listing, Parts, is_foreign, is_hidden, list_files
from ld3m.data.naming import named, role_of
from ld3m.data.pixels import open_image
from ld3m.data.splits import Layout, Tree, find_layout, swap_class_first
from ld3m.errors import DataError

logger = logging.getLogger(__name__)
_FEW = 0.05  # of the files: a kind as rare as that is not what the set consists of
_MAX_TABLES = 32

ByClass = dict[str, list[File]]


def read_folder(path: Path) -> Source:
    """List the images below a directory or inside a zip or tar archive.

    Folders for training and for test or validation hold a folder for each class; or the class folders stand alone, and
    there is no test split; or a table beside the pictures says their labels. Classes are ordered by folder name; a
    single folder around everything is looked through; hidden files, thumbnails and files that are not images are not
    read.
    """
    listing = list_files(path)
    listing = swap_class_first(listing, Tree(listing))
    tree = Tree(listing)
    layout = find_layout(tree, path)
    train = _classes(tree, layout.train, path, layout)
    test = test_at = None
    if layout.held_out:
        test_at, test = _test_classes(tree, layout, path, train)
    unread = [at[-1] for at in layout.held_out if at != test_at]
    if unused := sorted((*unread, *layout.others)):
        read_names = " and ".join(at[len(layout.top)] for at in (layout.train, test_at) if at)
        logger.warning("%s: beside %s, %s is not read", path, read_names, ", ".join(unused))
    if test is not None:
        check_same_classes(list(train), list(test))
        test = {name: test[name] for name in train}
    _say_what_is_odd(path, listing, [file for split in (train, test or {}) for one in split.values() for file in one])
    return _source(path, listing, len(layout.top), train, test)


def would_read(root: Path, folder: Path) -> bool:
    """Whether `read_folder(root)` takes what lies in a folder, or will, for images of the data."""
    root, folder = root.resolve(), folder.resolve()
    if not folder.is_relative_to(root):
        return False
    parts = folder.relative_to(root).parts
    is_beside = bool(parts) and not reads_below(root)(parts[0])
    return not is_beside and not any(is_hidden(part) or is_foreign(part, k) for k, part in enumerate(parts))


def reads_below(root: Path) -> Callable[[str], bool]:
    """Return what says of a folder directly below, by its name, whether it may be part of the data: beside a folder of
    training images, those of other splits alone."""
    has_train = any(role_of(child.name) == "train" and child.is_dir() for child in root.iterdir())
    return lambda name: not has_train or role_of(name) is not None


def _source(path: Path, listing: Listing, depth: int, train: ByClass, test: ByClass | None) -> Source:
    names, wnids = named(list(train))
    if _lists_classes(listing, depth, train):  # Tiny ImageNet's own names, which its papers and other files use
        names = tuple(train)
    items = [None if by_class is None else _items(listing, by_class, depth) for by_class in (train, test)]
    assert items[0] is not None
    name = path.stem if path.is_file() else path.resolve().name
    passed = tuple(f"{'/'.join(parts)} ({reason})" for parts, reason in listing.passed)
    return Source(name, items[0], items[1], names, wnids, passed, from_files=True)


def _lists_classes(listing: Listing, depth: int, train: ByClass) -> bool:
    """Whether a wnids.txt beside the splits lists the classes, as Tiny ImageNet's does."""
    lists = (file for file in listing.tables if file.parts[depth:] == ("wnids.txt",) and file.size < MAX_TABLE_BYTES)
    return any(set(_text(listing, file).split()) == set(train) for file in lists)


def _items(listing: Listing, by_class: ByClass, depth: int) -> Items:
    files = [file for members in by_class.values() for file in members]
    labels = [label for label, members in enumerate(by_class.values()) for _ in members]
    return Items(
        read=lambda i: open_image(listing.read(files[i])),
        labels=torch.tensor(labels, dtype=torch.int64),
        keys=["/".join(file.parts[depth:]) for file in files],  # without a folder around everything: one split for both
        is_threadsafe=True,
        sizes=[file.size for file in files],
    )


def _test_classes(tree: Tree, layout: Layout, path: Path, train: ByClass) -> tuple[Parts | None, ByClass | None]:
    """Return the first split held out that has labels; an unlabelled one is never a test split."""
    unlabelled = []
    for at in layout.held_out:
        inner = tree.inner(at)
        if found := _from_table(tree, at, path, layout, train):
            return at, found
        folders = tree.filled(inner)
        if folders and (len(folders) > 1 or folders[0] in train):
            return at, _classes(tree, inner, path, layout)
        unlabelled.append("/".join(at))
    logger.warning(
        "%s: %s holds no folders of the training classes and no table names its labels: unlabelled, it is not read",
        path,
        " and ".join(unlabelled),
    )
    return None, None


def _classes(tree: Tree, top: Parts, path: Path, layout: Layout) -> ByClass:
    """Return the image files of each class folder directly below `top`, all sorted."""
    where = "/".join((str(path), *top))
    if len(tree.filled(top)) < 2 and (found := _from_table(tree, top, path, layout, ())):
        return found
    by_class: ByClass = {name: [] for name in tree.children(top)}
    if not by_class:
        found = "images, but no folder around them" if tree.listing.pictures else "nothing of the kind"
        raise DataError(f"{where} must hold a folder of images for each class, and holds {found}")
    for file in tree.below(top):
        if len(file.parts) > len(top) + 1:
            by_class[file.parts[len(top)]].append(file)
        else:
            tree.listing.passed.append((file.parts, "beside the folders of classes"))
    for name, members in by_class.items():
        if re.search("[\ud800-\udfff]", name):  # what Python makes of bytes that are not UTF-8
            raise DataError(f"class folder {name!r} in {where} has a name that is not UTF-8; rename the folder")
        if not members:
            passed = [file for file, _ in tree.listing.passed if file[: len(top) + 1] == (*top, name)]
            but = f", but {len(passed)} files that are not read, the first {passed[0][-1]!r}" if passed else ""
            raise DataError(
                f"class {name!r} in {where} holds no image file (.bmp, .gif, .jpeg, .jpg, .png, .tif, .webp …){but}; "
                "add images or remove the folder"
            )
        members.sort(key=lambda file: file.parts)
    return by_class


def _from_table(tree: Tree, top: Parts, path: Path, layout: Layout, known: Collection[str]) -> ByClass | None:
    """Return the classes that a table gives to pictures lying together below `top`, or None."""
    depth = len(top)
    if len(tree.filled(top)) > 1 and known and set(tree.filled(top)) & set(known):
        return None
    pictures = tree.below(top)
    tables = [file for file in tree.listing.tables if file.size <= MAX_TABLE_BYTES and file.parts[:-1] in _near(top)]
    tables.sort(key=lambda file: (file.parts[:depth] != top, -len(file.parts), file.parts))
    texts = (("/".join(file.parts), _text(tree.listing, file)) for file in tables[:_MAX_TABLES])
    found = read_labels(pictures, list(texts), known) if pictures and tables else None
    if found is None:
        return None
    logger.warning(
        "%s: labels of %d pictures in %s are read from %s%s",
        path,
        len(pictures) - found.missing,
        "/".join(top) or "it",
        found.table,
        f"; {found.missing} that it does not name are left out" if found.missing else "",
    )
    return found.by_class


def _near(top: Parts) -> set[Parts]:
    """Return the folders where the table of pictures below `top` is looked for: there, and around it."""
    return {top[:depth] for depth in range(len(top) + 1)}


def _text(listing: Listing, file: File) -> str:
    try:
        return listing.read(file).decode("utf-8", errors="replace")
    except ValueError as error:
        raise DataError(f"{'/'.join(file.parts)} cannot be read ({error}); repair or remove it") from error


def _say_what_is_odd(path: Path, listing: Listing, read: list[File]) -> None:
    if listing.foreign:
        found = ", ".join(f"{count} in {name}" for name, count in sorted(listing.foreign.items()))
        logger.warning("%s: pictures of the system or of a program are left out: %s", path, found)
    if listing.encoding:
        logger.warning("%s: a name %s; pack it again with names in UTF-8", path, listing.encoding)
    kinds = Counter(_kind(file) for file in read)
    common = kinds.most_common(1)[0][0] if kinds else ""
    rare = {kind: count for kind, count in kinds.items() if count <= _FEW * len(read) or count == 1 < len(read) / 8}
    for kind, count in rare.items():
        first = next(file for file in read if _kind(file) == kind)
        logger.warning(
            "%s: %d of %d pictures end in %s among %s, the first is %s: placeholders? They are read as pictures",
            path,
            count,
            len(read),
            kind,
            common,
            "/".join(first.parts),
        )


_SAME = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".jfi": ".jpg", ".jif": ".jpg", ".tiff": ".tif", "": ".jpg"}


def _kind(file: File) -> str:
    ending = Path(file.parts[-1]).suffix.lower()
    return _SAME.get(ending, ending)
