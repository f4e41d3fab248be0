"""Settings that every run has which makes a set of images."""

from dataclasses import dataclass
from typing import Literal

from ld3m.config.checks import check_count, one_of
from ld3m.config.fields import Settings
from ld3m.errors import ConfigError

_MOST = {"resolution": 16_384, "latent_size": 4_096, "width": 65_536}

Dtype = Literal["float32", "bfloat16", "float64"]
BIT_RANGES = ("auto", "8", "10", "12", "14", "16", "minmax")  # what `ld3m.data.load` maps deep pictures by


def check_bit_range(value: str | int | None) -> None:
    """Raise unless it is one of them, or left open."""
    if value is not None:
        one_of(str(value), "bit_range", BIT_RANGES)


@dataclass(frozen=True)
class SetConfig(Settings):
    """Settings of every run that makes a set of images."""

    ipc: int = 1
    """Images per class to make."""
    resolution: int | None = None
    """Image side in pixels; the prior's own when not given."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    seed: int = 0
    """Everything random follows from it."""
    holdout: float | None = None
    """Share of each class kept for testing, where the data has no test split of its own (0.1)."""
    strict: bool = False
    """Refuse images that cannot be read instead of skipping them with a count."""
    bit_range: str | int | None = None
    """Bits in use of pictures of more than 8: "8", "10", "12", "14", "16", "minmax" for the set's own range; the fewest
    that hold them all when not given ("auto")."""
    evaluate: str | None = None
    """Protocol run at the end: "quick" (the default below 128 px), "glad-hard" (from there on), or "none"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("ipc", "resolution")
        check_bit_range(self.bit_range)
        if abs(self.seed) >= 2**63:
            raise ConfigError("seed is a whole number of at most 63 bits; choose a smaller one")

    def check_counts(self, *names: str) -> None:
        """Raise unless each of these settings is a whole number from 1 on, or left open."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                check_count(value, name, most=_MOST.get(name, 10**9))


@dataclass(frozen=True)
class RunConfig(SetConfig):
    """Settings of every run that makes a set of images with a prior."""

    prior: str = "builtin"
    """Frozen generator: "builtin", "random:NAME", a CompVis or DiT checkpoint, a diffusers folder or a hub id."""
    prior_config: str | None = None
    """YAML of a CompVis checkpoint, not needed for cin256-v2 and unconditional FFHQ; folder of a DiT's autoencoder."""
    class_ids: tuple[int, ...] | None = None
    """The prior's class for each class of the data, in label order; matched by name when not given."""
    dtype: Dtype | None = None
    """Precision of the prior's weights: "float32", "bfloat16", "float64"; bfloat16 on a GPU when not given."""
