"""The two halves of every space: the map from parameters to images, and how a distillation in it is set up."""

import contextlib
import copy
from collections.abc import Generator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ld3m.config import INITS, DistillConfig, ResolvedDistillConfig
from ld3m.data import Dataset
from ld3m.errors import ConfigError
from ld3m.memory.plan import Plan
from ld3m.priors import ExecutionConfig, Prior, StyleGAN, load_prior
from ld3m.priors.classes import match_classes

AnyPrior = TypeVar("AnyPrior", bound=Prior | StyleGAN)


class Space(Protocol):
    """A differentiable map from a few learnable tensors to images.

    `parameters` are leaves by name, one row an image; only those that require a gradient are optimised.
    """

    parameters: dict[str, Tensor]

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        """Render images (n, 3, H, W) in [0, 1] of the rows (n,) int64, on the CPU or the parameters' device.

        `noise_seed` names the draw of the noise.
        """
        ...

    def project(self) -> None:
        """Put the parameters back where they are allowed to be, after an optimiser step."""

    def apply_plan(self, plan: Plan) -> None:
        """Change what is kept from the forward pass and made at once; images and gradients stay, up to rounding."""


def keep_rows(space: Any, rows: Tensor) -> None:
    """Leave a space the parameters of these images (n,) alone, which are its rows from then on.

    `space.rows` says which of `space.num_rows` images they are, for noise that is drawn for all.
    """
    space.num_rows = len(next(iter(space.parameters.values())))
    space.parameters = {
        name: p.detach()[rows.to(p.device)].clone().requires_grad_(p.requires_grad)
        for name, p in space.parameters.items()
    }
    space.rows = rows


@contextlib.contextmanager
def only_rows(space: Any, rows: Tensor) -> Generator[Tensor]:
    """Show a space the parameters of these rows alone for the block, as leaves; their gradient goes to the space's own.

    Autograd would make the gradient of a few rows of a parameter as large as the parameter, once for each few.

    Yields:
        The rows as the space counts them in the block.
    """
    whole, names = space.parameters, getattr(space, "rows", None)
    index = rows.to(next(iter(whole.values())).device, non_blocking=True)
    space.parameters = {name: p.detach()[index].requires_grad_(p.requires_grad) for name, p in whole.items()}
    if names is not None:
        space.rows = names[rows]
    try:
        yield torch.arange(len(rows))
        few = space.parameters
    finally:
        space.parameters = whole
        if names is not None:
            space.rows = names
    for name, own in few.items():
        if own.grad is not None:
            p = whole[name]
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.index_add_(0, index, own.grad)


class SpaceSetup(Protocol[AnyPrior]):
    """The set-up of a distillation in a space, in the order of the methods.

    `settings` names the fields of the config that not every space takes and this one does; `has_chain` says whether the
    reverse chain is run, `gpu_dtype` what the prior's weights are on a GPU by default, `inits` what a start may be
    called beside the folder of a set.
    """

    settings: frozenset[str]
    has_chain: bool
    gpu_dtype: str
    inits: tuple[str, ...]

    def open_prior(self, config: DistillConfig, given: Prior | StyleGAN | None, device: torch.device) -> AnyPrior:
        """Open the prior that the settings name, or take the one that is given."""
        ...

    def check(self, config: ResolvedDistillConfig, prior: AnyPrior) -> None:
        """Refuse what can be refused before any data is read."""

    def plan(self, config: ResolvedDistillConfig, prior: AnyPrior, dataset: Dataset) -> Plan | None:
        """Plan the memory; None where there is nothing to plan."""

    def build(
        self, config: ResolvedDistillConfig, prior: AnyPrior, dataset: Dataset, plan: Plan | None, device: torch.device
    ) -> Space:
        """Build the space at its start."""
        ...


class DiffusionSetup:
    """The parts of a set-up that all spaces with a latent diffusion model share."""

    settings: frozenset[str] = frozenset()
    has_chain = False
    gpu_dtype = "bfloat16"
    inits: tuple[str, ...] = INITS

    def open_prior(self, config: DistillConfig, given: Prior | StyleGAN | None, device: torch.device) -> Prior:
        if isinstance(given, StyleGAN):
            raise ConfigError(
                f"space {config.space!r} takes a latent diffusion model as prior, got {given.name}; "
                "choose one that fits"
            )
        switches = given.frozen.execution if given else None  # those not named here stay as they are
        execution = replace(switches or ExecutionConfig(), attention=config.attention, cuda_graphs=config.cuda_graphs)
        options = {"config": config.prior_config} if config.prior_config else {}
        prior = load_prior(given or config.prior, device=device, dtype=config.dtype or "float32", **options)
        return copy.copy(prior).set_execution(execution)  # on the same weights: one that was given runs on as it did

    def check(self, config: ResolvedDistillConfig, prior: Prior) -> None:
        if "latents" not in config.learn and (not self.has_chain or prior.conditioning_shape is None):
            reason = f"{prior.name} is unconditional" if self.has_chain else f"space {config.space!r} has no chain"
            raise ConfigError(f"{reason}, so learn needs 'latents'; got {list(config.learn)}")
        if config.class_ids is not None:
            check_class_ids(prior, config.class_ids)


def check_class_ids(prior: Prior | StyleGAN, class_ids: tuple[int, ...]) -> None:
    """Raise unless the prior has these classes."""
    match_classes(prior, [str(k) for k in class_ids], [None] * len(class_ids), class_ids)
