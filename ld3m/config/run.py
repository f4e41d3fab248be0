"""Settings that every run has which makes a set of images."""

from dataclasses import dataclass
from typing import Literal

from ld3m.config.checks import check_count, one_of
from ld3m.config.fields import Settings
from ld3m.errors import ConfigError

MOST_RESOLUTION = 16_384
_MOST = {"resolution": MOST_RESOLUTION, "latent_size": 4_096, "width": 65_536}

Dtype = Literal["float32", "bfloat16", "float64"]
BIT_RANGES = ("auto", "8", "10", "12", "14", "16", "minmax")  # what `ld3m.data.load` maps deep pictures by


def check_bit_range(value: str | int | None) -> None:
    """Raise unless it is one of them, or left open."""
    if value is not None:
        one_of(str(value), "bit_range", BIT_RANGES)


def check_subset(classes: str | None, per_class: int | None, seed: int | None) -> None:
    """Raise unless the words that narrow the data down are possible ones; what they name, the data say."""
    if classes is not None and not classes.strip():
        raise ConfigError("classes names a published subset, classes with commas between, or a file; got nothing")
    if per_class is not None:
        check_count(per_class, "per_class")
    if seed is not None and (per_class is None or abs(seed) >= 2**63):
        raise ConfigError("per_class_seed is a whole number of at most 63 bits, and draws per_class images; give both")


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
    classes: str | None = None
    """Classes of the data to use, in order: imagenette, imagewoof, ..., names or wnids with commas, or a file."""
    per_class: int | None = None
    """Training images of each class to use: the first, or drawn ones."""
    per_class_seed: int | None = None
    """Draw them by this seed."""
    evaluate: str | None = None
    """Protocol run at the end: "quick" (the default below 128 px), "glad-hard" (from there on), or "none"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("ipc", "resolution")
        check_bit_range(self.bit_range)
        check_subset(self.classes, self.per_class, self.per_class_seed)
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
