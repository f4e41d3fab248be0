"""How much memory a distillation may hold, and how that is spent: retained activations, images in flight."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ld3m.errors import ConfigError
from ld3m.priors.base import Prior
from ld3m.priors.stylegan import StyleGAN

_UNITS = ("", "K", "M", "G", "T")

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
            f"activations {_size(self.peak_bytes)} of {_size(self.budget_bytes)}: retain {self.retain:.2f}, "
            f"micro-batch {self.micro_batch}, classes in flight {self.classes_in_flight}"
        )


def parse_bytes(text: str | int) -> int:
    """Read "8GB", "500 MB", "2GiB" or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    number, unit, is_binary = match.groups() if match else ("0", "", "")
    count = int(float(number) * (1024 if is_binary else 1000) ** _UNITS.index(unit.upper()))
    if count < 1:
        raise ConfigError(f'memory_budget is a size such as "8GB" or a number of bytes, got {text!r}')
    return count


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

    The bytes of one evaluation and one decoding are measured on one image. Trajectory matching needs all images at
    once; the others stream classes.

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

    wanted = classes = num_classes
    if algorithm != "mtt":
        fitting = allowed // (ipc * (decode_bytes + evaluation_bytes))
        wanted, classes = (_even(num_classes, most) for most in (_IMAGES_IN_FLIGHT // ipc, fitting))
        classes = min(wanted, classes)
    images = classes * ipc
    left = allowed - images * decode_bytes
    if left < evaluation_bytes:
        raise ConfigError(
            f"memory_budget of {_size(allowed)} does not hold what {images} decoded images and one evaluation of the "
            f"denoiser take, {_size(images * decode_bytes + evaluation_bytes)}; raise it, or lower ipc or resolution"
        )
    if not steps:
        return Plan(0.0, images, classes, images * decode_bytes, allowed)
    micro_batch = min(images, left // evaluation_bytes, _IMAGES_IN_FLIGHT)
    # Where classes had to be cut, the next ones in flight are worth more than the little that could be kept.
    kept = 0 if classes < wanted else min(steps * images, left // evaluation_bytes - micro_batch)
    # In hundredths: the plan is part of the settings that a run is resumed with.
    retain = 100 * kept // (steps * images) / 100
    peak = images * decode_bytes + (round(retain * steps * images) + micro_batch) * evaluation_bytes
    return Plan(retain, micro_batch, classes, peak, allowed)


def plan_synthesis(
    generator: StyleGAN,
    layer: int,
    *,
    ipc: int,
    num_classes: int,
    algorithm: str,
    budget: str | int | None = None,
) -> Plan:
    """Plan like `plan_memory` for images made of features of a generator's `layer`; `retain` is a fraction of them.

    Raises:
        ConfigError: not even one image fits.
    """
    allowed = int(_DEFAULT_SHARE * total_memory(generator.device)) if budget is None else parse_bytes(budget)
    spec = generator.layers[layer].spec
    features = torch.zeros(1, spec.in_channels, spec.in_size, spec.in_size, device=generator.device)
    codes = torch.zeros(1, generator.num_codes - 1 - layer, generator.w_dim, device=generator.device)
    leaves = features.requires_grad_(), codes.requires_grad_()
    image_bytes = saved_bytes(generator, lambda: generator.synthesise(*leaves, layer))
    fitting = allowed // image_bytes
    if not fitting:
        raise ConfigError(
            f"memory_budget of {_size(allowed)} does not hold the activations of one image from layer {layer} of "
            f"{generator.name} on, {_size(image_bytes)}; raise it, or choose a later layer"
        )
    classes = num_classes
    if algorithm != "mtt":
        classes = min(_even(num_classes, most) for most in (_IMAGES_IN_FLIGHT // ipc, fitting // ipc))
    images = classes * ipc
    micro_batch = min(images, fitting, _IMAGES_IN_FLIGHT)
    kept = images if images <= fitting else fitting - micro_batch
    return Plan(100 * kept // images / 100, micro_batch, classes, min(images, fitting) * image_bytes, allowed)


def _even(num_classes: int, most: int) -> int:
    """Return the size of the fewest equal groups of classes with at most `most` each, at least one."""
    groups = math.ceil(num_classes / min(num_classes, max(1, most)))
    return math.ceil(num_classes / groups)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


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
