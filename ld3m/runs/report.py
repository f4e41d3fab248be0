"""The outcome of an evaluation: every number, the table a reader wants, and JSON that holds all of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, cast

from ld3m.networks import base_name
from ld3m.runs.differences import difference_lines, paired
from ld3m.runs.evaluations import forget_earlier, keep_earlier
from ld3m.runs.folder import EVALUATION, EVALUATION_SOFT
from ld3m.runtime.reading import (
    Misfit,
    both,
    either,
    listing,
    mapping,
    mapping_of,
    number,
    one_of,
    optional,
    parse_json,
    text,
    whole,
)  # fmt: skip
from ld3m.runtime.storage import write_text

FILES = {"hard": EVALUATION, "soft": EVALUATION_SOFT}  # by labels
SCORES = ("lrs", "ars")
SIZE_REMARK = "Size: images, labels and weights, with soft labels the answers of all epochs in half precision."
_TRAINED_ON = ("images", "labels", "weights", "soft_labels")  # not what images were rendered from


class Cell(NamedTuple):
    """What the repeats of a network on a set came to.

    Args:
        mean, std: over the repeats that are results; no mean where none is.
        diverged: repeats that are none.
    """

    mean: float | None
    std: float
    diverged: int = 0


# What a file of an evaluation holds, as far as it is used again; null for what could not be measured.
_PERCENT, _NAME = optional(number(0, 100)), text(300)
_ANY_NUMBER = optional(number(-1e6, 1e6))
_SUMMARY = mapping({"values": listing(optional(number(-1, 100)))}, {"mean": _ANY_NUMBER, "std": _ANY_NUMBER})
_ROW = mapping(
    {
        "set": _NAME,
        "network": _NAME,
        "accuracies": listing(_PERCENT, 1),
        "mean": _PERCENT,
        "std": _PERCENT,
    },
    {
        "best_epoch": mapping({"mean": _PERCENT, "std": _PERCENT}, {"accuracies": listing(_PERCENT, 1)}),
        "tests": whole(1, 10**9),
        "teacher": _NAME,
        "per_class": listing(number(0, 100), 1, 10**5),
        "confusion": listing(listing(whole(0, 10**12), 1, 100), 1, 100),
        "published": mapping({"accuracy": number(0, 100), "source": text()}, {"std": _PERCENT, "column": _NAME}),
        "lrs": _SUMMARY,
        "ars": _SUMMARY,
    },
)
_RECIPE = mapping({"epochs": whole(1, 10**9)})
_PROTOCOL = {"dtype": _NAME, "tested": whole(1, 10**9), "labels": one_of(*FILES), "deviations": listing(text())}
_RATE = number(0, 1e300)


def _rates(value: object) -> Misfit | None:
    """Check the rates of a protocol that were lowered, with those that were used instead."""
    protocol = cast("dict[str, Any]", value)
    if not protocol.get("lowered"):
        return None
    misfit = mapping_of(_RATE)(protocol["lowered"])
    if misfit is not None:
        return misfit.below("lowered")
    recipe = mapping({"rate": _RATE})
    return mapping({"recipes": mapping(dict.fromkeys(protocol["lowered"], recipe))})(protocol)


_UNSEEN = mapping_of(optional(listing(number(0, 100), 2, 2)))
_DIVERGED = listing(mapping({}, {"set": _NAME, "network": _NAME, "repeat": whole(0, 10**6), "variant": text(100)}))
_DATA = {
    "classes": whole(1, 10**7),
    "images_per_class": either(whole(0, 10**9), text(100)),
    "test_images": whole(0, 10**10),
    "resolution": whole(1, 10**6),
}
REPORT = mapping(
    {
        "rows": listing(_ROW, 1, 10**5),
        "unseen": _UNSEEN,
        "protocol": both(mapping({"name": _NAME, "recipes": mapping_of(_RECIPE)}, _PROTOCOL), _rates),
        "distilled_with": optional(_NAME),
        "data": mapping(_DATA),
    },
    {"key": text(), "diverged": _DIVERGED, "storage_bytes": mapping_of(mapping_of(whole(0, 10**18)))},
)
_STORAGE = mapping_of(mapping_of(whole(0, 10**18)))
SHOWN = mapping(  # what a page and a card make use of, where it is there
    {},
    {
        "rows": listing(_ROW, 0, 10**5),
        "unseen": optional(_UNSEEN),
        "protocol": optional(both(mapping({}, {"name": _NAME, **_PROTOCOL}), _rates)),
        "distilled_with": optional(_NAME),
        "diverged": _DIVERGED,
        "storage_bytes": _STORAGE,
        "paired": listing(
            mapping(
                dict.fromkeys(("set", "against", "network"), _NAME),
                dict.fromkeys(("mean", "standard_error"), optional(number(-100, 100))),
            )
        ),
        "data": optional(mapping({}, {"class_names": listing(text(), 0, 10**5)})),
        "set": optional(mapping({})),
    },
)


@dataclass(frozen=True)
class Report:
    """Test accuracies in percent.

    Args:
        rows: one for each set and network: {set, network, accuracies, mean, std}; std is the sample standard deviation
            over the repeats, 0 for a single one. A training that diverged has None for an accuracy and no part in mean
            and std; where all have, there is no mean. With soft labels also {labels, teacher}; with several tested
            epochs best_epoch, and with scores lrs and ars, each with values, mean and std of its own.
        protocol: its fields, deviations from the published code included.
        distilled_with: the network that took part in the distillation, where that is known; the others are unseen.
        about: data, seeds, storage, versions, device, seconds; the teacher, the trainings for scores alone, and those
            that diverged: {set, network, repeat, variant}.
    """

    rows: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any]
    distilled_with: str | None
    about: Mapping[str, Any]

    @property
    def unseen(self) -> dict[str, tuple[float, float] | None]:
        """For each set the mean over repeats, and its standard deviation, of the average over the unseen networks.

        A repeat in which a network diverged has no average; None where no repeat has one.
        """
        cells = {name: _over_networks(rows) for name, rows in _unseen_rows(self.rows, self.distilled_with).items()}
        return {name: None if cell.mean is None else (cell.mean, cell.std) for name, cell in cells.items()}

    def table(self) -> str:
        """Return the table as aligned text: a line for each set, a column for each network and one for the unseen."""
        repeats = len(self.rows[0]["accuracies"])
        columns, sets = layout(self.rows, self.unseen, self.distilled_with)
        sizes = stored_bytes(self.about)
        lines = [["", *columns, *(["size"] if sizes else [])]]
        for name, cells in sets.items():
            size = [size_text(sizes[name]) if name in sizes else "–"] if sizes else []
            lines.append([name, *(cell_text(*one, repeats) for one in zip(columns, cells, strict=True)), *size])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        return "\n".join([line.rstrip() for line in text] + ["", self._note(repeats)])

    def _note(self, repeats: int) -> str:
        data = self.about["data"]
        spread = f"mean ± sample standard deviation of n = {repeats} trainings" if repeats > 1 else "one training"
        epochs = {name: recipe["epochs"] for name, recipe in self.protocol["recipes"].items()}
        one_length = len(set(epochs.values())) == 1
        lengths = [f"{min(epochs.values()):,}"] if one_length else [f"{e:,} ({name})" for name, e in epochs.items()]
        note = (
            f"Test accuracy in percent, {spread}. Protocol {self.protocol['name']}; epochs: {', '.join(lengths)}.\n"
            f"{data['classes']} classes, images per class: {data['images_per_class']}; "
            f"tested on {data['test_images']:,} images of {data['resolution']} px."
        )
        if self.distilled_with and self.unseen:
            note += (
                f"\nUnseen: networks other than {base_name(self.distilled_with)}, with which the images were distilled."
            )
        sizes = [SIZE_REMARK] if stored_bytes(self.about) else []
        differences = difference_lines(paired(self.rows, self.distilled_with))
        source = self.protocol.get("source")
        follows = [f"As {source}; how it differs is said in the report."] if source else []
        changed = [one for one in self.protocol.get("deviations") or () if " epochs instead of " in one]
        follows += [f"Not the published length: {one}." for one in changed]
        return "\n".join([note, *sizes, *differences, *remarks(self.rows, self.protocol), *follows])

    def __repr__(self) -> str:
        cells = {name: score and Cell(*score) for name, score in self.unseen.items()}
        scores = (f"{name} {cell_text('', cell, 1)} %" for name, cell in cells.items())
        return f"Report({self.protocol.get('name', 'protocol not named')}: {', '.join(scores) or 'no unseen network'})"

    def _repr_html_(self) -> str:
        from ld3m.runs.page import accuracy_table  # which shows reports

        return accuracy_table(json.loads(self.to_json()))

    def to_json(self) -> str:
        """Return all of it as JSON."""
        content = {
            "rows": self.rows,
            "unseen": self.unseen,
            "paired": paired(self.rows, self.distilled_with),
            "protocol": self.protocol,
            "distilled_with": self.distilled_with,
            **self.about,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Return the report that `to_json` wrote.

        Raises:
            CheckpointError: the text is something else.
        """
        content = parse_json(text, REPORT, source="this is not the JSON of an evaluation", remedy="evaluate again")
        for name in ("unseen", "paired"):  # follow from the rows
            content.pop(name, None)
        return cls(content.pop("rows"), content.pop("protocol"), content.pop("distilled_with"), content)


def save_report(report: Report, folder: str | Path) -> Path:
    """Write `evaluation.json`, or `evaluation-soft.json`, into a folder, whole or not at all; return its path.

    Another evaluation that is there is kept in `evaluations/`.
    """
    path = Path(folder) / FILES[report.protocol.get("labels", "hard")]
    name = report.about.get("key")
    keep_earlier(path, name)
    write_text(path, report.to_json())
    forget_earlier(path.parent, name)
    return path


def layout(
    rows: Sequence[Mapping[str, Any]],
    unseen: Mapping[str, Sequence[float] | None],
    distilled_with: str | None = None,
) -> tuple[list[str], dict[str, list[Cell | None]]]:
    """Lay rows out: the columns, and for each set its cells in them.

    Columns are the networks, each with its best epoch where several were tested, then the mean of the unseen ones, then
    the scores, as means over all networks.
    """
    cells: dict[tuple[str, str], Cell] = {}
    for row in rows:
        diverged = _count_none(row["accuracies"])
        last, best_of = columns_of(row)
        cells[row["set"], last] = Cell(row["mean"], row["std"], diverged)
        if best := row.get("best_epoch"):
            cells[row["set"], best_of] = Cell(best["mean"], best["std"], diverged)
    others = _unseen_rows(rows, distilled_with)
    for name, score in unseen.items():
        diverged = _over_networks(others[name]).diverged if name in others else 0
        cells[name, "unseen mean"] = Cell(score[0], score[1], diverged) if score else Cell(None, 0.0, diverged)
    for score in SCORES:
        scored: dict[str, list[Sequence[float | None]]] = {}
        for row in rows:
            if score in row:
                scored.setdefault(row["set"], []).append(row[score]["values"])
        cells |= {(name, score): _over_networks(values) for name, values in scored.items()}
    columns = list(dict.fromkeys(column for _, column in cells))
    return columns, {row["set"]: [cells.get((row["set"], column)) for column in columns] for row in rows}


def columns_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of a network's columns, of the last test and of the best one; older files do not say how many
    tests there were."""
    network, tests = row["network"], row.get("tests")
    return (f"{network} last", f"{network} best of {tests} tests") if tests else (network, f"{network} best_epoch")


def remarks(rows: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> list[str]:
    """Return what has to be said of lowered rates, trainings that diverged, soft labels, precision, best epochs and
    scores, where there is anything."""
    said = []
    for network, rate in (protocol.get("lowered") or {}).items():
        used = protocol["recipes"][network]["rate"]
        said.append(
            f"{network} diverged at rate {rate:g}: all its trainings, on every set, were done again at {used:g}."
        )
    if any(_count_none(row["accuracies"]) for row in rows):
        said.append(
            "Trainings that diverged, their loss or weights not finite, are no results: they are left out, and no set "
            "is the best of a column that has one."
        )
    if protocol.get("dtype", "float32") != "float32":
        said.append(f"Trained in {protocol['dtype']} mixed precision, tested in float32.")
    if teacher := rows[0].get("teacher"):
        said.append(f"Soft labels of the teacher {teacher}, for every set.")
    if "tests" in rows[0]:
        said.append(
            "last: after the last epoch, as are unseen mean and differences; best of n tests: chosen by test accuracy."
        )
    elif "best_epoch" in rows[0]:
        said.append(f"best_epoch: the best of the last {protocol['tested']} epochs by test accuracy.")
    for row in rows:
        if known := row.get("published"):
            spread = "" if known.get("std") is None else f" ± {known['std']:g}"
            said.append(
                f"Published for {row['set']} on {row['network']} ({known.get('column', 'last')}): {known['accuracy']:g}"
                f"{spread}, {known['source']}."
            )
    if any(score in rows[0] for score in SCORES):
        said.append("lrs, ars: label- and augmentation-robust score, 0 to 1, mean over the networks.")
    return said


def stored_bytes(about: Mapping[str, Any]) -> dict[str, int]:
    """Return for each set the bytes that a training needs: images, labels and weights; none in older reports."""
    stored: Mapping[str, Mapping[str, int]] = about.get("storage_bytes") or {}
    return {name: sum(part for kind, part in parts.items() if kind in _TRAINED_ON) for name, parts in stored.items()}


def size_text(size: int) -> str:
    """Return bytes as a table has them."""
    return f"{size / 1024:,.0f} KiB" if size < 10 * 2**20 else f"{size / 2**20:,.0f} MiB"


def shown(column: str, mean: float, std: float) -> tuple[str, str]:
    """Return mean and standard deviation of a column as text."""
    digits = 3 if column in SCORES else 1
    return f"{mean:.{digits}f}", f"{std:.{digits}f}"


def cell_text(column: str, cell: Cell | None, repeats: int) -> str:
    """Return a cell as text: a single training has no standard deviation."""
    if cell is None:
        return "–"
    if cell.mean is None:
        return "diverged"
    mean, std = shown(column, cell.mean, cell.std)
    text = f"{mean} ± {std}" if repeats - cell.diverged > 1 else mean
    return text + diverged_text(cell, repeats)


def diverged_text(cell: Cell, repeats: int) -> str:
    """Say how many trainings are missing behind a cell, where some are."""
    return f" (diverged {cell.diverged} of {repeats})" if cell.diverged else ""


def most_repeats(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how often the networks were trained on a set, at most."""
    return max(len(row["accuracies"]) for row in rows)


def spread_text(repeats: int) -> str:
    """Say what stands in the cells of so many trainings."""
    return f"mean ± standard deviation over {repeats} trainings" if repeats > 1 else "one training"


def summary(values: Sequence[float | None], name: str = "accuracies") -> dict[str, Any]:
    """Return the values of all repeats with their mean and standard deviation, as a row has them.

    None stands for a training that diverged, which has no part in them; of nothing there is no mean.
    """
    known = [value for value in values if value is not None]
    mean, std = mean_std(known) if known else (None, 0.0)
    return {name: list(values), "mean": mean, "std": std}


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; the latter is 0 for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _unseen_rows(
    rows: Sequence[Mapping[str, Any]], distilled_with: str | None
) -> dict[str, list[Sequence[float | None]]]:
    """Return, for each set, the accuracies of the networks other than the one that took part in the distillation."""
    seen = base_name(distilled_with or "")
    found: dict[str, list[Sequence[float | None]]] = {}
    for row in rows:
        if base_name(row["network"]) != seen:
            found.setdefault(row["set"], []).append(row["accuracies"])
    return found


def _over_networks(rows: Sequence[Sequence[float | None]]) -> Cell:
    """Average each repeat over the networks, but for those in which one diverged."""
    repeats = [[value for value in repeat if value is not None] for repeat in zip(*rows, strict=True)]
    whole = [fmean(repeat) for repeat in repeats if len(repeat) == len(rows)]
    return Cell(*(mean_std(whole) if whole else (None, 0.0)), len(repeats) - len(whole))


def _count_none(values: Sequence[float | None]) -> int:
    return sum(value is None for value in values)
