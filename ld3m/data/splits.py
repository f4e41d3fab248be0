"""Splits and classes among folders, by their names and by what they hold."""

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ld3m.data.listing import File, Listing, Parts
from ld3m.data.naming import held_out_first, hinted_role, role_of
from ld3m.errors import DataError

logger = logging.getLogger(__name__)


class Tree:
    """The folders of a listing, with the number of pictures below each."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        below: dict[Parts, set[str]] = {}
        for folder in listing.folders:
            below.setdefault(folder[:-1], set()).add(folder[-1])
        self._children = {parts: sorted(names) for parts, names in below.items()}
        self.pictures: Counter[Parts] = Counter()
        for file in listing.pictures:
            self.pictures.update(file.parts[:depth] for depth in range(len(file.parts)))
        for parts, _ in listing.passed:  # a class of pictures that are not read is one
            self.pictures.update({parts[:depth]: 0 for depth in range(len(parts))})

    def children(self, top: Parts) -> list[str]:
        return self._children.get(top, [])

    def filled(self, top: Parts) -> list[str]:
        """Return the folders below `top` that hold pictures, read or passed over."""
        return [name for name in self.children(top) if (*top, name) in self.pictures]

    def below(self, top: Parts) -> list[File]:
        return [file for file in self.listing.pictures if file.parts[: len(top)] == top]

    def inner(self, top: Parts) -> Parts:
        """Follow lone folders: training_set/training_set holds what matters."""
        while len(names := self.filled(top)) == 1 and self.filled((*top, names[0])):
            top = (*top, names[0])
        return top

    def shown(self, top: Parts, most: int = 6) -> str:
        """Return the tree in a line: training_set/{cat, dog}, test_set/{cat, dog}."""

        def listed(names: Sequence[str]) -> str:
            return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")

        lines = []
        for name in self.children(top):
            inner = self.inner((*top, name))
            path = "/".join(inner[len(top) :])
            names = self.children(inner)
            lines.append(f"{path}/{{{listed(names)}}}" if names else f"{path}/")
        return listed(lines)


@dataclass(frozen=True)
class Layout:
    """The places below `top` of training classes and, in order of preference, of candidates for a test split."""

    top: Parts
    train: Parts
    held_out: tuple[Parts, ...] = ()
    others: tuple[str, ...] = ()


def find_layout(tree: Tree, path: Path) -> Layout:
    """Tell splits from classes; raise DataError, with the tree as it is seen, where that is not clear."""
    top = _top(tree)
    names = tree.children(top)
    filled = tree.filled(top)
    are_all_splits = len(filled) > 1 and all(map(role_of, filled))  # also without classes: a table may name these
    trains = [name for name in names if role_of(name) == "train" and (are_all_splits or tree.children((*top, name)))]
    trains = _plainest(trains)
    if not trains:
        if names and all(role_of(name) in ("test", "val") for name in names):
            raise DataError(f"{path} holds {', '.join(names)} but no train; add a folder train/ of classes")
        if not _are_splits(tree, top):
            return Layout(top, top)
        trains = [name for name in filled if hinted_role(name) == "train"]
        if not all(map(hinted_role, filled)):
            raise _ambiguous(tree, top, path)
    if len(trains) != 1:
        raise _ambiguous(tree, top, path)
    train = tree.inner((*top, trains[0]))
    if _are_splits(tree, train):
        raise _ambiguous(tree, train, path)
    held_out = held_out_first([name for name in names if name != trains[0]])
    others = tuple(name for name in names if name not in (*held_out, trains[0]))
    return Layout(top, train, tuple((*top, name) for name in held_out), others)


def _plainest(trains: list[str]) -> list[str]:
    """Of train/ and training_old/, the plain one is meant; of two equally plain ones, none."""
    plain = [name for name in trains if name.casefold() in ("train", "training")]
    return plain or trains


def _ambiguous(tree: Tree, top: Parts, path: Path) -> DataError:
    return DataError(
        f"{path} is not clear: are these splits or classes? {tree.shown(top)}; call the splits train/ and test/ or "
        "val/, or keep nothing but one folder for each class"
    )


def _top(tree: Tree) -> Parts:
    """Return the folder that holds the splits or the classes: archives often have one folder around everything."""
    top: Parts = ()
    while names := tree.children(top):
        filled = tree.filled(top)
        inside = filled if len(filled) == 1 and len(names) > 1 else names
        if len(inside) != 1 or any(map(role_of, names)) or not tree.children((*top, inside[0])):
            break
        if len(names) > 1 and not _holds_more(tree, (*top, inside[0])):  # an empty class beside one with pictures
            break
        top = (*top, inside[0])
    return top


def _holds_more(tree: Tree, folder: Parts) -> bool:
    return len(tree.filled(folder)) > 1


def _are_splits(tree: Tree, top: Parts) -> bool:
    """Whether would-be classes hold folders of the same names, as splits do."""
    held = [set(tree.filled(tree.inner((*top, name)))) for name in tree.filled(top)]
    return any(len(one & other) > 1 for one, other in itertools.combinations(held[:200], 2) if one and other)


def swap_class_first(listing: Listing, tree: Tree) -> Listing:
    """Return cat/train, cat/test, dog/train … as train/cat, test/cat, train/dog …; other listings as they are."""
    top = _top(tree)
    names = tree.filled(top)
    inside = [tree.filled((*top, name)) for name in names]
    if len(names) < 2 or any(map(role_of, names)) or not all(inside):
        return listing
    if not all(any(role_of(name) == "train" for name in one) and all(map(role_of, one)) for one in inside):
        return listing
    depth = len(top)

    def swapped(parts: Parts) -> Parts:
        return (*top, parts[depth + 1], parts[depth], *parts[depth + 2 :]) if len(parts) > depth + 1 else parts

    pictures = [file._replace(parts=swapped(file.parts)) for file in listing.pictures]
    folders = {swapped(folder) for folder in listing.folders if len(folder) > depth + 1}
    folders |= {folder[: depth + 1] for folder in folders}
    passed = [(swapped(parts), reason) for parts, reason in listing.passed]
    return Listing(listing.read, pictures, listing.tables, folders, passed, listing.foreign, listing.encoding)
