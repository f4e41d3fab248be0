"""The outcome of an evaluation: every number, the table a reader wants, and JSON that holds all of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from ld3m.errors import CheckpointError
from ld3m.evaluation.protocols import base_name
from ld3m.storage import write_text

FILE = "evaluation.json"


@dataclass(frozen=True)
class Report:
    """Test accuracies in percent.

    Args:
        rows: one for each set and network: {set, network, accuracies, mean, std}; std is the sample standard deviation
            over the repeats, 0 for a single one.
        protocol: its fields, deviations from the published code included.
        distilled_with: the network that took part in the distillation, where that is known; the others are unseen.
        about: data, seeds, storage, versions, device, seconds.
    """

    rows: Sequence[Mapping[str, object]]
    protocol: Mapping[str, object]
    distilled_with: str | None
    about: Mapping[str, object]

    @property
    def unseen(self) -> dict[str, tuple[float, float]]:
        """For each set the mean over repeats, and its standard deviation, of the average over the unseen networks."""
        seen = base_name(self.distilled_with or "")
        scores: dict[str, list[Sequence[float]]] = {}
        for row in self.rows:
            if base_name(row["network"]) != seen:
                scores.setdefault(row["set"], []).append(row["accuracies"])
        return {name: mean_std([fmean(repeat) for repeat in zip(*rows, strict=True)]) for name, rows in scores.items()}

    def table(self) -> str:
        """Return the table as aligned text: a line for each set, a column for each network and one for the unseen."""
        repeats = len(self.rows[0]["accuracies"])
        cells = {(row["set"], row["network"]): (row["mean"], row["std"]) for row in self.rows}
        cells |= {(name, "unseen mean"): score for name, score in self.unseen.items()}
        columns = list(dict.fromkeys(network for _, network in cells))
        lines = [["", *columns]]
        for name in dict.fromkeys(row["set"] for row in self.rows):
            lines.append([name, *(_cell(cells.get((name, column)), repeats) for column in columns)])
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
        return note

    def to_json(self) -> str:
        """Return all of it as JSON."""
        content = {
            "rows": self.rows,
            "unseen": self.unseen,
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
        try:
            content = json.loads(text)
            content.pop("unseen")  # follows from the rows
            return cls(content.pop("rows"), content.pop("protocol"), content.pop("distilled_with"), content)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"this is not the JSON of an evaluation ({error!r}); evaluate again") from error


def save_report(report: Report, folder: str | Path) -> Path:
    """Write `evaluation.json` into a folder, whole or not at all; return its path."""
    path = Path(folder) / FILE
    write_text(path, report.to_json())
    return path


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; the latter is 0 for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _cell(score: tuple[float, float] | None, repeats: int) -> str:
    if score is None:
        return "–"
    mean, std = score
    return f"{mean:.1f} ± {std:.1f}" if repeats > 1 else f"{mean:.1f}"
