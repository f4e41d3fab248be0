"""The keywords of `distill`, `sample_dataset` and `evaluate` for type checkers: the fields of their configs.

A function may be given more than a file of settings holds, such as a loaded prior or a torch device.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar

from ld3m.config.distill import Injection, Metric, Preset, Schedule
from ld3m.config.fields import Settings
from ld3m.config.run import Dtype

if TYPE_CHECKING:
    import torch

_Function = TypeVar("_Function", bound=Callable[..., object])


class LoadedPrior(Protocol):
    """A prior that is in memory."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> "torch.dtype": ...


AnyPath = str | os.PathLike[str]


class SetKeywords(TypedDict, total=False):
    """Fields of `SetConfig`."""

    ipc: int
    resolution: int | None
    device: "str | torch.device | None"
    seed: int
    holdout: float | None
    strict: bool
    bit_range: str | int | None
    classes: str | None
    per_class: int | None
    per_class_seed: int | None
    evaluate: str | None


class RunKeywords(SetKeywords, total=False):
    """Fields of `RunConfig`."""

    prior: AnyPath | LoadedPrior
    prior_config: AnyPath | None
    class_ids: Sequence[int] | None
    dtype: "Dtype | torch.dtype | None"


class DistillKeywords(RunKeywords, total=False):
    """Fields of `DistillConfig`."""

    preset: Preset | None
    algorithm: str
    space: str
    iterations: int | None
    steps: int | None
    guidance_scale: float
    injection: Injection
    schedule: Schedule
    noise: Literal["fresh", "fixed"]
    learn: Sequence[Literal["latents", "conditioning"]]
    init: AnyPath
    init_conditioning: Literal["class", "normal", "null"]
    latent_size: int | None
    layer: int | None
    network: str
    width: int | None
    metric: Metric
    lr: float | None
    lr_codes: float | None
    real_batch: int | None
    augment: bool
    keep: float | None
    teacher: AnyPath | None
    experts: AnyPath | None
    num_experts: int | None
    expert_training_epochs: int | None
    expert_epochs: int | None
    max_start_epoch: int | None
    student_steps: int | None
    student_lr: float
    unroll: Literal["exact", "tesla"]
    memory_budget: str | int | None
    retain: float | None
    classes_in_flight: int | None
    micro_batch: int | None
    decoder_batch: int | None
    real_chunk: int | None
    compile: bool | None
    attention: Literal["auto", "sdpa", "xformers", "bmm"]
    cuda_graphs: bool | None


class SampleKeywords(RunKeywords, total=False):
    """Fields of `SampleConfig`."""

    selector: str
    steps: int
    stop: int
    inversion_guidance: float
    guidance_scale: float
    groups: int
    weights: Sequence[float]
    compat: Literal["d3hr"] | None
    real_images: int | None
    statistics: AnyPath | None
    sampler: Literal["ddim", "ddpm"]
    variance: Literal["fixed-small", "fixed-large", "learned"] | None
    spacing: Literal["leading", "linspace", "trailing"]
    guided_channels: int | None
    modes: Literal["kmeans", "gmm", "nearest"]
    pull: float | None
    pull_steps: tuple[int, int] | None
    micro_batch: int


class RefineKeywords(SampleKeywords, total=False):
    """Fields of `RefineConfig`."""


class SelectKeywords(SetKeywords, total=False):
    """Fields of `SelectConfig`."""

    by: str
    teacher: AnyPath | None
    scores_from: AnyPath | None
    tiles: int | None
    candidates: int
    crops: int
    early_networks: int
    early_epochs: int


class EvaluateKeywords(TypedDict, total=False):
    """Fields of `EvaluateConfig`, but protocol, networks and teacher, which may be objects."""

    repeats: int
    epochs: int | None
    baselines: Sequence[str]
    labels: Literal["hard", "soft"] | None
    scores: Sequence[str]
    full_epochs: int
    dtype: 'Literal["float32", "bfloat16"] | torch.dtype | None'
    together: bool | None
    device: "str | torch.device | None"
    seed: int
    strict: bool
    bit_range: str | int | None
    match: Literal["name", "order"]
    resolution: int | None
    set_mean: Sequence[float] | None
    set_std: Sequence[float] | None
    set_normalized: str | None
    classes: str | None
    per_class: int | None
    per_class_seed: int | None


def keywords_of(kind: type[Settings], *, but: Sequence[str] = ()) -> Callable[[_Function], _Function]:
    """Show the fields of a config in `inspect.signature` of a function that takes them as `**settings`."""

    def spell_out(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        settings = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields(kind)
            if f.name not in but
        ]
        shown: Any = function
        shown.__signature__ = signature.replace(parameters=own + settings)
        return function

    return spell_out
