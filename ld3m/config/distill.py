"""Settings of a distillation: what a user may say, named presets for the rest, and checks of both."""

import contextlib
import dataclasses
import difflib
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType

import yaml

from ld3m.errors import ConfigError

ALGORITHMS = ("dc", "dm", "mtt")
SPACES = ("ld3m", "autoencoder", "glad", "pixel")
METRICS = ("layerwise-cosine", "mse", "cosine")
LEARNABLE = ("latents", "conditioning")
INITS = ("real", "kmeans", "noise")  # of latents and pixels; every other word is the folder of a set
DTYPES = ("float32", "bfloat16", "float64")

Config = typing.TypeVar("Config")  # a frozen dataclass of settings


@dataclass(frozen=True)
class RunConfig:
    """Settings of every run that makes a set of images."""

    prior: str = "builtin"
    """Frozen generator: "builtin", "random:NAME", a CompVis or DiT checkpoint, a diffusers folder or a hub id."""
    prior_config: str | None = None
    """YAML of a CompVis checkpoint, not needed for cin256-v2 and unconditional FFHQ; folder of a DiT's autoencoder."""
    ipc: int = 1
    """Images per class to make."""
    resolution: int | None = None
    """Image side in pixels; the prior's own when not given."""
    class_ids: tuple[int, ...] | None = None
    """The prior's class for each class of the data, in label order; matched by name when not given."""
    device: str | None = None
    """torch device; "cuda" where there is one when not given."""
    dtype: str | None = None
    """Precision of the prior's weights: "float32", "bfloat16", "float64"; bfloat16 on a GPU when not given."""
    seed: int = 0
    """Everything random follows from it."""
    holdout: float | None = None
    """Share of each class kept for testing, where the data has no test split of its own (0.1)."""
    strict: bool = False
    """Refuse images that cannot be read instead of skipping them with a count."""
    evaluate: str | None = None
    """Protocol run at the end: "quick" (the default below 128 px), "glad-hard" (from there on), or "none"."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):  # as a file has it
                object.__setattr__(self, field.name, tuple(value))
        if self.dtype is not None:
            one_of(self.dtype, "dtype", DTYPES)
        self.require_counts("ipc", "resolution")

    def require_counts(self, *names: str) -> None:
        """Raise unless each of these settings is a whole number from 1 on, or left open."""
        for name in names:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is a whole number, at least 1; got {value!r}")


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Settings of `ld3m.distill` and `ld3m distill`. None means: as the preset says."""

    preset: str | None = None
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
    injection: str = "x0"
    """Skip into every step: "x0" (released code), "mean" (eq. 6 of the paper), "none"."""
    schedule: str = "linear"
    """Weight of the skip over the steps: linear, cosine, quadratic, exponential."""
    noise: str = "fresh"
    """Noise of the chain's start: "fresh" every iteration, or "fixed"."""
    learn: tuple[str, ...] = LEARNABLE
    """What is optimised, of "latents" and "conditioning"; in glad, features and codes."""
    init: str = "real"
    """Start of the latents: "real" images encoded (in glad, without an encoder, features of a random code), "kmeans":
    those nearest to the k-means centres of each class, "noise", or the folder of a distilled set."""
    init_conditioning: str = "class"
    """Start of the conditioning: "class" embedding, "normal" noise, "null" embedding."""
    latent_size: int | None = None
    """Side of the latents; decoded images are then resized to `resolution`."""
    layer: int | None = None
    """Layers of the generator before the features that are optimised (glad)."""
    network: str = "ConvNet"
    """Network whose gradients, features or trajectories are matched."""
    width: int | None = None
    """Its width, of ConvNet alone; the others scale by their name, such as AlexNet-w0.5."""
    metric: str = "layerwise-cosine"
    """Distance of gradients (dc): "layerwise-cosine", "mse", "cosine"."""
    lr: float | None = None
    """Learning rate of latents and conditioning, or of features (SGD, momentum 0.5)."""
    lr_codes: float | None = None
    """Learning rate of the codes (glad)."""
    real_batch: int | None = None
    """Real images a class and iteration; all of a class that has fewer."""
    augment: bool = True
    """Differentiable siamese augmentation (DSA)."""
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
    unroll: str = "exact"
    """Gradient through the student: "exact", or "tesla", which leaves out second-order terms (mtt)."""
    memory_budget: str | int | None = None
    """Memory for all that is on the device, in glad for the generator and its images alone, such as "8GB"; a share of
    the device's when not given."""
    retain: float | None = None
    """Fraction of the chain's evaluations whose activations are kept, 0 to 1; planned when not given."""
    compile: bool | None = None
    """torch.compile of the matching losses, which takes minutes the first time; on a GPU when not given."""
    attention: str = "auto"
    """Attention of the prior: "auto" by device and shape, "sdpa", "xformers", "bmm"."""
    cuda_graphs: bool | None = None
    """Replay the denoiser as CUDA graphs (ld3m); on a GPU when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.metric, "metric", METRICS)
        one_of(self.noise, "noise", ("fresh", "fixed"))
        one_of(self.unroll, "unroll", ("exact", "tesla"))
        one_of(self.init_conditioning, "init_conditioning", ("class", "normal", "null"))
        if self.init == "kmeans" and self.space == "glad":
            raise ConfigError("init 'kmeans' needs an encoder, which space 'glad' has not; take 'real' or 'noise'")
        if not self.learn or not set(self.learn) <= set(LEARNABLE):
            raise ConfigError(f"learn names one or both of {', '.join(LEARNABLE)}; got {list(self.learn)}")
        if self.preset is not None:
            one_of(self.preset, "preset", tuple(PRESETS))
        self.require_counts(*_COUNTS)
        if self.steps is not None and self.steps > 1000:
            raise ConfigError(f"steps is a whole number from 1 to 1000, got {self.steps}")
        for name in ("lr", "lr_codes", "student_lr"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is a number above 0, got {value!r}")
        if not math.isfinite(self.guidance_scale):
            raise ConfigError(f"guidance_scale is a finite number, got {self.guidance_scale!r}")
        if self.retain is not None and not 0 <= self.retain <= 1:
            raise ConfigError(f"retain is a fraction from 0 to 1, got {self.retain!r}")
        if self.experts is not None and self.algorithm != "mtt":
            raise ConfigError(f"experts are for algorithm mtt, and the algorithm is {self.algorithm!r}; leave them out")
        for name, spaces in _SPACES_OF.items():
            value = getattr(self, name)
            if not (value is None or value is False or value == "auto" or self.space in spaces):
                raise ConfigError(
                    f"{name} is for space {' or '.join(spaces)}, and the space is {self.space!r}; leave {name} out"
                )


_COUNTS = (
    "iterations", "steps", "latent_size", "width", "real_batch", "num_experts",
    "expert_training_epochs", "expert_epochs", "max_start_epoch", "student_steps",
)  # fmt: skip

# What is refused in other spaces rather than passed over.
_SPACES_OF = {
    "memory_budget": ("ld3m", "autoencoder", "glad"),
    "retain": ("ld3m", "autoencoder", "glad"),
    "layer": ("glad",),
    "lr_codes": ("glad",),
    "latent_size": ("ld3m", "autoencoder"),
    "attention": ("ld3m", "autoencoder"),
    "cuda_graphs": ("ld3m",),
}

# Learning rates by algorithm. What stands under a space's name holds in that space, where scales are others.
PRESETS: dict[str, dict[str, object]] = {
    # Sized for five minutes, evaluation included, on two CPU cores; found in benchmarks/NOTES.md.
    "builtin": {
        "lr": {"dc": 0.3, "dm": 0.3, "mtt": 100.0},
        "pixel": {"lr": {"dc": 1.0, "dm": 1.0, "mtt": 100.0}},
        "glad": {
            "lr": {"dc": 3.0, "dm": 3.0, "mtt": 3000.0}, "lr_codes": {"dc": 0.1, "dm": 0.1, "mtt": 100.0}, "layer": 4,
        },
        "iterations": 50,
        "steps": 10, "width": 64, "real_batch": 32, "num_experts": 4, "expert_training_epochs": 6,
        "expert_epochs": 2, "max_start_epoch": 4, "student_steps": 10, "evaluate": "quick",
    },
    # arXiv 2403.03881, supplement.
    "paper": {
        "lr": {"dc": 1e-3, "dm": 1e-2, "mtt": 10.0},
        # The commands of GLaD (arXiv 2305.01649).
        "glad": {
            "lr": {"dc": 1.0, "dm": 10.0, "mtt": 1e4}, "lr_codes": {"dc": 1e-3, "dm": 1e-2, "mtt": 10.0},
            "layer": {"dc": 16, "dm": 20, "mtt": 12}, "iterations": 1000,
        },
        "iterations": 5000, "steps": 10, "width": 128, "real_batch": 256, "num_experts": 5000,
        "expert_training_epochs": 15, "expert_epochs": 3, "max_start_epoch": 5, "student_steps": 20,
        "evaluate": "glad-hard",
    },
    # Defaults of the released code's command line.
    "released": {
        "lr": {"dc": 0.1, "dm": 1.0, "mtt": 1000.0},
        "glad": {
            "lr": {"dc": 1.0, "dm": 10.0, "mtt": 1e4}, "lr_codes": {"dc": 1e-3, "dm": 1e-2, "mtt": 10.0},
            "layer": {"dc": 16, "dm": 20, "mtt": 5},
        },
        "iterations": 10000, "steps": 10, "width": 128, "real_batch": 256, "num_experts": 5000,
        "expert_training_epochs": 15, "expert_epochs": 2, "max_start_epoch": 2, "student_steps": 10,
        "evaluate": "glad-hard",
    },
}  # fmt: skip


def resolve(config: DistillConfig, native_resolution: int, num_layers: int | None = None) -> DistillConfig:
    """Fill what was left to the preset: every setting that decides the outcome is then a value.

    Args:
        native_resolution: of the prior.
        num_layers: of the generator (glad); a preset's layer leaves two of them to be run.
    """
    resolution = config.resolution or native_resolution
    name = config.preset or ("builtin" if resolution < 128 else "paper")
    preset = dict(PRESETS[name])
    by_space = {space: preset.pop(space, {}) for space in SPACES}
    if name == "paper" and resolution >= 256:
        preset |= {"iterations": 10000, "steps": 20}
    preset |= by_space.get(config.space, {})
    algorithm = config.algorithm if config.algorithm in ALGORITHMS else "dc"  # of a loss that no preset knows
    filled = {key: value[algorithm] if isinstance(value, Mapping) else value for key, value in preset.items()}
    if num_layers is not None:
        filled["layer"] = min(filled["layer"], num_layers - 2)
    if not config.network.startswith("ConvNet"):
        del filled["width"]
    filled |= {"preset": name, "resolution": resolution, "dtype": "float32"}
    return replace(config, **{key: value for key, value in filled.items() if getattr(config, key) is None})


def one_of(value: str, argument: str, valid: tuple[str, ...]) -> None:
    """Raise unless `value` is one of the valid names; the nearest one is suggested."""
    if value not in valid:
        near = difflib.get_close_matches(str(value), valid, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{argument} is one of {', '.join(valid)}; got {value!r}{hint}")


def build(settings: Mapping[str, object], base: Config | None = None) -> Config:
    """Make a config from named settings on top of `base`; unknown names and wrong types are refused."""
    base = base or DistillConfig()
    known = {field.name: field for field in fields(base)}
    settings = {name: _plain(value) for name, value in settings.items()}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            kind = type(base).__name__.removesuffix("Config").lower()
            raise ConfigError(f"{name!r} is not a setting of {kind}{hint}")
        value = settings[name] = _number(value, known[name].type)
        if not _fits(value, known[name].type):
            expected = known[name].type
            raise ConfigError(f"{name} is {expected.__name__ if type(expected) is type else expected}, got {value!r}")
    return replace(base, **settings)


def _plain(value: object) -> object:
    """Spell a path, a torch device or dtype, or a NumPy number as a file of settings does."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, Path) or type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 1):
        return value.item()
    return value


def _number(value: object, annotation: type | UnionType) -> object:
    """Read a text such as 1e-3, which YAML takes for a word, where a number and no text is asked for."""
    if isinstance(value, str) and _fits(0.5, annotation) and not _fits("", annotation):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _fits(value: object, annotation: type | UnionType) -> bool:
    """Whether a value has the type of a field; a YAML file has lists for tuples, and writes 3.0 as 3."""
    if isinstance(annotation, UnionType):
        return any(_fits(value, kind) for kind in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        (kind, _) = typing.get_args(annotation)
        return isinstance(value, tuple | list) and all(_fits(item, kind) for item in value)
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)


def read_yaml(path: Path) -> dict[str, object]:
    """Read settings from a YAML file of plain values; nothing in it is executed."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read ({error}); check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not plain YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config {path} holds names and values (name: value), got {type(content).__name__}")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def to_yaml(config: Config, **more: object) -> str:
    """Write a config, and what else belongs beside it, as YAML."""
    return yaml.safe_dump({**more, **to_plain(config)}, sort_keys=False)


def to_plain(config: Config) -> dict[str, object]:
    """Return a config's settings by name, as a file of settings has them: lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def takes(kind: type[Config]) -> Callable[[Callable], Callable]:
    """Spell the fields of a config out in the signature of a function that takes them as `**settings`."""

    def spell_out(function: Callable) -> Callable:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        settings = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields(kind)
        ]
        function.__signature__ = signature.replace(parameters=own + settings)
        return function

    return spell_out


def differences(stored: Config, given: Config) -> list[str]:
    """List "name stored → given" for every setting in which two configs differ."""
    pairs = [(field.name, getattr(stored, field.name), getattr(given, field.name)) for field in fields(stored)]
    return [f"{name} {old!r} → {new!r}" for name, old, new in pairs if old != new]
