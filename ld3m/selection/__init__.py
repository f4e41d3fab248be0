"""Real images chosen as a small training set, a selector a file: the sets that a distilled one has to beat.

A selector is two functions:

    measure(networks, candidates, settings, generator) -> {name: a row for each candidate}
    choose(candidates, measured, count, settings, generator) -> Choice of one class

What is measured is stored with a run and can be used again. `judge` says which networks measure: the "teacher", or
networks "early" in training; a selector without judge measures nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ld3m.selection import combine, easy, el2n, herding, kmeans, random, rded
from ld3m.selection.base import Candidates, Choice, Measured, lowest, render, tile_edges

__all__ = ["SELECTIONS", "Candidates", "Choice", "Measured", "Selection", "render", "shown_tiles", "tile_edges"]


@dataclass(frozen=True)
class Selection:
    """A way to choose real images of a class.

    Args:
        measured: name of what is measured: selectors of the same name share it.
        is_weighted: the images have weights.
        shows_tiles: a training sees one tile of an image at a time, enlarged, and not the whole of it.
        tiles: per side of an image, by the resolution.
    """

    choose: Callable[..., Choice]
    measure: Callable[..., Measured] | None = None
    measured: str = ""
    judge: Literal["", "teacher", "early"] = ""
    is_weighted: bool = False
    shows_tiles: bool = False
    tiles: Callable[[int], int] = lambda resolution: 1


SELECTIONS = {
    "random": Selection(random.choose),
    "kmeans": Selection(kmeans.choose, is_weighted=True),
    "herding": Selection(lowest, herding.measure, "herding", "teacher"),
    "easy": Selection(lowest, easy.measure, "loss", "teacher"),
    "el2n": Selection(lowest, el2n.measure, "el2n", "early"),
    "rded": Selection(rded.choose, rded.measure, "crops", "teacher", tiles=rded.tiles),
    "combine": Selection(combine.choose, el2n.measure, "el2n", "early", shows_tiles=True, tiles=lambda resolution: 2),
}


def shown_tiles(config: Mapping[str, Any]) -> int:
    """Return the tiles per side of a set's images of which a training sees one at a time; 1 where it sees all."""
    selection = SELECTIONS.get(config.get("by", ""))
    return int(config.get("tiles", 1)) if selection is not None and selection.shows_tiles else 1
