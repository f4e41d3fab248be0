"""The guided prediction of noise without gradient, on all images, some at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ld3m.priors.base import Prior


class Predictor:
    """What a denoiser predicts for images with their conditioning.

    Args:
        conditioning: (N, tokens, dim), or None for an unconditional prior.
        guidance_scale: g in ε̂ = ε_u + g (ε_c − ε_u); exactly 1 makes one evaluation, every other value two.
        micro_batch: images evaluated at once.
        guided_channels: of the latents' first channels that are guided, the others conditional alone; all when None.
        has_variance: whether the channels that a denoiser has learned for its variances are predicted as well.
    """

    def __init__(
        self,
        prior: Prior,
        conditioning: Tensor | None,
        guidance_scale: float,
        micro_batch: int,
        *,
        guided_channels: int | None = None,
        has_variance: bool = False,
    ) -> None:
        self.prior, self.conditioning = prior, conditioning
        self.guidance_scale, self.micro_batch = float(guidance_scale), micro_batch
        self._guided_channels, self._has_variance = guided_channels, has_variance
        self._null = None
        if conditioning is not None and guidance_scale != 1:
            self._null = prior.null_conditioning(1).to(conditioning.dtype)

    def blocks(self, num_images: int) -> Iterator[slice]:
        """Yield the images that are evaluated together, one block after the other."""
        for first in range(0, num_images, self.micro_batch):
            yield slice(first, first + self.micro_batch)

    def __call__(self, state: Tensor, timestep: int, block: slice) -> tuple[Tensor, Tensor | None]:
        """Predict for the states (n, c, h, w) of a block.

        Returns:
            ε̂ (n, c, h, w), or (2n, c, h, w) with the rows [null, conditional] where they are to be guided; and the
            conditional rows' v (n, c, h, w), where variances are asked for.
        """
        conditioning = None if self.conditioning is None else self.conditioning[block]
        num_images, channels = state.shape[:2]
        if self._null is not None and conditioning is not None:
            state = torch.cat([state, state])
            conditioning = torch.cat([self._null.expand_as(conditioning), conditioning])
        if self._has_variance:
            found = self.prior.predict_noise(state, timestep, conditioning, with_variance=True)
            noise, variance = found[:, :channels], found[-num_images:, channels:]
        else:
            noise, variance = self.prior.predict_noise(state, timestep, conditioning), None
        if self._guided_channels is not None and len(noise) != num_images:
            unguided = slice(self._guided_channels, None)
            noise = noise.clone()
            noise[:num_images, unguided] = noise[num_images:, unguided]
        return noise, variance
