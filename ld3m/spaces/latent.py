"""Latents of a frozen prior, through its reverse chain ("ld3m") or through its decoder alone ("autoencoder")."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m import seeds
from ld3m.chain import reverse_chain
from ld3m.priors.base import Prior
from ld3m.spaces.base import to_pixels


@dataclass(frozen=True)
class ChainSettings:
    """How the reverse chain of the "ld3m" space is run; see `ld3m.reverse_chain`."""

    steps: int
    guidance_scale: float
    injection: str
    schedule: str
    noise: str
    retain: float
    micro_batch: int | None
    seed: int


class LatentSpace:
    """Latents, and conditioning where the prior has one, as parameters.

    Args:
        latents: (N, c, h, w).
        conditioning: (N, tokens, dim), or None.
        learn: which of "latents" and "conditioning" are optimised.
        resolution: of the rendered images; decoded ones of another size are resized with antialiasing.
        chain: settings of the reverse chain; None decodes the latents as they are.
    """

    def __init__(
        self,
        prior: Prior,
        latents: Tensor,
        conditioning: Tensor | None,
        *,
        learn: tuple[str, ...],
        resolution: int,
        chain: ChainSettings | None,
    ) -> None:
        self.prior, self.resolution, self.chain = prior, resolution, chain
        tensors = {"latents": latents, "conditioning": conditioning}
        self.parameters = {
            name: tensor.detach().clone().requires_grad_(name in learn)
            for name, tensor in tensors.items()
            if tensor is not None
        }

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        latents = self.parameters["latents"][rows]
        if self.chain is not None:
            latents = self._run_chain(latents, rows, noise_seed)
        return to_pixels(self.prior.decode(latents), self.resolution)

    def _run_chain(self, latents: Tensor, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        chain = self.chain
        purpose = () if chain.noise == "fixed" else noise_seed
        # Drawn for all images, so that an image's noise does not depend on which others are rendered with it.
        draw = seeds.generator(chain.seed, "noise", *purpose)
        noise = torch.randn(self.parameters["latents"].shape, generator=draw).to(latents)[rows]
        conditioning = self.parameters.get("conditioning")
        return reverse_chain(
            self.prior,
            latents,
            None if conditioning is None else conditioning[rows],
            steps=chain.steps,
            guidance_scale=chain.guidance_scale,
            injection=chain.injection,
            schedule=chain.schedule,
            noise=noise,
            retain=chain.retain,
            micro_batch=chain.micro_batch,
        )

    def project(self) -> None:
        """Latents and conditioning may go anywhere."""
