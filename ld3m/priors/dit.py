"""DiT priors (arXiv 2212.09748): official checkpoints, diffusers `DiTPipeline` folders, and modules of random weights.

All run on diffusers' `DiTTransformer2DModel`, with two constants by where the weights come from: the official network
spaces the frequencies of its time embedding by k/half and has a norm epsilon of 1e-6, diffusers' own spaces them by
k/(half−1) and takes the epsilon of its configuration. Confusing the first changes what random weights predict by 14 %.

In diffusers every block owns a copy of the time and class embedders. Here they exist once and outside the blocks, which
are given the sum of a time vector and a class vector: the class vector is the conditioning, which can be optimised.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ld3m.errors import CheckpointError, ConfigError, InputError
from ld3m.priors.architecture import DIT_SHAPES, DiffusersModule, DiTShape, build_first_stage
from ld3m.priors.base import Prior
from ld3m.priors.configurations import HEADS, TRANSFORMER, built
from ld3m.priors.diffit import with_factors_multiplied
from ld3m.priors.folder import checked_table, load_module, load_weights, read_alphas_cumprod, read_json
from ld3m.priors.weight_files import read_label_names, read_weights

_TABLE = "y_embedder.embedding_table.weight"
_OWN_EMBEDDERS = ".norm1.emb."
_MAX_LAYERS, _MAX_PATCHES = 128, 256
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of DiT-S, B, L and XL by width: the weights do not tell

_NAMES = {
    "x_embedder.proj": "dit.pos_embed.proj",
    "t_embedder.mlp.0": "time_embedding.linear_1",
    "t_embedder.mlp.2": "time_embedding.linear_2",
    "final_layer.adaLN_modulation.1": "dit.proj_out_1",
    "final_layer.linear": "dit.proj_out_2",
}
_BLOCK_NAMES = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}


class _GivenVector(nn.Module):
    """A block's embedder that returns the vector it is given in place of the class ids."""

    def forward(self, timestep: None, vector: Tensor, hidden_dtype: torch.dtype | None = None) -> Tensor:
        return vector


class DiTDenoiser(nn.Module):
    """A DiT conditioned by a class vector, called like a U-Net with cross-attention.

    Args:
        dit: diffusers' transformer, whose embedders are taken out of its blocks.
        freq_shift: s of the time embedding's frequencies 10000^(−k/(half−s)).
    """

    dit: DiffusersModule
    config: Any

    def __init__(self, dit: DiffusersModule, freq_shift: float) -> None:
        from diffusers.models.embeddings import Timesteps

        super().__init__()
        self.dit, self.config = dit, dit.config
        first = dit.transformer_blocks[0].norm1.emb
        self.time_projection = Timesteps(first.time_proj.num_channels, True, freq_shift)
        self.time_embedding = first.timestep_embedder
        for block in dit.transformer_blocks:
            block.norm1.emb = _GivenVector()

    def place_positions(self) -> "DiTDenoiser":
        """Fill the table of positions, a constant that is no part of the weights; return the denoiser itself."""
        from diffusers.models.embeddings import get_2d_sincos_pos_embed

        patches, weight = self.dit.pos_embed, self.dit.pos_embed.proj.weight
        table = get_2d_sincos_pos_embed(len(weight), patches.height, base_size=patches.base_size, output_type="pt")
        patches.pos_embed = table.float()[None].to(weight)
        return self

    def forward(self, sample: Tensor, timestep: int | Tensor, conditioning: Tensor) -> Any:
        if sample.shape[-2] != sample.shape[-1]:
            raise InputError(f"latents of a DiT are square, got {tuple(sample.shape)}")
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        time = self.time_embedding(self.time_projection(timesteps).to(sample.dtype))
        return self.dit(sample, class_labels=time + conditioning[:, 0])  # (B, 1, dim) -> (B, dim)


def build_dit_modules(shape: DiTShape) -> tuple[DiffusersModule, DiTDenoiser, nn.Embedding]:
    """Return (first stage, denoiser, class embedding) on the meta device; the positions are to be placed."""
    config = {
        "num_attention_heads": shape.num_heads,
        "attention_head_dim": shape.width // shape.num_heads,
        "in_channels": shape.latent_channels,
        "out_channels": 2 * shape.latent_channels,  # with the learned variance, which Prior drops
        "num_layers": shape.depth,
        "sample_size": shape.resolution // 2 ** (len(shape.ch_mult) - 1),
        "patch_size": shape.patch_size,
    }
    with torch.device("meta"):
        embedding = nn.Embedding(shape.num_embeddings, shape.width)
        return build_first_stage(shape), _build_official(config), embedding


def is_official(state: dict[str, Tensor]) -> bool:
    return _TABLE in state and "final_layer.linear.weight" in state


def load_official(path: Path, state: dict[str, Tensor], config: Path | None, *, dtype: torch.dtype) -> Prior:
    """Load an official DiT checkpoint, whose weights say all of its shape but the number of heads.

    That is known for the widths of the paper's models, and read from `transformer/config.json` for others.

    Args:
        path: where `state` comes from.
        config: folder of the `AutoencoderKL` the model was trained with, or one with it as `vae/`; the folder of the
            checkpoint when None.
    """
    folder = path.parent if config is None else config
    first_stage = _official_first_stage(path, folder, dtype)
    state = with_factors_multiplied(state, path)
    config_of_weights = _read_config(state, path, folder)
    _require_patches(config_of_weights["sample_size"], config_of_weights["patch_size"], path)
    denoiser = built(path, lambda: _build_official(config_of_weights))
    table = checked_table(state[_TABLE], path)
    load_weights(denoiser, _convert(state), str(path), dtype)
    _check_positions(denoiser.place_positions(), state["pos_embed"], path)
    return _prior(path.stem, first_stage, denoiser, table.to(dtype), DIT_SHAPES["dit-xl2"].alphas_cumprod)


def load_pipeline(folder: Path, *, dtype: torch.dtype) -> Prior:
    """Load a diffusers `DiTPipeline` folder: transformer/, vae/ and scheduler/."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    path = folder / "transformer" / "config.json"
    given = read_json(path, TRANSFORMER)
    if given.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise CheckpointError(f"{folder}/transformer is no DiT: norm_type is {given['norm_type']!r}")
    _require_patches(given["sample_size"], given.get("patch_size", 2), path)
    config = {key: given[key] for key in inspect.signature(DiTTransformer2DModel.__init__).parameters if key in given}
    denoiser = built(path, lambda: _build_denoiser(config, freq_shift=1.0))
    table, weights = _take_embedders(read_weights(folder / "transformer"), folder)
    load_weights(denoiser, weights, f"{folder}/transformer", dtype)
    first_stage = load_module(folder / "vae", ("AutoencoderKL",), dtype)
    denoiser.place_positions()
    names = read_label_names(folder, len(table) - 1)
    table = checked_table(table, f"{folder}/transformer")
    return _prior(folder.name, first_stage, denoiser, table.to(dtype), read_alphas_cumprod(folder), names)


def _prior(
    name: str,
    first_stage: DiffusersModule,
    denoiser: DiTDenoiser,
    table: Tensor,
    alphas_cumprod: Tensor,
    class_names: tuple[str, ...] | None = None,
) -> Prior:
    downsample = 2 ** (len(first_stage.config.block_out_channels) - 1)
    return Prior(
        name=name,
        first_stage=first_stage,
        denoiser=denoiser,
        class_embedding=nn.Embedding.from_pretrained(table),
        alphas_cumprod=alphas_cumprod,
        scale_factor=first_stage.config.scaling_factor,
        native_resolution=denoiser.config.sample_size * downsample,
        class_names=class_names,
    )


def _build_denoiser(config: dict, freq_shift: float) -> DiTDenoiser:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.device("meta"):
        return DiTDenoiser(DiTTransformer2DModel(**config), freq_shift)


def _build_official(config: dict[str, int]) -> DiTDenoiser:
    return _build_denoiser(config | {"norm_eps": 1e-6}, freq_shift=0.0)


def _read_config(state: dict[str, Tensor], path: Path, folder: Path) -> dict[str, int]:
    try:
        width, latent_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        config = {
            "in_channels": latent_channels,
            "out_channels": len(state["final_layer.linear.weight"]) // patch_size**2,
            "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
            "sample_size": round(state["pos_embed"].shape[1] ** 0.5) * patch_size,
            "patch_size": patch_size,
        }
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} does not have the layout of an official DiT: {error!r}") from error
    if not 0 < config["num_layers"] <= _MAX_LAYERS:
        raise CheckpointError(f"{path} names block {config['num_layers'] - 1}, of a DiT with more than {_MAX_LAYERS}")
    num_heads = _num_heads(width, path, folder)
    return config | {"num_attention_heads": num_heads, "attention_head_dim": width // num_heads}


def _require_patches(sample_size: int, patch_size: int, path: Path) -> None:
    """Refuse a table of positions that no DiT has: it is made before any weight is compared."""
    if not 0 < sample_size // patch_size <= _MAX_PATCHES:
        raise CheckpointError(
            f"{path} has latents of side {sample_size} in patches of {patch_size}, expected 1 to {_MAX_PATCHES} a "
            "side; restore it"
        )


def _num_heads(width: int, path: Path, folder: Path) -> int:
    config = folder / "transformer" / "config.json"
    heads = read_json(config, HEADS).get("num_attention_heads") if config.is_file() else _HEADS.get(width)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        raise ConfigError(
            f"{path} is {width} wide, for which the number of heads is not known; expected a divisor of it as "
            f"num_attention_heads in {config}, got {heads!r}"
        )
    return heads


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name official weights as `DiTDenoiser` does; what it does not know keeps its name, to be refused by it."""
    weights = {}
    for key, value in state.items():
        if key in (_TABLE, "pos_embed"):
            continue
        owner, _, leaf = key.rpartition(".")
        block, _, part = owner.removeprefix("blocks.").partition(".")
        prefix = f"dit.transformer_blocks.{block}"
        if not owner.startswith("blocks."):
            weights[f"{_NAMES.get(owner, owner)}.{leaf}"] = value
        elif part == "attn.qkv":
            for name, rows in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
                weights[f"{prefix}.attn1.{name}.{leaf}"] = rows
        else:
            weights[f"{prefix}.{_BLOCK_NAMES.get(part, part)}.{leaf}"] = value
    return weights


def _take_embedders(state: dict[str, Tensor], folder: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Take the class table and the blocks' own embedders, which are copies of one, out of diffusers' weights."""
    weights, embedders = {}, {}
    for key, value in state.items():
        block, is_own, name = key.partition(_OWN_EMBEDDERS)
        if not is_own:
            weights[f"dit.{key}"] = value
        elif not torch.equal(embedders.setdefault(name, value), value):
            raise CheckpointError(
                f"{folder}/transformer has another {name} in {block} than in the blocks before; a DiT has one time and "
                "one class embedder for all blocks"
            )
    table = embedders.pop("class_embedder.embedding_table.weight", None)
    if table is None:
        raise CheckpointError(f"{folder}/transformer has no class table: no tensor is named *{_OWN_EMBEDDERS}class_*")
    named = {name.replace("timestep_embedder", "time_embedding"): value for name, value in embedders.items()}
    return table, weights | named


def _check_positions(denoiser: DiTDenoiser, table: Tensor, path: Path) -> None:
    own = denoiser.dit.pos_embed.pos_embed
    if table.shape != own.shape or (table.double() - own.double()).abs().max() > 1e-2:  # files may be of low precision
        raise CheckpointError(f"{path} has a pos_embed {tuple(table.shape)} other than DiT's fixed sines and cosines")


def _official_first_stage(path: Path, folder: Path, dtype: torch.dtype) -> DiffusersModule:
    for candidate in (folder / "vae", folder):
        config = candidate / "config.json"
        if config.is_file() and read_json(config).get("_class_name") == "AutoencoderKL":
            return load_module(candidate, ("AutoencoderKL",), dtype)
    raise ConfigError(
        f"{path} is an official DiT, which comes without the autoencoder of its latents: put that one's diffusers "
        "folder (AutoencoderKL; stabilityai/sd-vae-ft-ema for the released models) beside it as vae/, or name it by "
        f"config=; there is none in {folder}"
    )
