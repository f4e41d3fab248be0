"""One call of a denoiser and its vector-Jacobian product."""

from dataclasses import dataclass

import torch
from torch import Tensor

Grads = tuple[Tensor | None, Tensor | None]  # in (latents, conditioning), None where it is not wanted


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """A call that was made, with the graph for its vector-Jacobian product where one is wanted.

    Args:
        inputs: latents (B, c, h, w) and conditioning (B, ...) or None; leaves, of which some require a gradient.
        output: the predictions, with their graph.
    """

    inputs: Grads
    output: Tensor

    @property
    def predictions(self) -> Tensor:
        return self.output.detach()

    def vjp(self, cotangent: Tensor) -> Grads:
        """Pull a cotangent of the predictions back to (latents, conditioning), once; None where it is not wanted."""
        wanted = [x for x in self.inputs if x is not None and x.requires_grad]
        grads = iter(torch.autograd.grad(self.output, wanted, cotangent, materialize_grads=True))
        latents, conditioning = (next(grads) if x is not None and x.requires_grad else None for x in self.inputs)
        return latents, conditioning
