"""The meaning of names of folders and classes: the role of a split, a wnid, a readable name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from ld3m.data.ilsvrc import name_of
from ld3m.errors import DataError
from ld3m.runtime.reading import shown_text

Role = Literal["train", "test", "val"]

_WORDS: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "devel"), "val"),
}
_BESIDE = (
    "x|images?|imgs?|data|dataset|set|split|folder|dir|full|all|subset|files|samples|examples|pictures|photos|ilsvrc"
)
_ROLE = re.compile(rf"(?:{_BESIDE})*({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:{_BESIDE})*")
_LONGEST_NAME = 1000  # characters: what reads a distilled set takes no more than some thousands
_WNID = re.compile(r"(n\d{8})(?:[-_. ]+(.+))?|(.+?)[-_. ]+(n\d{8})")


def role_of(name: str) -> Role | None:
    """Return the role of a split by its name alone: train, trainset, X_train, images_test, validation, dev, val2017."""
    plain = re.sub(r"[\W\d_]+", "", name.casefold())
    found = _ROLE.fullmatch(plain)
    return _WORDS[found[1]] if found else None


def hinted_role(name: str) -> Role | None:
    """Return the role that a word of a name hints at: "seg_train". A class may be called so too: "bullet train"."""
    if (role := role_of(name)) is not None:
        return role
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    found: set[Role] = {role for word in words if (role := role_of(word)) is not None}
    return found.pop() if len(found) == 1 else None


def held_out_first(names: Sequence[str]) -> list[str]:
    """Return the names of test and validation splits in order of preference: test before val, plain before others."""
    ranks = {"test": 0, "val": 1}
    ranked = [
        (ranks[role], name.casefold() not in _WORDS, name) for name in names if (role := hinted_role(name)) in ranks
    ]
    return [name for *_, name in sorted(ranked)]


def named(folders: Sequence[str]) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return readable names and wnids of class folders: n01440764, n02085620-Chihuahua, Chihuahua-n02085620, cat."""
    wnids: list[str | None] = []
    names: list[str] = []
    for folder in folders:
        found = _WNID.fullmatch(folder)
        wnid, rest = (found[1] or found[4], found[2] or found[3]) if found else (None, None)
        wnids.append(wnid)
        names.append((name_of(wnid) if wnid else None) or (rest or "").replace("_", " ").strip() or folder)
    if len(set(names)) < len(names):  # ILSVRC has two classes "crane" and two "maillot"
        names = list(folders)
    return tuple(names), tuple(wnids)


def require_names(names: Sequence[str]) -> None:
    """Raise DataError for names of classes that would be found out when a set of theirs is written."""
    if len(names) < 2:
        raise DataError(f"expected at least two classes, found only {''.join(names)!r}; add another class")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"two classes have the name {shown_text(twice[0])!r}; give them names of their own")
    for name in names:
        if len(name) > _LONGEST_NAME:
            raise DataError(f"class {shown_text(name, 40)!r} has a name of {len(name):,} characters; shorten it")
        if re.search("[\ud800-\udfff]", name):  # what Python makes of bytes that are not UTF-8
            raise DataError(f"class {name!r} has a name that is not UTF-8; rename it")


def spelled(classes: object, wnids: object = ()) -> tuple[tuple[str, ...], tuple[str | None, ...] | None]:
    """Return names and wnids of an object's `classes`: strings, or tuples of synonyms as torchvision's ImageNet has."""
    if isinstance(classes, Mapping):  # id -> name
        classes = [classes[key] for key in sorted(classes, key=lambda key: int(str(key)))]
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        return (), None
    names = tuple(str(one[0] if isinstance(one, tuple | list) and one else one) for one in classes)
    known = list(wnids) if isinstance(wnids, Sequence) and len(wnids) == len(names) else []
    if not all(isinstance(wnid, str) and re.fullmatch(r"n\d{8}", wnid) for wnid in known):
        known = []
    if len(set(names)) < len(names):
        joined = [", ".join(map(str, one)) if isinstance(one, tuple | list) else str(one) for one in classes]
        names = tuple(joined if len(set(joined)) == len(joined) else known or joined)
    return names, tuple(known) or None
