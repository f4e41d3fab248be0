"""Settings of a distillation, their checks, and how what is left open is filled."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from ld3m.config.checks import check_finite, check_fraction, check_positive, check_steps
from ld3m.config.fields import fits, unset
from ld3m.config.presets import PRESETS
from ld3m.config.run import Dtype, RunConfig
from ld3m.errors import ConfigError

LEARNABLE = ("latents", "conditioning")
INITS = ("real", "kmeans", "noise")  # of latents and pixels; every other word is the folder of a set

Preset = Literal["builtin", "paper", "released"]
Injection = Literal["x0", "mean", "none"]
Schedule = Literal["linear", "cosine", "quadratic", "exponential"]
Metric = Literal["layerwise-cosine", "mse", "cosine"]


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Settings of `ld3m.distill` and `ld3m distill`. None means: as the preset says."""

    preset: Preset | None = None
    """Defaults by name: "builtin" (small images, CPU; the default below 128 px), "paper" or "released"."""
    algorithm: str = "dc"
    """Matching: gradients "dc", features "dm", trajectories "mtt"."""
    space: str = "ld3m"
    """What is optimised: latents through the reverse chain "ld3m" or through the decoder "autoencoder"; features and
    codes of a StyleGAN-XL generator "glad", whose prior is "random:stylegan-32" or a .safetensors file; "pixel"s."""
    iterations: int | None = None
    """Optimiser steps."""
    steps: int | None = None
    """Steps T of the reverse chain, 1 to 1000."""
    guidance_scale: float = 3.0
    """Classifier-free guidance; 1 evaluates the denoiser once a step instead of twice."""
    injection: Injection = "x0"
    """Skip into every step: "x0" (released code), "mean" (eq. 6 of the paper), "none"."""
    schedule: Schedule = "linear"
    """Weight of the skip over the steps: linear, cosine, quadratic, exponential."""
    noise: Literal["fresh", "fixed"] = "fresh"
    """Noise of the chain's start: "fresh" every iteration, or "fixed"."""
    learn: tuple[str, ...] = LEARNABLE
    """What is optimised, of "latents" and "conditioning"; in glad, features and codes."""
    init: str = "real"
    """Start of the latents: "real" images encoded (in glad, without an encoder, features of a random code), "kmeans":
    those nearest to the k-means centres of each class, "noise", or the folder of a distilled set."""
    init_conditioning: Literal["class", "normal", "null"] = "class"
    """Start of the conditioning: "class" embedding, "normal" noise, "null" embedding."""
    latent_size: int | None = None
    """Side of the latents; decoded images are then resized to `resolution`."""
    layer: int | None = None
    """Layers of the generator before the features that are optimised (glad)."""
    network: str = "ConvNet"
    """Network whose gradients, features or trajectories are matched."""
    width: int | None = None
    """Its width, of ConvNet alone; the others scale by their name, such as AlexNet-w0.5."""
    metric: Metric = "layerwise-cosine"
    """Distance of gradients (dc): "layerwise-cosine", "mse", "cosine"."""
    lr: float | None = None
    """Learning rate of latents and conditioning, or of features (SGD, momentum 0.5)."""
    lr_codes: float | None = None
    """Learning rate of the codes (glad)."""
    real_batch: int | None = None
    """Real images per class and iteration; all of a class that has fewer."""
    augment: bool = True
    """Differentiable siamese augmentation (DSA)."""
    keep: float | None = None
    """Share of the real images of each class to distil from, those that a teacher has the lowest loss on; all when not
    given."""
    teacher: str | None = None
    """File of that teacher, from `ld3m teacher`; one is trained when not given (keep)."""
    experts: str | None = None
    """Folder of expert trajectories (mtt); trained as the preset says when not given."""
    num_experts: int | None = None
    """Experts to train (mtt)."""
    expert_training_epochs: int | None = None
    """Epochs of an expert (mtt)."""
    expert_epochs: int | None = None
    """Epochs between the student's start and its target (mtt)."""
    max_start_epoch: int | None = None
    """The start epoch is drawn below this one (mtt)."""
    student_steps: int | None = None
    """SGD steps of the student (mtt)."""
    student_lr: float = 0.01
    """First learning rate of the student, which is learnt as well (mtt)."""
    unroll: Literal["exact", "tesla"] = "exact"
    """Gradient through the student: "exact", or "tesla", which leaves out second-order terms (mtt)."""
    memory_budget: str | int | None = None
    """Memory for all that is on the device, in glad for the generator and its images alone, such as "8GB"; a share of
    the device's when not given."""
    retain: float | None = None
    """Fraction of the chain's evaluations whose activations are kept, 0 to 1; planned when not given."""
    classes_in_flight: int | None = None
    """Classes rendered and matched together (dc, dm), at most; planned when not given."""
    micro_batch: int | None = None
    """Images in the denoiser at once, at most; planned when not given."""
    decoder_batch: int | None = None
    """Images in the decoder at once, their activations recomputed; planned when not given."""
    real_chunk: int | None = None
    """Real images in the matched network at once; planned when not given."""
    compile: bool | None = None
    """torch.compile of the matching losses, which takes minutes the first time; on a GPU when not given."""
    attention: Literal["auto", "sdpa", "xformers", "bmm"] = "auto"
    """Attention of the prior: "auto" by device and shape, "sdpa", "xformers", "bmm"."""
    cuda_graphs: bool | None = None
    """Replay the denoiser as CUDA graphs (ld3m); on a GPU when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learn or not set(self.learn) <= set(LEARNABLE):
            raise ConfigError(f"learn names one or both of {', '.join(LEARNABLE)}; got {list(self.learn)}")
        self.check_counts(*_COUNTS)
        if self.steps is not None:
            check_steps(self.steps)
        for name in ("lr", "lr_codes", "student_lr"):
            if (value := getattr(self, name)) is not None:
                check_positive(value, name)
        check_finite(self.guidance_scale, "guidance_scale")
        if self.retain is not None:
            check_fraction(self.retain, "retain")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ConfigError(f"keep is a share of the images, above 0 and at most 1; got {self.keep}")
        if self.teacher is not None and self.keep is None:
            raise ConfigError("a teacher says which images to keep; give keep as well, or leave the teacher out")
        if self.experts is not None and self.algorithm != "mtt":
            raise ConfigError(f"experts are for algorithm mtt, and the algorithm is {self.algorithm!r}; leave them out")


@dataclass(frozen=True, kw_only=True)
class ResolvedDistillConfig(DistillConfig):
    """Settings of a distillation of which nothing is left open that every run needs; `resolve` makes them.

    Open stay what a space or a network has no use for (layer, lr_codes, latent_size, width), what the data say
    (class_ids, holdout, and which of them are used), and what is planned when they are known (retain to real_chunk).
    """

    resolution: int = field(default_factory=unset)
    dtype: Dtype = field(default_factory=unset)
    evaluate: str = field(default_factory=unset)
    preset: Preset = field(default_factory=unset)
    iterations: int = field(default_factory=unset)
    steps: int = field(default_factory=unset)
    lr: float = field(default_factory=unset)
    real_batch: int = field(default_factory=unset)
    num_experts: int = field(default_factory=unset)
    expert_training_epochs: int = field(default_factory=unset)
    expert_epochs: int = field(default_factory=unset)
    max_start_epoch: int = field(default_factory=unset)
    student_steps: int = field(default_factory=unset)
    compile: bool = field(default_factory=unset)
    cuda_graphs: bool = field(default_factory=unset)


_COUNTS = (
    "iterations", "steps", "latent_size", "width", "real_batch", "num_experts",
    "expert_training_epochs", "expert_epochs", "max_start_epoch", "student_steps",
    "classes_in_flight", "micro_batch", "decoder_batch", "real_chunk",
)  # fmt: skip


def resolve(config: DistillConfig, native_resolution: int, num_layers: int | None = None) -> ResolvedDistillConfig:
    """Fill what was left to the preset: every setting that decides the outcome is then a value.

    Args:
        native_resolution: of the prior.
        num_layers: of the generator (glad); a preset's layer leaves two of them to be run.

    Raises:
        ConfigError: the preset has no value of a setting for this algorithm or space, and none was given.
    """
    resolution = config.resolution or native_resolution
    name = config.preset or ("builtin" if resolution < 128 else "paper")
    given = vars(config)
    filled = _preset(config, name, resolution)
    if num_layers is not None and filled.get("layer") is not None:
        filled["layer"] = min(filled["layer"], num_layers - 2)
    if not config.network.startswith("ConvNet"):
        del filled["width"]
    filled |= {"preset": name, "resolution": resolution, "dtype": "float32", "compile": False, "cuda_graphs": False}
    values = given | {key: value for key, value in filled.items() if given[key] is None}
    for one in fields(ResolvedDistillConfig):
        if values[one.name] is None and not fits(None, one.type):
            raise ConfigError(
                f"preset {name!r} has no {one.name} for algorithm {config.algorithm!r} in space {config.space!r}; "
                f"give {one.name}"
            )
    return ResolvedDistillConfig(**values)


def _preset(config: DistillConfig, name: str, resolution: int) -> dict[str, Any]:
    """Return a preset's values for this space and algorithm."""
    preset: dict[str, Any] = dict(PRESETS[name])
    if name == "paper" and resolution >= 256:
        preset |= {"iterations": 10000, "steps": 20}
    preset |= preset.get(config.space, {})
    known = {one.name for one in fields(config)}  # not the names of spaces
    return {
        key: _of_algorithm(cast("Mapping[str, Any]", value), config) if isinstance(value, Mapping) else value
        for key, value in preset.items()
        if key in known
    }


def _of_algorithm(values: Mapping[str, Any], config: DistillConfig) -> Any:
    """Return the value of the algorithm; a loss that no preset knows has that of gradient matching."""
    return values[config.algorithm if config.algorithm in values else "dc"]
