"""Settings of a set of real images that are chosen."""

from dataclasses import dataclass, field
from typing import Any

from ld3m.config.checks import check_epochs
from ld3m.config.fields import unset
from ld3m.config.run import SetConfig

_RESOLUTION = 32


@dataclass(frozen=True)
class SelectConfig(SetConfig):
    """Settings of `ld3m.select` and `ld3m select`. None means: as said."""

    resolution: int | None = None
    """Image side in pixels; that of the teacher, else 32, when not given."""
    by: str = "easy"
    """How images are chosen: "random", "kmeans", "herding", lowest loss of a teacher "easy", lowest error early in
    training "el2n", best crops "rded", four whole images in one "combine"."""
    teacher: str | None = None
    """File of the teacher, from `ld3m teacher` (herding, easy, rded); one is trained when not given."""
    scores_from: str | None = None
    """Folder of scores of another run, of the same data, to be used again."""
    tiles: int | None = None
    """Tiles per side of an image (rded, combine); 2, but 1 for rded below 64 px, when not given."""
    candidates: int = 300
    """Images of a class of which crops are looked at (rded)."""
    crops: int = 5
    """Random crops of each of them (rded)."""
    early_networks: int = 3
    """Networks early in training (el2n, combine)."""
    early_epochs: int = 2
    """Epochs that they are trained for, at least 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("tiles", "candidates", "crops", "early_networks")
        check_epochs(self.early_epochs, "early_epochs")


@dataclass(frozen=True, kw_only=True)
class ResolvedSelectConfig(SelectConfig):
    """Settings of a chosen set of which nothing is left open that every run needs; `resolve` makes them."""

    resolution: int = field(default_factory=unset)
    evaluate: str = field(default_factory=unset)
    tiles: int = field(default_factory=unset)


def resolve(config: SelectConfig, native_resolution: int | None, tiles: int) -> ResolvedSelectConfig:
    """Fill what is left open.

    Args:
        native_resolution: of the teacher that is given, if any.
        tiles: per side of an image where the settings do not say.
    """
    resolution = config.resolution or native_resolution or _RESOLUTION
    evaluate = "quick" if resolution < 128 else "glad-hard"
    filled: dict[str, Any] = {"resolution": resolution, "evaluate": evaluate, "tiles": tiles}
    given: dict[str, Any] = vars(config)
    return ResolvedSelectConfig(**given | {key: value for key, value in filled.items() if given[key] is None})
