"""Checks of the inputs that every chain has."""

from torch import Tensor

from ld3m.config import check_finite
from ld3m.errors import InputError
from ld3m.priors.base import Prior


def check_inputs(
    prior: Prior, latents: Tensor, conditioning: Tensor | None, guidance_scale: float, micro_batch: int | None
) -> None:
    """Raise unless latents (N, c, h, w) and conditioning (N, tokens, dim) are the prior's and fit each other."""
    if latents.ndim != 4 or latents.shape[1] != prior.latent_channels or len(latents) == 0:
        raise InputError(
            f"latents are (N, {prior.latent_channels}, h, w), N at least 1, for {prior.name}; "
            f"got {tuple(latents.shape)}"
        )
    if prior.conditioning_shape is None:
        if conditioning is not None:
            raise InputError(f"{prior.name} takes no conditioning, got {tuple(conditioning.shape)}; leave it out")
    elif conditioning is None:
        raise InputError(
            f"{prior.name} is class-conditional: pass conditioning (N, tokens, dim), e.g. prior.embed(class_ids)"
        )
    elif conditioning.shape != (expected := (len(latents), *prior.conditioning_shape)):
        raise InputError(
            f"conditioning is {expected} for {len(latents)} latents of {prior.name}, got {tuple(conditioning.shape)}"
        )
    if micro_batch is not None and micro_batch < 1:
        raise InputError(f"micro_batch is at least 1 image, got {micro_batch!r}")
    check_finite(guidance_scale, "guidance_scale", InputError)
