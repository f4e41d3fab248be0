"""Labels in a table beside the pictures: CSV, TSV, space-separated text or JSON lines, with a header or without."""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ld3m.data.listing import File
from ld3m.errors import DataError

MAX_TABLE_BYTES = 2**28
_LABEL_NAMES = (
    "label", "labels", "class", "class_name", "classname", "category", "target", "species", "breed", "wnid", "y",
    "diagnosis", "dx", "class_id", "label_name",
)  # fmt: skip
_COVERAGE = 0.5  # of the pictures, that a table must name to be taken for theirs


@dataclass(frozen=True)
class Labelled:
    """Pictures by class, by what a table says, and how many it leaves out."""

    by_class: dict[str, list[File]]
    table: str
    missing: int


def read_labels(
    pictures: Sequence[File], tables: Sequence[tuple[str, str]], known: Collection[str] = ()
) -> Labelled | None:
    """Return the pictures by class, from the first table that names them; None where none does.

    Args:
        tables: name and text of each.
        known: classes that the training split has: a column that holds them is the label's.
    """
    names = _by_name(pictures)
    for table, text in tables:
        rows = _rows(text)
        column, found = _file_column(rows, names)
        if len(set(found)) < max(1, _COVERAGE * len(pictures)):
            continue
        labels = _labels(
            table, rows, column, [at for at, file in enumerate(_column(rows, column)) if file in names], known
        )
        chosen: dict[int, str] = {}
        for row, label in labels.items():
            position = names[_plain(rows[row][column])]
            if chosen.setdefault(position, label) != label:
                raise DataError(f"{table} gives {rows[row][column]!r} two labels, {chosen[position]!r} and {label!r}")
        by_class: dict[str, list[File]] = {label: [] for label in _ordered(set(chosen.values()))}
        for position, label in sorted(chosen.items(), key=lambda item: pictures[item[0]].parts):
            by_class[label].append(pictures[position])
        return Labelled(by_class, table, len(pictures) - len(chosen))
    return None


def _ordered(labels: Collection[str]) -> list[str]:
    numeric = all(label.isdecimal() for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numeric else 0, label))


def _plain(value: str) -> str:
    return value.strip().replace("\\", "/").removeprefix("./")


def _by_name(pictures: Sequence[File]) -> dict[str, int]:
    """Return the position of each picture by every name that is its alone: path, end of it, without the ending."""
    found: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for position, file in enumerate(pictures):
        names = set()
        for depth in range(len(file.parts)):
            path = PurePosixPath(*file.parts[depth:])
            names |= {str(path), str(path.with_suffix(""))}
        counts.update(names)
        found |= dict.fromkeys(names, position)
    return {name: position for name, position in found.items() if counts[name] == 1}


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    if not lines:
        return []
    if lines[0].lstrip().startswith("{"):
        return _json_rows(lines)
    head = lines[:20]
    delimiter = next((d for d in "\t,;" if all(line.count(d) == head[0].count(d) > 0 for line in head)), None)
    if delimiter is None:
        delimiter = next((d for d in "\t,;" if d in head[0]), None)
    if delimiter is None:
        return [line.split() for line in lines]
    try:
        return list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return []


def _json_rows(lines: Sequence[str]) -> list[list[str]]:
    try:
        records = [json.loads(line) for line in lines]
    except ValueError:
        return []
    if not all(isinstance(record, dict) for record in records):
        return []
    keys = list(dict.fromkeys(key for record in records for key in record))
    return [keys, *([str(record.get(key, "")) for key in keys] for record in records)]


def _column(rows: Sequence[Sequence[str]], column: int) -> list[str]:
    return [_plain(row[column]) if column < len(row) else "" for row in rows]


def _file_column(rows: Sequence[Sequence[str]], names: dict[str, int]) -> tuple[int, list[int]]:
    best: tuple[int, list[int]] = (0, [])
    for column in range(min(16, max(map(len, rows), default=0))):
        found = [names[value] for value in _column(rows, column) if value in names]
        if len(set(found)) > len(set(best[1])):
            best = column, found
    return best


def _labels(
    table: str, rows: Sequence[Sequence[str]], files: int, at: Sequence[int], known: Collection[str]
) -> dict[int, str]:
    """Return the label of each row in `at` that has one."""
    header = [cell.strip() for cell in rows[0]] if 0 not in at else []
    width = min(len(rows[row]) for row in at)
    columns = [column for column in range(width) if column != files]
    column = _label_column(rows, header, columns, at, known)
    if column is not None:
        found = {row: rows[row][column].strip() for row in at}
        return {row: label for row, label in found.items() if label}
    if header and len(columns) > 1 and (hot := _one_hot(rows, header, columns, at)):
        return hot
    raise DataError(
        f"{table} names the pictures, but which of its columns {header or list(range(width))} holds the labels is not "
        f"clear; call it label, or leave two columns, file and label"
    )


def _label_column(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    columns: Sequence[int],
    at: Sequence[int],
    known: Collection[str],
) -> int | None:
    by_name = {header[column].casefold(): column for column in columns if column < len(header)}
    named = next((by_name[name] for name in _LABEL_NAMES if name in by_name), None)
    if named is not None:
        return named
    if known:
        of_known = [c for c in columns if {rows[row][c].strip() for row in at} <= set(known)]
        if of_known:
            return of_known[0]
    return columns[0] if len(columns) == 1 else None


def _one_hot(
    rows: Sequence[Sequence[str]], header: Sequence[str], columns: Sequence[int], at: Sequence[int]
) -> dict[int, str]:
    labels = {}
    for row in at:
        cells = [rows[row][column].strip() for column in columns]
        if not all(re.fullmatch(r"[01](\.0*)?", cell) for cell in cells):
            return {}
        hot = [column for column, cell in zip(columns, cells, strict=True) if cell.startswith("1")]
        if len(hot) != 1:
            return {}
        labels[row] = header[hot[0]]
    return labels
