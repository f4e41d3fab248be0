"""Which class of the data each class of a set is: by wnid or name, and by order only where that is asked for."""

import re
from collections.abc import Sequence

from ld3m.data.ilsvrc import ilsvrc_index
from ld3m.errors import DataError

Names = Sequence[str]
Wnids = Sequence[str | None]
_SHOWN = 20


def labels_in(
    names: Names, wnids: Wnids, data_names: Names, data_wnids: Wnids, *, match: str, is_named: bool = True
) -> list[int]:
    """Return the data's label of each class of a set.

    Args:
        match: "name", or "order", by which classes that no name or wnid matches are paired in order.
        is_named: whether the set names its classes, for the message; numbers are no names.

    Raises:
        DataError: some class of either has no counterpart; with both lists.
    """
    found = _by_name(names, wnids, data_names, data_wnids)
    left = [label for label in range(len(data_names)) if label not in found]
    alien = [k for k, label in enumerate(found) if label is None]
    if match == "order" and len(left) == len(alien):
        rest = dict(zip(alien, left, strict=True))
        return [rest[k] if label is None else label for k, label in enumerate(found)]
    if left or alien:
        raise DataError(_differences(names, data_names, left, alien, match, is_named))
    return [label for label in found if label is not None]


def _by_name(names: Names, wnids: Wnids, data_names: Names, data_wnids: Wnids) -> list[int | None]:
    """Return the data's label of each class: by wnid, by the very name, by the place in ILSVRC, by a looser spelling.

    A kind of key that fits several classes decides nothing, and a class of the data serves one of the set.
    """
    own, theirs = list(map(_keys, names, wnids)), list(map(_keys, data_names, data_wnids))
    found: list[int | None] = [None] * len(names)
    for kind in range(len(own[0])):
        places: dict[object, list[int]] = {}
        for label, keys in enumerate(theirs):
            if keys[kind] is not None and label not in found:
                places.setdefault(keys[kind], []).append(label)
        for k, keys in enumerate(own):
            fitting = places.get(keys[kind], []) if found[k] is None and keys[kind] is not None else []
            if len(fitting) == 1 and fitting[0] not in found:
                found[k] = fitting[0]
    return found


def _keys(name: str, wnid: str | None) -> tuple[object, ...]:
    return wnid, name, ilsvrc_index(wnid or name), re.sub(r"[\W_]+", " ", name.casefold()).strip() or None


def _differences(
    names: Names, data_names: Names, left: Sequence[int], alien: Sequence[int], match: str, is_named: bool
) -> str:
    lists = f"the set has {len(names)}: {_listed(names)}; the data {len(data_names)}: {_listed(data_names)}"
    if match == "order":
        return f"match 'order' pairs as many classes as there are, but {lists}; narrow the data by classes"
    if not is_named:
        return (
            f"the set numbers its classes, and numbers are no names: {lists}; where they are the places in that list, "
            "say match 'order'"
        )
    alone = [_listed([names[k] for k in alien]) or "none", _listed([data_names[k] for k in left]) or "none"]
    return (
        f"set and data have other classes: {lists}. In the set alone: {alone[0]}; in the data alone: {alone[1]}; "
        "narrow the data by classes, or, where both lists stand in the same order, say match 'order'"
    )


def _listed(names: Names) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
