"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from ld3m.config.checks import check_count, check_epochs, check_finite, check_positive
from ld3m.config.fields import Settings
from ld3m.config.run import MOST_RESOLUTION, check_bit_range, check_subset
from ld3m.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Settings of `ld3m.evaluate` and `ld3m evaluate`. None means: as the protocol says."""

    protocol: str = "glad-hard"
    """As published: "glad-hard" (1,000 epochs), "minimax-hard", "dc", "dsa", "rded" and "d3hr" (soft labels); or
    "quick"."""
    networks: tuple[str, ...] | None = None
    """Networks to train, package.module:factory for your own, timm:NAME for one of timm; the protocol's when not
    given."""
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
    match: Literal["name", "order"] = "name"
    """Classes of set and data: by "name" or wnid; in "order" those that no name matches."""
    resolution: int | None = None
    """Image side in pixels, to which the largest centred square of other images is resampled; the set's when not
    given."""
    set_mean: tuple[float, ...] | None = None
    """Mean that the set's tensors were normalized by, one number or three."""
    set_std: tuple[float, ...] | None = None
    """Standard deviation that they were normalized by."""
    set_normalized: str | None = None
    """Both by name: cifar10, cifar100, svhn, mnist, fashion-mnist, tiny-imagenet, imagenet, half (for [-1, 1])."""
    classes: str | None = None
    """Classes of the data to use, in order: imagenette, imagewoof, ..., names or wnids with commas, or a file."""
    per_class: int | None = None
    """Training images of each class to use: the first, or drawn ones."""
    per_class_seed: int | None = None
    """Draw them by this seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.repeats, "repeats")
        if self.epochs is not None:
            check_epochs(self.epochs, "epochs")
        check_epochs(self.full_epochs, "full_epochs")
        check_bit_range(self.bit_range)
        check_subset(self.classes, self.per_class, self.per_class_seed)
        if self.resolution is not None:
            check_count(self.resolution, "resolution", most=MOST_RESOLUTION)
        self._check_normalization()

    def _check_normalization(self) -> None:
        pair = {"set_mean": self.set_mean, "set_std": self.set_std}
        if self.set_normalized is not None and any(value is not None for value in pair.values()):
            raise ConfigError("set_normalized names a mean and a standard deviation; leave out set_mean and set_std")
        if (self.set_mean is None) != (self.set_std is None):
            raise ConfigError("set_mean and set_std belong together; give both, or set_normalized")
        for name, value in pair.items():
            if value is not None and len(value) not in (1, 3):
                raise ConfigError(f"{name} is one number or three, got {len(value)}")
        for value in self.set_std or ():
            check_positive(value, "set_std")
        for value in self.set_mean or ():
            check_finite(value, "set_mean")
