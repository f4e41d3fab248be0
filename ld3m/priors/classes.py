"""The class of a prior that stands for each class of a data set."""

import logging
from collections.abc import Sequence

from ld3m.data.ilsvrc import classes, ilsvrc_index
from ld3m.errors import InputError
from ld3m.priors.base import Prior
from ld3m.priors.stylegan.generator import StyleGAN

logger = logging.getLogger(__name__)
_EMBEDDED = "fashion-mnist"  # the name that its own index gives it
_EMBEDDED_KNOWS = (
    ". The embedded prior knows Fashion-MNIST alone, in grey: `ld3m prior train` makes one of your own images, or "
    "--prior names another"
)


def match_classes(
    prior: Prior | StyleGAN,
    class_names: Sequence[str],
    wnids: Sequence[str | None],
    class_ids: Sequence[int] | None = None,
    *,
    is_required: bool = False,
) -> list[int]:
    """Return the prior's class id for every class of a data set.

    A class is matched by name where the prior knows its names, by wnid or name where it has the 1,000 of ILSVRC (by
    index where the data's 1,000 are named by theirs), and starts from the null class where neither holds, which is
    logged.

    Args:
        class_names, wnids: of the data set, in label order.
        class_ids: the user's own choice, one a class; wins over matching.
        is_required: refuse a class without a match instead of starting it from the null class.
    """
    if prior.num_classes is None or prior.null_class is None:
        raise InputError(f"{prior.name} has no classes to match; leave class_ids out")
    if class_ids is not None:
        if len(class_ids) != len(class_names):
            raise InputError(f"class_ids needs one id a class: {len(class_names)} classes, got {len(class_ids)} ids")
        if wrong := [k for k in class_ids if not 0 <= k <= prior.num_classes]:
            raise InputError(
                f"class_ids of {prior.name} go from 0 to {prior.num_classes - 1}, and {prior.num_classes} is the null "
                f"class; got {wrong}"
            )
        return list(class_ids)
    if prior.num_classes == 1000 and set(class_names) == set(map(str, range(1000))):
        return [int(name) for name in class_names]
    found = [_match(prior, name, wnid) for name, wnid in zip(class_names, wnids, strict=True)]
    unmatched = [name for name, k in zip(class_names, found, strict=True) if k is None]
    remedy = _EMBEDDED_KNOWS if prior.name == _EMBEDDED else ""
    if unmatched and is_required:
        raise InputError(
            f"no class of {prior.name} matches {_listed(unmatched)}; name the prior's class for each class of the "
            f"data, in label order, by class_ids (--class-ids){remedy}"
        )
    if unmatched:
        logger.warning(
            "no class of %s matches %s: starting from the null class; choose by class_ids (--class-ids)%s",
            prior.name,
            _listed(unmatched),
            remedy,
        )
    return [prior.null_class if k is None else k for k in found]


def warn_of_unknown(prior: Prior, class_names: Sequence[str]) -> None:
    """Say where the first stage of the embedded prior, grey clothes alone, is to show other images."""
    known = {name.casefold() for name in prior.class_names or ()}
    if prior.name == _EMBEDDED and not known & {name.casefold() for name in class_names}:
        logger.warning("the decoder of %s never saw images of %s%s", prior.name, _listed(class_names), _EMBEDDED_KNOWS)


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Return names as a list has them; of many, the first and how many there are."""
    more = f" and {len(names) - most} more, {len(names)} in all" if len(names) > most else ""
    return f"{list(names[:most])}{more}"


def _are_ilsvrc(class_names: Sequence[str]) -> bool:
    """Whether a prior's names are those of ILSVRC, in its order, in other spellings here and there."""
    own = [name for _, name in classes()]
    return len(class_names) == len(own) and sum(map(str.__eq__, own, class_names)) > 0.8 * len(own)


def _match(prior: Prior | StyleGAN, name: str, wnid: str | None) -> int | None:
    if prior.class_names is not None and not _are_ilsvrc(prior.class_names):
        if name in prior.class_names:
            return prior.class_names.index(name)
        alike = [k for k, known in enumerate(prior.class_names) if known.casefold() == name.casefold()]
        return alike[0] if len(alike) == 1 else None  # a prior may have "A" and "a"
    if prior.num_classes == 1000:
        found = (ilsvrc_index(word) for word in (wnid, name) if word)
        return next((k for k in found if k is not None), None)
    return None
