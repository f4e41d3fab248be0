"""Settings of a data set that is sampled from a prior instead of optimised."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ld3m.config.checks import check_finite, check_steps
from ld3m.config.fields import unset
from ld3m.config.run import Dtype, RunConfig
from ld3m.errors import ConfigError

_REAL_IMAGES = 100  # of a class of small images, so that two CPU cores invert the embedded set within minutes


@dataclass(frozen=True)
class SampleConfig(RunConfig):
    """Settings of `ld3m.sample_dataset` and `ld3m sample`. None means: by the resolution, as said."""

    selector: str = "group"
    """How latents are chosen. By inverted real images (D3HR): best "group" of many, one of exact "moments", a "random"
    one. By encoded ones: noised "kmeans" prototypes (D4M). From noise: "plain" (the class alone; no image is read),
    "modes" (each pulled to a mode of the class, MGD3), "transport" (each to where the class lacks mass, DMGD; one by
    one)."""
    steps: int = 50
    """Points of the grid, 2 to 1000."""
    stop: int = 30
    """Point of the grid up to which real images are inverted (or prototypes noised), and from which is sampled."""
    inversion_guidance: float = 4.0
    """Classifier-free guidance of the inversion; 1 evaluates the denoiser once a step instead of twice."""
    guidance_scale: float = 4.0
    """Classifier-free guidance of the sampling."""
    groups: int = 100_000
    """Candidate groups of a class (group)."""
    weights: tuple[float, ...] = (1.0, 1.0, 0.1)
    """Of a group's deviation in mean, in standard deviation, and of its skewness (group)."""
    compat: Literal["d3hr"] | None = None
    """"d3hr" draws and pairs noise levels as the published code does."""
    real_images: int | None = None
    """Real images of a class that are used at most; 100 below 128 px when not given, all from there on."""
    statistics: str | None = None
    """Folder of class statistics of another run, with the same data, prior and inversion, to be used again."""
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """"ddim" steps without noise, "ddpm" with it (ancestral)."""
    variance: Literal["fixed-small", "fixed-large", "learned"] | None = None
    """Variances of ancestral steps; learned when not given where the prior has learned them, else fixed-small."""
    spacing: Literal["leading", "linspace", "trailing"] = "leading"
    """How the points of the grid are spaced; DiT's own sampler has "linspace"."""
    guided_channels: int | None = None
    """Channels of the latents that are guided, from the first on; all when not given (DiT's own sampler guides 3)."""
    modes: Literal["kmeans", "gmm", "nearest"] = "kmeans"
    """What images are pulled to: k-means centres, means of a Gaussian mixture, real images nearest to the centres
    (modes)."""
    pull: float | None = None
    """Strength of the pull towards modes (0.1) or clusters (transport, 0.5); 0 is plain sampling."""
    pull_steps: tuple[int, int] | None = None
    """Points of the grid between which is pulled, the noisier one first; the noisier half, and for transport from 0.9
    to 0.6 of the grid, when not given."""
    micro_batch: int = 64
    """Images the prior sees at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("groups", "real_images", "micro_batch", "guided_channels")
        for name in ("inversion_guidance", "guidance_scale"):
            check_finite(getattr(self, name), name)
        if len(self.weights) != 3 or any(not (math.isfinite(weight) and weight >= 0) for weight in self.weights):
            raise ConfigError(
                f"weights are three numbers, 0 or more, for mean, standard deviation and skewness; got {self.weights}"
            )
        self._check_grid()
        self._check_pull()
        if self.compat == "d3hr" and self.selector == "group" and self.ipc == 1:
            raise ConfigError(
                "the published score of a single image is not a number; choose ipc 2 or more, or leave compat out"
            )

    def _check_pull(self) -> None:
        if self.pull is not None and not (math.isfinite(self.pull) and self.pull >= 0):
            raise ConfigError(f"pull is a strength, 0 or more; got {self.pull!r}")
        if self.pull_steps is None:
            return
        if len(self.pull_steps) != 2 or not 0 <= self.pull_steps[1] <= self.pull_steps[0] < self.steps:
            raise ConfigError(
                f"pull_steps are two points of the grid of {self.steps} steps, from {self.steps - 1} down to 0, the "
                f"noisier one first; got {self.pull_steps}"
            )

    def _check_grid(self) -> None:
        check_steps(self.steps, 2)
        highest = self.steps - (2 if self.compat == "d3hr" else 1)  # published sampling starts one point higher
        if not 1 <= self.stop <= highest:
            raise ConfigError(
                f"stop is a point of the grid of {self.steps} steps, from 1 to {highest}; got {self.stop!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ResolvedSampleConfig(SampleConfig):
    """Settings of a sampled data set of which nothing is left open that every run needs; `resolve` makes them.

    Open stay real_images and guided_channels, None where all are used.
    """

    resolution: int = field(default_factory=unset)
    dtype: Dtype = field(default_factory=unset)
    evaluate: str = field(default_factory=unset)
    variance: Literal["fixed-small", "fixed-large", "learned"] = field(default_factory=unset)
    pull: float = field(default_factory=unset)
    pull_steps: tuple[int, int] = field(default_factory=unset)


@dataclass(frozen=True)
class RefineConfig(SampleConfig):
    """Settings of `ld3m.refine` and `ld3m refine`, by which a set takes the place of the data."""

    selector: str = "itself"
    stop: int = 25
    """Point of the grid up to which the images are noised, and from which is sampled back."""
    pull: float | None = None
    """Strength of the pull of each image to what it was (0.1); 0 for none."""
    pull_steps: tuple[int, int] | None = None
    """Points of the grid between which is pulled, the noisier one first; half to a quarter of it when not given."""


def resolve(
    config: SampleConfig, native_resolution: int, of_method: Mapping[str, object] = MappingProxyType({})
) -> ResolvedSampleConfig:
    """Fill what is left open, by the resolution where nothing else says it.

    Args:
        of_method: what selector and prior say of variance, pull and pull_steps.
    """
    resolution = config.resolution or native_resolution
    given: dict[str, Any] = vars(config)
    is_small = resolution < 128
    filled: dict[str, Any] = {
        "variance": "fixed-small",
        "pull": 0.0,
        "pull_steps": (config.steps - 1, min(config.steps // 2 + 1, config.steps - 1)),  # MGD3: of 50, while i > 25
        **of_method,
        "resolution": resolution,
        "dtype": "float32",
        "evaluate": "quick" if is_small else "glad-hard",
    }
    if is_small:
        filled["real_images"] = max(_REAL_IMAGES, config.ipc)
    return ResolvedSampleConfig(**given | {key: value for key, value in filled.items() if given[key] is None})
