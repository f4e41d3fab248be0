"""The shape of a latent diffusion model, and the diffusers modules it stands for.

One description serves the named random priors, CompVis checkpoints (their YAML says the same in other words) and the
prior trainer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ld3m.errors import ConfigError

NUM_TRAIN_STEPS = 1000
_MAX_LEVELS, _MAX_BLOCKS = 12, 500

DiffusersModule = Any  # an nn.Module of diffusers, whose parts and configuration its type does not tell


@dataclass(frozen=True)
class LdmShape:
    """Hyper-parameters of first stage, denoiser and class table, in CompVis's terms.

    Args:
        resolution: images the model was made for, in pixels.
        first_stage: "vq" or "kl".
        ch, ch_mult, first_stage_res_blocks: first stage; it reduces by 2^(len(ch_mult) − 1).
        latent_channels: of the latents the denoiser sees.
        num_codes: rows of the codebook (VQ).
        model_channels, channel_mult, num_res_blocks: denoiser.
        attention_levels: levels of `channel_mult` that have attention (0 is the finest).
        num_heads: heads of every attention, or
        head_channels: channels of every head; one of the two. An unconditional denoiser takes head_channels.
        transformer_depth: transformer blocks an attention of a class-conditional denoiser.
        context_dim: width of the class embedding; None for an unconditional model.
        num_embeddings: rows of the class table, the null class included.
        scale_factor: latents = scale_factor × the first stage's mean (KL).
        beta_start, beta_end: ends of the schedule β = linspace(√β₀, √β₁, 1000)².
    """

    resolution: int
    first_stage: str
    ch: int
    ch_mult: tuple[int, ...]
    first_stage_res_blocks: int
    latent_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    num_codes: int | None = None
    num_heads: int | None = None
    head_channels: int | None = None
    transformer_depth: int = 1
    context_dim: int | None = None
    num_embeddings: int | None = None
    scale_factor: float = 1.0
    beta_start: float = 0.0015
    beta_end: float = 0.0195

    def __post_init__(self) -> None:
        if self.first_stage not in ("vq", "kl"):
            raise ConfigError(f'first_stage is "vq" or "kl", got {self.first_stage!r}')
        if self.context_dim is None and self.head_channels is None:
            raise ConfigError("an unconditional denoiser needs num_head_channels: for num_heads there is no module")
        if self.context_dim is not None and self.num_embeddings is None:
            raise ConfigError("a class-conditional denoiser needs a table of class embeddings")
        if self.num_heads is None and self.head_channels is None:
            raise ConfigError("attention needs num_heads or num_head_channels")
        for name, factors in (("ch_mult", self.ch_mult), ("channel_mult", self.channel_mult)):
            if not 1 <= len(factors) <= _MAX_LEVELS or not all(1 <= factor <= 64 for factor in factors):
                raise ConfigError(f"{name} is 1 to {_MAX_LEVELS} factors from 1 to 64, got {list(factors)}")
        blocks = len(self.channel_mult) * self.num_res_blocks * self.transformer_depth
        if not 1 <= max(blocks, len(self.ch_mult) * self.first_stage_res_blocks) <= _MAX_BLOCKS:
            raise ConfigError(f"a model has at most {_MAX_BLOCKS} blocks in all, got {blocks}; lower its depth")
        for name in ("ch", "model_channels"):
            if not 32 <= (value := getattr(self, name)) <= 65_536 or value % 32:
                raise ConfigError(f"{name} is a multiple of 32, the groups of its norms, up to 65,536; got {value}")

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def alphas_cumprod(self) -> Tensor:
        return scaled_linear_alphas_cumprod(self.beta_start, self.beta_end)


SHAPES = {
    "cin256": LdmShape(
        resolution=256, first_stage="vq", ch=128, ch_mult=(1, 2, 4), first_stage_res_blocks=2, latent_channels=3,
        num_codes=8192, model_channels=192, channel_mult=(1, 2, 3, 5), num_res_blocks=2, attention_levels=(1, 2, 3),
        num_heads=1, context_dim=512, num_embeddings=1001,
    ),
    "ffhq256": LdmShape(
        resolution=256, first_stage="vq", ch=128, ch_mult=(1, 2, 4), first_stage_res_blocks=2, latent_channels=3,
        num_codes=8192, model_channels=224, channel_mult=(1, 2, 3, 4), num_res_blocks=2, attention_levels=(1, 2, 3),
        head_channels=32,
    ),
    "builtin": LdmShape(
        resolution=32, first_stage="kl", ch=32, ch_mult=(1, 2, 2), first_stage_res_blocks=1, latent_channels=3,
        model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0, 1), num_heads=4,
        context_dim=64, num_embeddings=11,
    ),
    "tiny": LdmShape(
        resolution=16, first_stage="vq", ch=32, ch_mult=(1, 1), first_stage_res_blocks=1, latent_channels=3,
        num_codes=16, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2,
        context_dim=8, num_embeddings=5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DiTShape:
    """Hyper-parameters of an official DiT and its first stage; the defaults are those of DiT-XL/2 at 256 px.

    Args:
        resolution: images the model was made for, in pixels.
        width, depth, num_heads, patch_size: of the transformer.
        num_embeddings: rows of the class table, the null class included.
        ch, ch_mult, first_stage_res_blocks, latent_channels, scale_factor: first stage, as of `LdmShape`.
        first_stage: "kl".
    """

    resolution: int = 256
    width: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    num_embeddings: int = 1001
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    first_stage_res_blocks: int = 2
    latent_channels: int = 4
    scale_factor: float = 0.18215
    first_stage: str = "kl"

    @property
    def alphas_cumprod(self) -> Tensor:
        return linear_alphas_cumprod(1e-4, 2e-2)


DIT_SHAPES = {
    "dit-xl2": DiTShape(),
    "dit-tiny": DiTShape(
        resolution=16, width=32, depth=2, num_heads=2, num_embeddings=5, ch=32, ch_mult=(1, 1),
        first_stage_res_blocks=1, scale_factor=1.0,
    ),
}  # fmt: skip


def scaled_linear_alphas_cumprod(beta_start: float, beta_end: float) -> Tensor:
    """Return ᾱ (1000,) in float64 for β = linspace(√β₀, √β₁, 1000)², which CompVis calls "linear"."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, NUM_TRAIN_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def linear_alphas_cumprod(beta_start: float, beta_end: float) -> Tensor:
    """Return ᾱ (1000,) in float64 for β = linspace(β₀, β₁, 1000)."""
    return torch.cumprod(1 - torch.linspace(beta_start, beta_end, NUM_TRAIN_STEPS, dtype=torch.float64), dim=0)


def build_first_stage(shape: LdmShape | DiTShape) -> DiffusersModule:
    """Return the untrained first stage: `VQModel` or `AutoencoderKL`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    common: dict[str, Any] = dict(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(shape.ch_mult),
        up_block_types=("UpDecoderBlock2D",) * len(shape.ch_mult),
        block_out_channels=tuple(shape.ch * mult for mult in shape.ch_mult),
        layers_per_block=shape.first_stage_res_blocks,
        latent_channels=shape.latent_channels,
        sample_size=shape.resolution,
        scaling_factor=shape.scale_factor,
    )
    if not isinstance(shape, LdmShape) or shape.first_stage == "kl":
        return AutoencoderKL(**common)
    return VQModel(**common | {"num_vq_embeddings": shape.num_codes, "vq_embed_dim": shape.latent_channels})


def build_denoiser(shape: LdmShape) -> DiffusersModule:
    """Return the untrained denoiser: `UNet2DConditionModel`, or `UNet2DModel` when unconditional."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    levels = range(len(shape.channel_mult))
    has_attention = [level in shape.attention_levels for level in levels]
    kind = "Attn" if shape.context_dim is None else "CrossAttn"
    common: dict[str, Any] = dict(
        sample_size=shape.resolution // shape.downsample,
        in_channels=shape.latent_channels,
        out_channels=shape.latent_channels,
        down_block_types=tuple(f"{kind if attention else ''}DownBlock2D" for attention in has_attention),
        up_block_types=tuple(f"{kind if attention else ''}UpBlock2D" for attention in reversed(has_attention)),
        block_out_channels=tuple(shape.model_channels * mult for mult in shape.channel_mult),
        layers_per_block=shape.num_res_blocks,
        norm_num_groups=32,
        norm_eps=1e-5,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
    )
    if shape.context_dim is None:
        return UNet2DModel(**common, attention_head_dim=shape.head_channels)
    common |= {
        "attention_head_dim": _num_heads(shape),  # this class takes the NUMBER of heads under that name
        "transformer_layers_per_block": shape.transformer_depth,
        "cross_attention_dim": shape.context_dim,
    }
    return UNet2DConditionModel(**common)


def _num_heads(shape: LdmShape) -> int | tuple[int, ...]:
    if shape.num_heads is not None:
        return shape.num_heads
    assert shape.head_channels is not None  # by LdmShape's own check
    return tuple(shape.model_channels * mult // shape.head_channels for mult in shape.channel_mult)


def build_modules(shape: LdmShape) -> tuple[DiffusersModule, DiffusersModule, nn.Embedding | None]:
    """Return (first stage, denoiser, class embedding) without memory behind them (on the meta device)."""
    with torch.device("meta"):
        embedding = None
        if shape.context_dim is not None and shape.num_embeddings is not None:
            embedding = nn.Embedding(shape.num_embeddings, shape.context_dim)
        return build_first_stage(shape), build_denoiser(shape), embedding
