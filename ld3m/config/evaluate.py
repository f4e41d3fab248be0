"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from ld3m.config.checks import check_count, check_epochs
from ld3m.config.fields import Settings
from ld3m.config.run import check_bit_range


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Settings of `ld3m.evaluate` and `ld3m evaluate`. None means: as the protocol says."""

    protocol: str = "glad-hard"
    """"glad-hard" (1,000 epochs), "quick", or "rded" (soft labels)."""
    networks: tuple[str, ...] | None = None
    """Networks to train; the protocol's when not given."""
    repeats: int = 5
    """Trainings of each network on each set."""
    epochs: int | None = None
    """Epochs, at least 2; the protocol's when not given."""
    baselines: tuple[str, ...] = ("random", "kmeans")
    """Sets of real images to compare with."""
    labels: Literal["hard", "soft"] | None = None
    """"hard", or "soft": the answers of a teacher; the protocol's when not given."""
    teacher: str | None = None
    """File of the teacher, from `ld3m teacher`."""
    scores: tuple[str, ...] = ()
    """"lrs", "ars": label- and augmentation-robust score, which cost extra trainings."""
    full_epochs: int = 20
    """Epochs on all real images, at least 2, for "lrs"."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """"float32", or "bfloat16" for layers in training, up to twice as fast; the protocol's when not given."""
    together: bool | None = None
    """Train the repeats of a network at once; on a GPU when not given."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    seed: int = 0
    """Everything random follows from it."""
    strict: bool = False
    """Refuse images that cannot be read instead of skipping them with a count."""
    bit_range: str | int | None = None
    """Bits in use of pictures of more than 8, as of `ld3m distill`; those of the distillation when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.repeats, "repeats")
        if self.epochs is not None:
            check_epochs(self.epochs, "epochs")
        check_epochs(self.full_epochs, "full_epochs")
        check_bit_range(self.bit_range)
