"""The 1,000 classes of ILSVRC-2012, in the index order that class-conditional ImageNet models use."""

import functools
from collections.abc import Callable
from pathlib import Path


@functools.cache
def classes() -> tuple[tuple[str, str], ...]:
    """Return (wnid, name) of each class in index order; a name is the first lemma of the synset, "golf ball"."""
    lines = Path(__file__).with_name("ilsvrc.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines if not line.startswith("#"))
    return tuple((wnid, name) for wnid, _, name in pairs)


def name_of(wnid: str) -> str | None:
    """Return the name of a wnid, None when it is not one of the 1,000."""
    return dict(classes()).get(wnid)


def ilsvrc_index(wnid_or_name: str) -> int | None:
    """Return the ILSVRC index of a wnid or class name, or None.

    Names match whatever their case and with `_` or `-` for a space, unless that fits two classes: "crane" and
    "maillot" give None, "cardigan" is the garment (474) and "Cardigan" the dog (264).
    """
    exact = _index(str)
    return exact[wnid_or_name] if wnid_or_name in exact else _index(_plain).get(_plain(wnid_or_name))


@functools.cache
def _index(spell: Callable[[str], str]) -> dict[str, int | None]:
    table: dict[str, int | None] = {}
    for index, (wnid, name) in enumerate(classes()):
        table[wnid] = index
        table[spell(name)] = None if spell(name) in table else index
    return table


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
