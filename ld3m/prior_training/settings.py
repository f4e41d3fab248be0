"""Settings of the prior trainer."""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from ld3m.errors import ConfigError

if TYPE_CHECKING:
    from ld3m.priors.architecture import LdmShape


@dataclass(frozen=True)
class PriorTraining:
    """Settings of `ld3m prior train`. The defaults are those of the embedded prior."""

    resolution: int = 32
    """Images in pixels, divisible by the first stage's factor."""
    first_stage_steps: int = 1500
    """Optimiser steps of the first stage."""
    first_stage_batch: int = 64
    """Images a step of the first stage."""
    first_stage_lr: float = 1e-3
    """Peak learning rate of the first stage (AdamW)."""
    kl_weight: float = 1e-4
    """Weight of the KL term against the mean absolute plus squared error of a pixel."""
    steps: int = 2000
    """Optimiser steps of the denoiser."""
    batch: int = 128
    """Latents a step of the denoiser."""
    lr: float = 1e-3
    """Peak learning rate of the denoiser (AdamW)."""
    label_dropout: float = 0.1
    """Fraction of labels replaced by the null class, for guidance."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones that are saved."""
    ch: int = 32
    """Base width of the first stage."""
    ch_mult: tuple[int, ...] = (1, 2, 2)
    """Widths of the first stage by level; each level after the first halves the size."""
    latent_channels: int = 3
    """Channels of the latents."""
    model_channels: int = 64
    """Base width of the denoiser, a multiple of 32."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Widths of the denoiser by level."""
    num_res_blocks: int = 1
    """Residual blocks a level of the denoiser."""
    attention_levels: tuple[int, ...] = (0, 1)
    """Levels of the denoiser with attention; 0 is the finest."""
    num_heads: int = 4
    """Attention heads."""
    context_dim: int = 64
    """Width of the class embedding."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != "seed" and value < 1:
                raise ConfigError(f"{field.name} is a whole number, at least 1; got {value!r}")
        for name in ("first_stage_lr", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} is a learning rate above 0, got {getattr(self, name)!r}; the default is 1e-3"
                )
        if not 0 <= self.kl_weight < math.inf:
            raise ConfigError(f"kl_weight is a weight, 0 or above, got {self.kl_weight!r}; the default is 1e-4")
        for name in ("ch_mult", "channel_mult"):
            if not getattr(self, name) or not all(1 <= factor <= 64 for factor in getattr(self, name)):
                raise ConfigError(
                    f"{name} is one factor from 1 to 64 for each level, got {list(getattr(self, name))}; the default "
                    f"is {PriorTraining.__dataclass_fields__[name].default}"
                )
        factor = 2 ** (len(self.ch_mult) - 1)
        if self.resolution % factor:
            raise ConfigError(
                f"resolution must be divisible by {factor}, the first stage's factor with ch_mult {self.ch_mult}; got "
                f"{self.resolution}"
            )
        for name in ("ch", "model_channels"):
            if getattr(self, name) % 32:
                raise ConfigError(f"{name} is a multiple of 32, the groups of the norms; got {getattr(self, name)}")
        if not 0 <= self.label_dropout <= 1 or not 0 <= self.ema < 1:
            raise ConfigError(
                f"label_dropout is in [0, 1] and ema in [0, 1), got {self.label_dropout!r} and {self.ema!r}"
            )
        if not set(self.attention_levels) <= set(range(len(self.channel_mult))):
            raise ConfigError(
                f"attention_levels are of 0 to {len(self.channel_mult) - 1}, the levels of channel_mult; got "
                f"{self.attention_levels}"
            )

    def shape(self, num_classes: int) -> "LdmShape":
        """Return the architecture of a prior with these settings."""
        from ld3m.priors.architecture import SHAPES  # torch, which the command line's help does without

        return replace(
            SHAPES["builtin"],
            resolution=self.resolution,
            ch=self.ch,
            ch_mult=self.ch_mult,
            latent_channels=self.latent_channels,
            model_channels=self.model_channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention_levels=self.attention_levels,
            num_heads=self.num_heads,
            context_dim=self.context_dim,
            num_embeddings=num_classes + 1,
        )
