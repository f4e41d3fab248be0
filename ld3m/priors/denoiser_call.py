"""One call of a denoiser and its vector-Jacobian product."""

from collections.abc import Callable

import torch
from torch import Tensor


class Evaluation:
    """A call that was made, with the graph for its vector-Jacobian product where one is wanted.

    Args:
        call: (latents, conditioning) -> predictions.
        latents: (B, c, h, w).
        conditioning: (B, ...), or None.
        wants: whether a gradient in latents, and one in conditioning, will be asked for.
    """

    def __init__(
        self,
        call: Callable[[Tensor, Tensor | None], Tensor],
        latents: Tensor,
        conditioning: Tensor | None,
        wants: tuple[bool, bool],
    ) -> None:
        self._inputs = [
            None if x is None else x.detach().requires_grad_(wanted)
            for x, wanted in zip((latents, conditioning), wants, strict=True)
        ]
        with torch.set_grad_enabled(any(wants)):
            self._predictions = call(*self._inputs)

    @property
    def predictions(self) -> Tensor:
        return self._predictions.detach()

    def vjp(self, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Pull a cotangent of the predictions back to (latents, conditioning), once; None where it is not wanted."""
        wanted = [x for x in self._inputs if x is not None and x.requires_grad]
        grads = iter(torch.autograd.grad(self._predictions, wanted, cotangent, materialize_grads=True))
        return tuple(next(grads) if x is not None and x.requires_grad else None for x in self._inputs)
