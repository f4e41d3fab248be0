"""HTML of what an evaluation says beyond its table: paired differences, accuracies by class, and the confusion."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 30  # classes of which all counts are shown


def difference_table(evaluation: Mapping[str, Any]) -> str:
    """Return the paired differences between sets as a table; nothing where there are none."""
    found: Sequence[Mapping[str, Any]] = [one for one in evaluation.get("paired") or () if one.get("mean") is not None]
    if not found:
        return ""
    networks = list(dict.fromkeys(one["network"] for one in found))
    cells: dict[str, dict[str, str]] = {}
    for one in found:
        error = "" if one.get("standard_error") is None else f' <span class="soft">± {one["standard_error"]:.1f}</span>'
        pair = f"{_text(one['set'])} − {_text(one['against'])}"
        cells.setdefault(pair, {})[one["network"]] = f"{one['mean']:+.1f}{error}"
    lines = ["<tr><th></th>" + "".join(f"<th>{_text(name)}</th>" for name in networks)]
    for pair, row in cells.items():
        lines.append(f"<tr><th>{pair}</th>" + "".join(f"<td>{row.get(name, '–')}</td>" for name in networks))
    note = (
        "Differences in points, repeat by repeat, mean ± standard error: a repeat has the same first weights and "
        "the same augmentation on every set."
    )
    return f'<div class="wide"><table>{"".join(lines)}</table></div>\n<p class="note soft">{note}</p>\n'


def class_tables(evaluation: Mapping[str, Any]) -> str:
    """Return the accuracies by class, and of the first set what is taken for what, each to be opened."""
    rows: Sequence[Mapping[str, Any]] = [row for row in evaluation.get("rows") or () if row.get("per_class")]
    if not rows:
        return ""
    names = list((evaluation.get("data") or {}).get("class_names") or ())
    count = len(rows[0]["per_class"])
    names = names if len(names) == count else [str(label) for label in range(count)]
    head = "<tr><th></th>" + "".join(f"<th>{_text(row['set'])}, {_text(row['network'])}</th>" for row in rows)
    lines = [
        f"<tr><th>{_text(name)}</th>" + "".join(_share(row["per_class"], label) for row in rows)
        for label, name in enumerate(names)
    ]
    parts = [_folded("Accuracy by class", f"<table>{head}{''.join(lines)}</table>", "Percent, over all repeats.")]
    own = [row for row in rows if row["set"] == rows[0]["set"] and row.get("confusion")]
    for row in own if count <= _MOST else ():
        title = f"What {row['network']} takes the classes for after {row['set']}"
        note = "Test images over all repeats: their class by row, the answer by column."
        parts.append(_folded(title, _confusion(row["confusion"], names), note))
    return "\n".join(parts)


def _share(per_class: Sequence[float], label: int) -> str:
    return f"<td>{per_class[label]:.1f}</td>" if label < len(per_class) else "<td>–</td>"


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    head = "<tr><th></th>" + "".join(f"<th>{_text(name)}</th>" for name in names)
    lines = []
    for name, row in zip(names, counts, strict=False):
        total = max(1, sum(row))
        cells = (f'<td style="background: rgb(70 110 180 / {0.6 * count / total:.2f})">{count}</td>' for count in row)
        lines.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}")
    return f"<table>{head}{''.join(lines)}</table>"


def _folded(title: str, table: str, note: str) -> str:
    return (
        f'<details><summary>{_text(title)}</summary><p class="note soft">{note}</p><div class="wide">{table}</div>'
        "</details>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
