"""Frozen generators: latent diffusion models behind one interface, and StyleGAN-XL."""

import re
from pathlib import Path

import torch

from ld3m.errors import CheckpointError, ConfigError
from ld3m.priors.base import Prior
from ld3m.priors.checkpoint_facts import require_noise_prediction
from ld3m.priors.configurations import built
from ld3m.priors.frozen import ExecutionConfig
from ld3m.priors.random import NAMES as RANDOM_NAMES
from ld3m.priors.stylegan import StyleGAN, load_stylegan
from ld3m.runtime.devices import resolve_device, resolve_dtype
from ld3m.runtime.reading import expanded, is_there

__all__ = ["NAMES", "Execution", "ExecutionConfig", "Prior", "StyleGAN", "load_prior", "load_stylegan"]

Execution = ExecutionConfig  # deprecated, the former name

NAMES = ("builtin", *(f"random:{name}" for name in RANDOM_NAMES))

_FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")  # a path that is not there, not a hub id
_EMBEDDED = Path(__file__).parent / "embedded"


def load_prior(
    source: "str | Path | Prior",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    config: str | Path | None = None,
) -> Prior:
    """Load a frozen latent diffusion model.

    Args:
        source: "builtin" (32 px, Fashion-MNIST's classes), "random:cin256", "random:ffhq256",
            "random:ffhq256-released", "random:builtin", "random:tiny", "random:dit-xl2", "random:dit-tiny", a
            checkpoint of CompVis or of DiT's authors (`.ckpt`, `.pt`, `.safetensors`), a diffusers folder, a hub id
            "owner/name", or a `Prior` (moved and cast in place).
        device: "meta" gives shapes without weights, in no time for random priors.
        dtype: of the weights, or its name: "float32", "bfloat16", "float64".
        config: of a checkpoint file: the YAML of a CompVis one, the folder of a DiT's autoencoder.

    Raises:
        ConfigError: an unknown name, a device or dtype that cannot be had, or a YAML that does not fit.
        CheckpointError: a file that is missing, damaged, unsafe, or does not fit its configuration.
    """
    device, dtype = resolve_device(device), resolve_dtype(dtype)
    if isinstance(source, Prior):
        return source.to(device=device, dtype=dtype)
    path = expanded(source, "prior")
    is_file = is_there(path, ConfigError) and path.is_file()
    if config is not None and path.suffix in _FILES and not is_file:
        raise ConfigError(f"prior {str(source)!r} is not there; correct the path of the checkpoint")
    if config is not None and not is_file:
        raise ConfigError(f"config goes with a CompVis or DiT checkpoint file, got the prior {str(source)!r}")
    prior = _load(str(source), None if config is None else expanded(config, "config"), dtype, device).to(device=device)
    if str(source) in NAMES or device.type == "meta":
        return prior
    from ld3m.priors.noise_check import warn_of_doubts

    return built(source, lambda: warn_of_doubts(prior))  # the first time that it runs


def _load(source: str, config: Path | None, dtype: torch.dtype, device: torch.device) -> Prior:
    from ld3m.priors import folder, random

    path = expanded(source, "prior")
    if source == "builtin":
        return folder.load_folder(_EMBEDDED, dtype=dtype)
    if source.startswith("random:"):
        return random.load_random(source.removeprefix("random:"), dtype=dtype, without_weights=device.type == "meta")
    if is_there(path, ConfigError):
        return _load_folder(path, dtype) if path.is_dir() else _load_file(path, config, dtype)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and path.suffix not in _FILES:
        return _load_folder(_download(source), dtype)
    raise ConfigError(
        f"prior is one of {', '.join(NAMES)}, a CompVis or DiT checkpoint, a diffusers folder or a hub id "
        f"owner/name; got {source!r}, which is neither a name nor a path that is there"
    )


def _load_folder(path: Path, dtype: torch.dtype) -> Prior:
    from ld3m.priors import dit, folder

    return (dit.load_pipeline if (path / "transformer").is_dir() else folder.load_folder)(path, dtype=dtype)


def _load_file(path: Path, config: Path | None, dtype: torch.dtype) -> Prior:
    from ld3m.priors import checkpoint, compvis, dit

    state, settings = checkpoint.read_checkpoint(path)
    if dit.is_official(state):
        require_noise_prediction(path, settings)
        return dit.load_official(path, state, config, dtype=dtype)
    if compvis.is_compvis(state):
        return compvis.load_compvis(path, state, config, dtype=dtype)
    raise CheckpointError(
        f"{path} holds neither a CompVis latent diffusion model nor an official DiT: no tensor is named "
        "model.diffusion_model.* or y_embedder.*"
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*/*.safetensors")):  # older repositories have pickles of tensors only
            snapshot_download(hub_id, allow_patterns=["*.bin"])
        return folder
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        raise CheckpointError(
            f"prior {hub_id!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0][:150]})"
        ) from error
