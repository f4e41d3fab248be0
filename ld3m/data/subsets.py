"""Published subsets of ImageNet by name, and the classes and images that a data set is narrowed down to.

Orders are those of the code that published them: mtt-distillation and glad (Nette to E), IDC's class100.txt, whose
first ten are ImageIDC. Label k is the k-th class of the list.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ld3m.data.ilsvrc import classes as ilsvrc_classes
from ld3m.data.images import ImageSet, by_class
from ld3m.data.items import Items, Source
from ld3m.data.naming import named
from ld3m.errors import DataError
from ld3m.runtime import seeds

_MAX_BYTES, _SHOWN = 2**20, 12
_ILSVRC: dict[str, tuple[int, ...]] = {  # positions among the 1,000
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
    "imageblub": (392, 393, 33, 397, 6, 107, 327, 390, 108, 122),
    "imagenet-a": (255, 376, 984, 364, 500, 986, 333, 576, 148, 135),
    "imagenet-b": (129, 916, 90, 275, 995, 874, 102, 259, 685, 139),
    "imagenet-c": (565, 94, 554, 535, 92, 392, 291, 136, 324, 11),
    "imagenet-d": (9, 258, 13, 262, 19, 339, 321, 24, 93, 322),
    "imagenet-e": (816, 96, 100, 145, 739, 713, 783, 76, 688, 326),
}
_HUNDRED = """
n02869837 n01749939 n02488291 n02107142 n13037406 n02091831 n04517823 n04589890 n03062245 n01773797 n01735189 n07831146
n07753275 n03085013 n04485082 n02105505 n01983481 n02788148 n03530642 n04435653 n02086910 n02859443 n13040303 n03594734
n02085620 n02099849 n01558993 n04493381 n02109047 n04111531 n02877765 n04429376 n02009229 n01978455 n02106550 n01820546
n01692333 n07714571 n02974003 n02114855 n03785016 n03764736 n03775546 n02087046 n07836838 n04099969 n04592741 n03891251
n02701002 n03379051 n02259212 n07715103 n03947888 n04026417 n02326432 n03637318 n01980166 n02113799 n02086240 n03903868
n02483362 n04127249 n02089973 n03017168 n02093428 n02804414 n02396427 n04418357 n02172182 n01729322 n02113978 n03787032
n02089867 n02119022 n03777754 n04238763 n02231487 n03032252 n02138441 n02104029 n03837869 n03494278 n04136333 n03794056
n03492542 n02018207 n04067472 n03930630 n03584829 n02123045 n04229816 n02100583 n03642806 n04336792 n03259280 n02116738
n02108089 n03424325 n01855672 n02090622
"""
_ALIASES = {"birds": "imagesquawk", "cats": "imagemeow", "fruits": "imagefruit", "imagefruits": "imagefruit"}
SUBSETS = (*_ILSVRC, "imageidc", "imagenet-100")


def wnids_of(name: str) -> tuple[str, ...]:
    """Return the wnids of a published subset, in its order."""
    name = _ALIASES.get(name, name)
    if name in ("imagenet-100", "imageidc"):
        return tuple(_HUNDRED.split()[: 10 if name == "imageidc" else 100])
    return tuple(ilsvrc_classes()[position][0] for position in _ILSVRC[name])


def parse(classes: str) -> tuple[str, ...]:
    """Return the classes that a word stands for: a subset's name, a list with commas, or a file with one on each line.

    Raises:
        DataError: it names none, or one twice.
    """
    plain = classes.strip().casefold()
    if plain in SUBSETS or plain in _ALIASES:
        return wnids_of(plain)
    listed = classes.split(",") if "," in classes or not _is_file(classes) else _lines(Path(classes))
    names = tuple(name.strip() for name in listed if name.strip())
    if len(names) < 2:
        raise DataError(
            f"classes {classes!r} is no published subset ({', '.join(SUBSETS)}), no file, and no list of at least two "
            "classes with commas between"
        )
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"classes names {repeated!r} twice; a class has one place")
    return names


def narrowed(source: Source, classes: str) -> Source:
    """Return a source with some of its classes alone, in the order that they are named.

    Raises:
        DataError: the source lacks one of them.
    """
    wanted = parse(classes)
    wnids = source.wnids or (None,) * len(source.class_names)
    places = {_plain(name): label for label, name in enumerate(source.class_names)}
    places |= {wnid: label for label, wnid in enumerate(wnids) if wnid}
    if lacking := [name for name in wanted if _place(name, places) is None]:
        raise DataError(
            f"{source.name!r} lacks {_listed(lacking)} of the classes that {classes!r} names; it has "
            f"{_listed([wnid or name for wnid, name in zip(wnids, source.class_names, strict=True)])}"
        )
    labels = [label for name in wanted if (label := _place(name, places)) is not None]
    names, chosen = tuple(source.class_names[label] for label in labels), tuple(wnids[label] for label in labels)
    if all(chosen):  # of all 1,000, two pairs have the same name
        names, _ = named([wnid for wnid in chosen if wnid])
    test = None if source.test is None else _of_classes(source.test, labels)
    return replace(source, train=_of_classes(source.train, labels), test=test, class_names=names, wnids=chosen)


def first_or_drawn(images: ImageSet, count: int, seed: int | None) -> ImageSet:
    """Return so many images of each class: the first ones, or with a seed drawn ones, in the order that they had."""
    images.require_per_class(count, "per_class")
    chosen = []
    for label in range(images.num_classes):
        members = images.of_class(label)
        if seed is not None:
            generator = seeds.generator(seed, "per_class", label)
            members = members[torch.randperm(len(members), generator=generator)[:count].sort().values]
        chosen.append(members[:count])
    positions = torch.cat(chosen).sort().values
    return ImageSet(images.images[positions], images.labels[positions], images.class_names)


def _of_classes(items: Items, labels: Sequence[int]) -> Items:
    """Return the images of these classes, class by class, with their places as labels."""
    positions = by_class(items.labels, int(items.labels.max()) + 1)
    sizes = torch.tensor([len(positions[label]) for label in labels])
    taken = items.take(torch.cat([positions[label] for label in labels]).tolist())
    return replace(taken, labels=torch.arange(len(labels)).repeat_interleave(sizes))


def _place(name: str, places: dict[str, int]) -> int | None:
    return places.get(name, places.get(_plain(name)))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of classes; of each the first word where it is a wnid, else all of it."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"classes {path} is no list: it has more than {_MAX_BYTES:,} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"classes {path} cannot be read ({error}); give a text file with a class on each line"
        ) from error
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [wnid[1] if (wnid := re.match(r"(n\d{8})\b", line)) else line for line in stripped]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
