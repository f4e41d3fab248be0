"""Does a network predict the noise that was added? Asked by numbers, of files that do not say what they hold.

A few pictures are encoded, noised at several timesteps, and the error of the prediction is compared with that of
predicting zero, and with what else it may be a prediction of: a velocity, the picture. A wrong schedule, a wrong factor
of the latents or halves of the head that are swapped show as well.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.priors.architecture import linear_alphas_cumprod, scaled_linear_alphas_cumprod
from ld3m.priors.base import Prior
from ld3m.runtime import seeds

logger = logging.getLogger(__name__)
TIMESTEPS = (200, 500, 800)
_USUAL_SPREAD = (0.25, 4.0)  # of latents that a denoiser was trained on: about 1
_MARGIN = 0.7  # another reading is named where its error is less than this part of the noise's
_SCHEDULES = {
    "linear from 1e-4 to 2e-2": linear_alphas_cumprod(1e-4, 2e-2),
    "scaled linear from 0.0015 to 0.0195": scaled_linear_alphas_cumprod(0.0015, 0.0195),
    "scaled linear from 0.00085 to 0.012": scaled_linear_alphas_cumprod(0.00085, 0.012),
}


def doubts(prior: Prior) -> list[str]:
    """Return what speaks against a prior that predicts noise, a sentence each; nothing where all is well."""
    latents = prior.encode(_pictures(prior))
    found = []
    spread = latents.std().item()
    if not _USUAL_SPREAD[0] < spread < _USUAL_SPREAD[1]:
        found.append(
            f"latents of pictures have the standard deviation {spread:.3g}, usual is about 1: a wrong scale factor"
        )
    errors = _errors(prior, latents, prior.alphas_cumprod)
    noise = errors.pop("noise")
    if not math.isfinite(noise):
        return [*found, "its predictions are not finite"]
    best = min(errors, key=lambda name: errors[name])
    if errors[best] < 1 and errors[best] < _MARGIN * noise:
        found.append(
            f"what it predicts is {best} (relative error {errors[best]:.2g}) rather than the noise ({noise:.2g})"
        )
    elif noise >= 1:
        found.append(f"its error on the noise is {noise:.2g} times that of predicting zero")
    else:
        others = {name: _errors(prior, latents, table)["noise"] for name, table in _SCHEDULES.items()}
        name = min(others, key=lambda name: others[name])
        if others[name] < _MARGIN * noise:
            found.append(
                f"it predicts the noise of another schedule, {name}, better: {others[name]:.2g}, not {noise:.2g}"
            )
    return found


def warn_of_doubts(prior: Prior) -> Prior:
    """Log `doubts`; return the prior itself. A device without room for the question is not asked."""
    try:
        found = doubts(prior)
    except torch.OutOfMemoryError:
        return prior
    if found:
        logger.warning(
            "%s may be no prior of this kind: %s; images distilled from it are worth what its predictions are",
            prior.name,
            "; ".join(found),
        )
    return prior


def _pictures(prior: Prior) -> Tensor:
    """Return two smooth pictures (2, 3, H, H) in [-1, 1]: blobs of color, as any first stage can encode."""
    draw = seeds.generator(0, "noise check")
    coarse = torch.rand(2, 3, 6, 6, generator=draw) * 1.6 - 0.8
    side = prior.native_resolution
    pictures = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return pictures.clamp(-1, 1).to(prior.device)


@torch.no_grad()
def _errors(prior: Prior, latents: Tensor, alphas_cumprod: Tensor) -> dict[str, float]:
    """Return the mean over timesteps of each reading's squared error, relative to predicting zero."""
    draw = seeds.generator(1, "noise check")
    noise = torch.randn(latents.shape, generator=draw).to(latents)
    conditioning = None if prior.conditioning_shape is None else prior.null_conditioning(len(latents))
    sums: dict[str, float] = {}
    for timestep in TIMESTEPS:
        signal, sigma = (math.sqrt(value) for value in (alphas_cumprod[timestep], 1 - alphas_cumprod[timestep]))
        noisy = signal * latents + sigma * noise
        head = _head(prior, noisy, timestep, conditioning)
        readings = {
            "noise": (head[0], noise),
            "a velocity": (head[0], signal * noise - sigma * latents),
            "the picture": (head[0], latents),
            **({"noise in the half of its head meant for variances": (head[1], noise)} if len(head) > 1 else {}),
        }
        for name, (got, wanted) in readings.items():
            error = ((got - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)).item()
            sums[name] = sums.get(name, 0.0) + error / len(TIMESTEPS)
    return sums


def _head(prior: Prior, noisy: Tensor, timestep: int, conditioning: Tensor | None) -> tuple[Tensor, ...]:
    """Return all that the network predicts, in parts of the latents' channels."""
    inputs = (noisy.to(prior.dtype), timestep)
    if conditioning is not None:
        inputs += (conditioning.to(prior.dtype),)
    return prior.denoiser(*inputs).sample.to(noisy.dtype).split(prior.latent_channels, 1)
