"""Priors kept as a diffusers folder: one sub-folder a module, weights as tensors only, JSON configurations."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ld3m.errors import CheckpointError
from ld3m.priors.architecture import (
    NUM_TRAIN_STEPS,
    DiffusersModule,
    linear_alphas_cumprod,
    scaled_linear_alphas_cumprod,
)
from ld3m.priors.base import Prior
from ld3m.priors.configurations import INDEX, MODULE, SCHEDULER, built, require_buildable, side_of
from ld3m.priors.weight_files import read_json, read_weights
from ld3m.runtime.storage import load_tensors, save_tensors, write_json, write_text

logger = logging.getLogger(__name__)
_FIRST_STAGES = {"vae": "AutoencoderKL", "vqvae": "VQModel"}
_DENOISERS = ("UNet2DConditionModel", "UNet2DModel")
_SCHEDULER = {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}


def save_prior(prior: Prior, folder: Path, *, dtype: torch.dtype, betas: tuple[float, float]) -> None:
    """Write a prior as a diffusers folder that `load_prior` and diffusers' own classes read.

    Args:
        prior: its weights are cast to `dtype` in the files only.
        betas: ends of the scaled linear schedule.
    """
    first_stage = "vqvae" if prior.is_vq else "vae"
    for name, module in ((first_stage, prior.first_stage), ("unet", prior.denoiser)):
        write_text(folder / name / "config.json", module.to_json_string())  # `save_config` writes in place
        weights = {key: value.to(dtype) for key, value in module.state_dict().items()}
        save_tensors(folder / name / "diffusion_pytorch_model.safetensors", weights, {"format": "pt"}, sealed=False)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": NUM_TRAIN_STEPS,
        "beta_start": betas[0],
        "beta_end": betas[1],
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if prior.class_embedding is not None:
        save_tensors(folder / "class_embedding.safetensors", {"weight": prior.class_embedding.weight.to(dtype)})
    index = {
        "_class_name": "LatentDiffusionPrior",
        "name": prior.name,
        "native_resolution": prior.native_resolution,
        "class_names": prior.class_names,
    }
    write_json(folder / "model_index.json", index)  # last: a folder without it is not a whole prior


class _ClassVectorDenoiser(nn.Module):
    """A U-Net that adds its class embedding to the time embedding, called like one with cross-attention."""

    def __init__(self, unet: DiffusersModule) -> None:
        super().__init__()
        unet.class_embedding = nn.Identity()  # the vector itself is the conditioning, so that it can be optimised
        self.unet, self.config = unet, unet.config

    def forward(self, sample: Tensor, timestep: int, conditioning: Tensor) -> Any:
        return self.unet(sample, timestep, class_labels=conditioning[:, 0])  # (B, 1, dim) -> (B, dim)


def load_folder(folder: Path, *, dtype: torch.dtype) -> Prior:
    """Load a diffusers folder: a U-Net, a first stage (vae/ or vqvae/), a scheduler and, where it has classes, a table.

    Classes come from `class_embedding.safetensors`, or from the U-Net's own `class_embedding` table.
    """
    index = read_json(folder / "model_index.json", INDEX)
    first_stage_name = next((name for name in _FIRST_STAGES if (folder / name).is_dir()), None)
    if first_stage_name is None or not (folder / "unet").is_dir():
        raise CheckpointError(f"{folder} needs the sub-folders unet/ and vae/ or vqvae/ of a diffusers pipeline")
    first_stage = load_module(folder / first_stage_name, (_FIRST_STAGES[first_stage_name],), dtype)
    denoiser = load_module(folder / "unet", _DENOISERS, dtype)
    denoiser, embedding = _split_classes(folder, denoiser, dtype)
    downsample = 2 ** (len(first_stage.config.block_out_channels) - 1)
    latent_size = side_of(denoiser.config.sample_size)
    return Prior(
        name=index.get("name", folder.name),
        first_stage=first_stage,
        denoiser=denoiser,
        class_embedding=embedding,
        alphas_cumprod=read_alphas_cumprod(folder),
        scale_factor=_scale_factor(folder / first_stage_name, first_stage),
        native_resolution=index.get("native_resolution", (latent_size or 64) * downsample),
        class_names=None if index.get("class_names") is None else tuple(index["class_names"]),
    )


def _scale_factor(folder: Path, first_stage: DiffusersModule) -> float:
    """Return the factor of a first stage's latents; those of a VQModel were not scaled before its file could say so."""
    if type(first_stage).__name__ == "VQModel":
        return read_json(folder / "config.json", MODULE).get("scaling_factor", 1.0)
    return first_stage.config.scaling_factor


def _split_classes(
    folder: Path, denoiser: DiffusersModule, dtype: torch.dtype
) -> tuple[DiffusersModule, nn.Embedding | None]:
    own_table = getattr(denoiser, "class_embedding", None)
    if isinstance(own_table, nn.Embedding):
        last = own_table.num_embeddings - 1
        logger.warning(
            "%s: row %d of its class table is taken for the null class of guidance; a model trained without one has no "
            "such row, and its last class cannot be used",
            folder,
            last,
        )
        return _ClassVectorDenoiser(denoiser), own_table
    path = folder / "class_embedding.safetensors"
    if not path.is_file():
        if getattr(denoiser.config, "cross_attention_dim", None) and type(denoiser).__name__ != "UNet2DModel":
            raise CheckpointError(
                f"{folder} is conditioned by cross-attention on something other than a class table; expected "
                f"{path.name} with a tensor 'weight' (classes + 1, dim), the null class last"
            )
        return denoiser, None
    tensors, _ = load_tensors(path)
    if set(tensors) != {"weight"} or tensors["weight"].ndim != 2:
        raise CheckpointError(f"{path} holds one tensor 'weight' (classes + 1, dim), got {sorted(tensors)}")
    return denoiser, nn.Embedding.from_pretrained(checked_table(tensors["weight"], path).to(dtype))


def checked_table(table: Tensor, source: object) -> Tensor:
    """Return a class table (classes + 1, dim) of finite floating-point numbers; raise for anything else."""
    if table.ndim != 2 or not table.numel() or not table.is_floating_point() or not bool(table.isfinite().all()):
        raise CheckpointError(
            f"{source} has a class table {tuple(table.shape)} {table.dtype}, expected finite floating-point numbers "
            "(classes + 1, dim); fetch it again"
        )
    return table


def load_module(folder: Path, class_names: tuple[str, ...], dtype: torch.dtype) -> DiffusersModule:
    import diffusers

    path = folder / "config.json"
    config = read_json(path, MODULE)
    class_name = config.get("_class_name")
    if class_name not in class_names:
        raise CheckpointError(f"{folder}/config.json names {class_name!r}, expected {' or '.join(class_names)}")
    require_buildable(config, path)
    with torch.device("meta"):
        module = built(path, lambda: getattr(diffusers, class_name).from_config(config))
    load_weights(module, read_weights(folder), str(folder), dtype)
    return module


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: str, dtype: torch.dtype) -> None:
    """Give a module on the meta device its weights; missing, unexpected and mis-shaped tensors are named."""
    wanted = module.state_dict()
    faults = [f"{key} is missing" for key in wanted.keys() - tensors.keys()]
    faults += [f"{key} has no place" for key in tensors.keys() - wanted.keys()]
    faults += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in wanted.keys() & tensors.keys()
        if tensors[key].shape != wanted[key].shape
    ]
    faults += [
        f"{key} is {value.dtype}, expected floating point of 16 to 64 bits"
        for key, value in tensors.items()
        if not value.is_floating_point() or value.itemsize < 2
    ]
    if faults:
        listed = "; ".join(sorted(faults)[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {listed}; check its configuration")
    if damaged := [key for key, value in tensors.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(f"{source} has weights that are NaN or infinite: {damaged[0]}; fetch them again")
    module.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, assign=True)


def read_alphas_cumprod(folder: Path) -> Tensor:
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, SCHEDULER)
    start, end, kind = config.get("beta_start"), config.get("beta_end"), config.get("beta_schedule")
    if config.get("num_train_timesteps", NUM_TRAIN_STEPS) != NUM_TRAIN_STEPS or start is None or end is None:
        raise CheckpointError(f"{path} describes another schedule than 1,000 steps with beta_start and beta_end")
    for key, expected in _SCHEDULER.items():
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"{path} has {key} {str(config[key])[:40]}, expected {expected}: another kind of model"
            )
    if kind == "scaled_linear":
        return scaled_linear_alphas_cumprod(start, end)
    if kind == "linear":
        return linear_alphas_cumprod(start, end)
    raise CheckpointError(f"{path} has beta_schedule {kind!r}, expected 'scaled_linear' or 'linear'")
