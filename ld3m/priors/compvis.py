"""CompVis latent-diffusion checkpoints: a `.ckpt` and its YAML, read without running anything from either."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.config import bounded_yaml
from ld3m.errors import CheckpointError, ConfigError
from ld3m.priors.architecture import SHAPES, DiffusersModule, LdmShape, build_modules
from ld3m.priors.base import Prior
from ld3m.priors.configurations import COMPVIS, built
from ld3m.priors.folder import checked_table, load_weights
from ld3m.runtime.reading import checked, read_text

_UNET, _FIRST_STAGE, _CLASSES = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.embedding.weight"


def is_compvis(state: dict[str, Tensor]) -> bool:
    return any(key.startswith(_UNET) for key in state)


def load_compvis(path: Path, state: dict[str, Tensor], config: Path | None, *, dtype: torch.dtype) -> Prior:
    """Load a CompVis checkpoint's raw weights (never its moving averages, as the official LD3M code does).

    Args:
        path: where `state` comes from, for names and errors.
        state: the tensors of a `.ckpt` or of the same as `.safetensors`.
        config: its YAML; may be left out for the shapes of cin256-v2 and of the unconditional FFHQ model.
    """
    num_embeddings = len(checked_table(state[_CLASSES], path)) if _CLASSES in state else None
    if config is not None:
        shape = read_yaml(config, num_embeddings)
    else:
        shape = SHAPES["ffhq256" if num_embeddings is None else "cin256"]
    source = str(path) if config is not None else f"{path} (without config=, so taken for a known 256 px model)"
    first_stage, denoiser, embedding = built(config or path, lambda: build_modules(shape), ConfigError)
    try:
        denoiser_weights = _convert_denoiser(state, denoiser, shape)
        first_stage_weights = _convert_first_stage(state, first_stage)
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} does not have the layout its configuration says: {error!r}") from error
    _check_all_used(state, denoiser_weights | first_stage_weights, source)
    load_weights(denoiser, denoiser_weights, source, dtype)
    load_weights(first_stage, first_stage_weights, source, dtype)
    if embedding is not None:
        load_weights(embedding, {"weight": state[_CLASSES]} if num_embeddings else {}, source, dtype)
    stored, factor = state.get("alphas_cumprod"), state.get("scale_factor")
    if stored is not None and not (stored.is_floating_point() and _is_schedule(stored)):
        raise CheckpointError(f"{source} has alphas_cumprod that do not fall from below 1 to above 0; fetch it again")
    if stored is not None and stored.dtype.itemsize < 4:  # as coarse as the noise of its first timesteps
        stored = None
    if stored is not None and stored.shape != shape.alphas_cumprod.shape:
        raise CheckpointError(f"{source} has alphas_cumprod {tuple(stored.shape)}, expected a schedule of 1,000 steps")
    return Prior(
        name=path.stem,
        first_stage=first_stage,
        denoiser=denoiser,
        class_embedding=embedding,
        # The checkpoint's own buffers win: they are what its training and the official sampler used. A factor is there
        # where it was measured on the first batch (scale_by_std).
        alphas_cumprod=shape.alphas_cumprod if stored is None else stored.double(),
        scale_factor=shape.scale_factor if factor is None else _checked_factor(factor, source),
        native_resolution=shape.resolution,
    )


def _is_schedule(alphas_cumprod: Tensor) -> bool:
    return bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all() | (alphas_cumprod.dtype.itemsize < 4))


def _checked_factor(factor: Tensor, source: str) -> float:
    if factor.numel() != 1 or not factor.is_floating_point() or not 0 < float(factor) < math.inf:
        raise CheckpointError(f"{source} has a scale_factor {factor.dtype} {tuple(factor.shape)}, expected one above 0")
    return float(factor)


def read_yaml(path: Path, num_embeddings: int | None) -> LdmShape:
    """Read a CompVis YAML into an `LdmShape`; structures that have no diffusers module are refused by name."""
    try:
        content = bounded_yaml.parse(read_text(path, ConfigError), f"config {path}")
    except ConfigError as error:
        raise ConfigError(f"{error}; pass the checkpoint's YAML") from error
    checked(content, COMPVIS, source=f"config {path}", remedy="pass the checkpoint's CompVis YAML", error=ConfigError)
    return built(f"config {path}", lambda: _shape_of(path, content, num_embeddings), ConfigError)


def _shape_of(path: Path, content: Any, num_embeddings: int | None) -> LdmShape:
    params = content["model"]["params"]
    unet = params["unet_config"]["params"]
    first_stage = params["first_stage_config"]
    autoencoder = first_stage["params"]["ddconfig"]
    kind = "kl" if first_stage["target"].endswith("AutoencoderKL") else "vq"
    is_conditional = bool(unet.get("use_spatial_transformer"))
    _check_supported(path, params, unet, first_stage["params"])
    downsample = 2 ** (len(autoencoder["ch_mult"]) - 1)
    return LdmShape(
        resolution=unet["image_size"] * downsample,
        first_stage=kind,
        ch=autoencoder["ch"],
        ch_mult=tuple(autoencoder["ch_mult"]),
        first_stage_res_blocks=autoencoder["num_res_blocks"],
        latent_channels=unet["in_channels"],
        num_codes=first_stage["params"].get("n_embed"),
        model_channels=unet["model_channels"],
        channel_mult=tuple(unet["channel_mult"]),
        num_res_blocks=unet["num_res_blocks"],
        attention_levels=tuple(sorted(int(math.log2(factor)) for factor in unet["attention_resolutions"])),
        num_heads=None if _given(unet, "num_head_channels") else _given(unet, "num_heads"),
        head_channels=_given(unet, "num_head_channels"),
        transformer_depth=unet.get("transformer_depth", 1),
        context_dim=unet["context_dim"] if is_conditional else None,
        num_embeddings=num_embeddings,
        scale_factor=params.get("scale_factor", 1.0),
        beta_start=params.get("linear_start", 1e-4),
        beta_end=params.get("linear_end", 2e-2),
    )


def _given(unet: dict, name: str) -> int | None:
    value = unet.get(name, -1)  # CompVis writes -1 for "not given"
    return None if value == -1 else value


def _check_supported(path: Path, params: dict, unet: dict, first_stage: dict) -> None:
    ddconfig = first_stage["ddconfig"]
    refusals = {
        "a parameterization other than eps": params.get("parameterization", "eps") != "eps",
        "use_scale_shift_norm": unet.get("use_scale_shift_norm", False),
        "resblock_updown": unet.get("resblock_updown", False),
        "use_new_attention_order": unet.get("use_new_attention_order", False),
        "a transformer_depth for each level": not isinstance(unet.get("transformer_depth", 1), int),
        "attn_resolutions of the first stage": bool(ddconfig.get("attn_resolutions")),
        "z_channels unlike embed_dim": ddconfig["z_channels"] != first_stage["embed_dim"],
    }
    if found := [name for name, is_there in refusals.items() if is_there]:
        raise ConfigError(f"config {path} has {', '.join(found)}, for which there is no module; choose another model")


def _check_all_used(state: dict[str, Tensor], converted: dict[str, Tensor], source: str) -> None:
    """Refuse tensors that the converters, which leave out what they do not know, have dropped."""
    used = {value.untyped_storage().data_ptr() for value in converted.values()}
    parts = (_UNET, f"{_FIRST_STAGE}encoder.", f"{_FIRST_STAGE}decoder.", f"{_FIRST_STAGE}qu")
    unused = [k for k, v in state.items() if k.startswith(parts) and v.untyped_storage().data_ptr() not in used]
    if dropped := [key for key in unused if ".qkv." not in key]:  # fused rows are taken apart into copies
        listed = ", ".join(sorted(dropped)[:6]) + (f" and {len(dropped) - 6} more" if len(dropped) > 6 else "")
        raise CheckpointError(f"{source} does not fit its configuration, which has no place for {listed}")


def _convert_denoiser(state: dict[str, Tensor], denoiser: DiffusersModule, shape: LdmShape) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    raw = {key: value for key, value in state.items() if key.startswith(_UNET)}
    converted = convert_ldm_unet_checkpoint(raw, denoiser.config)
    if shape.context_dim is not None:
        return converted
    # diffusers' converter passes the attention of unconditional models through unconverted.
    weights = {}
    for key, value in converted.items():
        block, _, leaf = key.rpartition(".attentions.")
        index, _, name = leaf.partition(".")
        prefix = f"{block}.attentions.{index}"
        if not block or name.startswith(("group_norm", "to_")):
            weights[key] = value
        elif name.startswith("norm."):
            weights[f"{prefix}.group_norm.{name[5:]}"] = value
        elif name.startswith("proj_out."):
            weights[f"{prefix}.to_out.0.{name[9:]}"] = value.flatten(1) if value.ndim == 3 else value
        else:  # qkv: rows are head-major, for each head its q, then its k, then its v rows
            rows = value.unflatten(0, (-1, 3, shape.head_channels))
            for k, projection in enumerate(("to_q", "to_k", "to_v")):
                part = rows[:, k].flatten(0, 1)  # (heads, channels, ...) -> (C, ...)
                weights[f"{prefix}.{projection}.{name[4:]}"] = part.flatten(1) if part.ndim == 3 else part
    return weights


def _convert_first_stage(state: dict[str, Tensor], first_stage: DiffusersModule) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    raw = {key: value for key, value in state.items() if key.startswith(_FIRST_STAGE)}
    converted = convert_ldm_vae_checkpoint(raw, first_stage.config)
    codebook = state.get(f"{_FIRST_STAGE}quantize.embedding.weight")
    if codebook is not None:  # the converter leaves the codebook out
        converted["quantize.embedding.weight"] = codebook
    return converted
