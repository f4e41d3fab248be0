"""How much memory a distillation may hold, and how that is spent: retained activations, images in flight."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ld3m.errors import ConfigError
from ld3m.priors.base import Prior

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

# Share of the device's memory that activations may take by default, and images worth evaluating together: below about
# ten (twenty rows with guidance) a call of the denoiser costs more an image.
_DEFAULT_SHARE, _IMAGES_IN_FLIGHT = 0.25, 16


@dataclass(frozen=True)
class Plan:
    """What is held at once.

    Args:
        retain: fraction of the chain's evaluations whose activations are kept.
        micro_batch: images a call of the denoiser.
        classes_in_flight: classes rendered and matched together.
        peak_bytes: predicted for the activations of chain and decoder.
        budget_bytes: what was allowed.
    """

    retain: float
    micro_batch: int
    classes_in_flight: int
    peak_bytes: int
    budget_bytes: int

    def __str__(self) -> str:
        return (
            f"activations {self.peak_bytes / 1e9:.2f} of {self.budget_bytes / 1e9:.2f} GB: retain {self.retain:.2f}, "
            f"micro-batch {self.micro_batch}, classes in flight {self.classes_in_flight}"
        )


def parse_bytes(text: str | int) -> int:
    """Read "8GB", "500 MB", "2GiB" or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ConfigError(f'memory_budget is a size such as "8GB" or a number of bytes, got {text!r}')
    number, unit, is_binary = match.groups()
    power = list(_UNITS).index(unit.upper())
    return int(float(number) * (1024**power if is_binary else 1000**power))


def total_memory(device: torch.device) -> int:
    """Return the bytes a device has in all; what is free at the moment would make equal runs differ."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def plan_memory(
    prior: Prior,
    *,
    resolution: int,
    steps: int,
    ipc: int,
    num_classes: int,
    algorithm: str,
    budget: str | int | None = None,
    guidance_scale: float = 3.0,
) -> Plan:
    """Choose what to retain, the micro-batch and the classes in flight so that activations fit a budget.

    The bytes of one evaluation and one decoding are measured on one image. Trajectory matching needs all images at once;
    the others stream classes.

    Args:
        resolution: of the images, in pixels.
        steps: T of the chain; 0 for no chain.
        budget: "8GB" or bytes for activations; a quarter of the device's memory when None.

    Raises:
        ConfigError: not even one image with nothing retained fits.
    """
    allowed = int(_DEFAULT_SHARE * total_memory(prior.device)) if budget is None else parse_bytes(budget)
    latents, conditioning = _example(prior, resolution)
    is_guided = conditioning is not None and guidance_scale != 1
    decode_bytes = saved_bytes(prior.first_stage, lambda: prior.decode(latents))
    evaluation_bytes = 0
    if steps:
        evaluation_bytes = saved_bytes(prior.denoiser, lambda: prior.predict_noise(latents, 500, conditioning))
        evaluation_bytes *= 2 if is_guided else 1

    classes = num_classes if algorithm == "mtt" else min(num_classes, max(1, _IMAGES_IN_FLIGHT // ipc))
    while algorithm != "mtt" and classes > 1 and classes * ipc * decode_bytes + evaluation_bytes > allowed:
        classes = (classes + 1) // 2
    images = classes * ipc
    left = allowed - images * decode_bytes
    if left < evaluation_bytes:
        raise ConfigError(
            f"memory_budget of {allowed / 1e9:.2f} GB does not hold {images} decoded images and one evaluation "
            f"({(images * decode_bytes + evaluation_bytes) / 1e9:.2f} GB); raise it, or lower ipc or resolution"
        )
    if not steps:
        return Plan(0.0, images, classes, images * decode_bytes, allowed)
    micro_batch = min(images, left // evaluation_bytes, max(_IMAGES_IN_FLIGHT, 1))
    kept = min(steps * images, (left - micro_batch * evaluation_bytes) // evaluation_bytes)
    # In hundredths: the plan is part of the settings that a run is resumed with.
    retain = int(100 * kept / (steps * images)) / 100
    peak = images * decode_bytes + int(retain * steps * images + micro_batch) * evaluation_bytes
    return Plan(retain, int(micro_batch), classes, peak, allowed)


def saved_bytes(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Count the bytes autograd keeps for the backward pass of `call`, the module's weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()  # alive while counting, so that no two saved tensors share an address
    del output
    return sum(held.values())


def _example(prior: Prior, resolution: int) -> tuple[Tensor, Tensor | None]:
    side = resolution // prior.downsample
    latents = torch.zeros(1, prior.latent_channels, side, side, device=prior.device, dtype=prior.dtype)
    if prior.conditioning_shape is None:
        return latents.requires_grad_(), None
    return latents.requires_grad_(), prior.null_conditioning(1).requires_grad_()
