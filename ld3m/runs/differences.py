"""Differences between sets, repeat by repeat: a repeat has the same weights and augmentation on every set.

What the draws of weights and augmentation do to both sets drops out, so that the standard error of the differences is
below what the standard deviations of the two rows say.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ld3m.networks import base_name

Row = Mapping[str, Any]
_REFERENCES = ("random", "kmeans")


def paired(rows: Sequence[Row], distilled_with: str | None) -> list[dict[str, Any]]:
    """Return, for every set and network, the mean difference to the reference set and its standard error.

    The reference is random real images, else the last set. Of "unseen mean", averages over the unseen networks are
    compared. A repeat that diverged on either set is left out; one repeat has no standard error.
    """
    sets = list(dict.fromkeys(row["set"] for row in rows))
    if len(sets) < 2:
        return []
    reference = next((name for name in _REFERENCES if name in sets), sets[-1])
    by_network: dict[str, dict[str, Sequence[float | None]]] = {}
    for row in rows:
        by_network.setdefault(row["network"], {})[row["set"]] = row["accuracies"]
    unseen = [name for name in by_network if base_name(name) != base_name(distilled_with or "")]
    if len(unseen) > 1:
        by_network["unseen mean"] = {name: _averaged([by_network[n].get(name, ()) for n in unseen]) for name in sets}
    found = []
    for network, accuracies in by_network.items():
        for name in sets:
            if name != reference and name in accuracies and reference in accuracies:
                about = {"set": name, "against": reference, "network": network}
                found.append(about | _difference(accuracies[name], accuracies[reference]))
    return found


def difference_lines(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the differences as lines of a table, one for each set."""
    lines: dict[str, list[str]] = {}
    for one in differences:
        if one["mean"] is not None:
            error = "" if one["standard_error"] is None else f" ± {one['standard_error']:.1f}"
            lines.setdefault(f"{one['set']} - {one['against']}", []).append(
                f"{one['network']} {one['mean']:+.1f}{error}"
            )
    head = "Paired differences in points, mean ± standard error:"
    return [head, *(f"  {name}: {', '.join(cells)}" for name, cells in lines.items())] if lines else []


def _difference(own: Sequence[float | None], other: Sequence[float | None]) -> dict[str, Any]:
    pairs = zip(own, other, strict=False)
    values = [one - two for one, two in pairs if one is not None and two is not None]
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": fmean(values) if values else None, "standard_error": error, "repeats": len(values)}


def _averaged(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Average each repeat over the networks; None where one of them diverged."""
    averages: list[float | None] = []
    for repeat in zip(*rows, strict=False):
        known = [value for value in repeat if value is not None]
        averages.append(fmean(known) if len(known) == len(repeat) else None)
    return averages
