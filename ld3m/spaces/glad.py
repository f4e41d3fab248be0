"""Features of a layer, and the codes of the layers after it, through the rest of a frozen generator ("glad")."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ld3m.priors.stylegan.generator import StyleGAN
from ld3m.spaces.base import to_pixels


class GladSpace:
    """GLaD's space: features, and one modulation code a layer, as parameters (Cazenavette et al. 2023).

    Args:
        features: (N, C, h, w), what the first `layer` layers return.
        codes: (N, layers from number `layer` on, w_dim).
        learn: which of "features" and "codes" are optimised.
        resolution: of the rendered images; those of a generator of another size are resized with antialiasing.
        retain: fraction of the images whose activations are kept for the backward pass; the others are made again.
        micro_batch: images made at once.
    """

    def __init__(
        self,
        generator: StyleGAN,
        features: Tensor,
        codes: Tensor,
        *,
        layer: int,
        learn: tuple[str, ...],
        resolution: int,
        retain: float,
        micro_batch: int,
    ) -> None:
        self.generator, self.layer, self.resolution = generator, layer, resolution
        self.retain, self.micro_batch = retain, micro_batch
        self.parameters = {
            name: tensor.detach().clone().requires_grad_(name in learn)
            for name, tensor in (("features", features), ("codes", codes))
        }

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        kept, again = rows.tensor_split([round(self.retain * len(rows))])
        images = [self._synthesise(part) for part in kept.split(self.micro_batch) if len(part)]
        images += [
            checkpoint(self._synthesise, part, use_reentrant=False, preserve_rng_state=False)
            for part in again.split(self.micro_batch)
            if len(part)
        ]
        return to_pixels(torch.cat(images), self.resolution)

    def hold(self, *, retain: float, micro_batch: int, decoder_batch: None) -> None:
        self.retain, self.micro_batch = retain, micro_batch

    def _synthesise(self, rows: Tensor) -> Tensor:
        return self.generator.synthesise(self.parameters["features"][rows], self.parameters["codes"][rows], self.layer)

    def project(self) -> None:
        """Features and codes may go anywhere."""
