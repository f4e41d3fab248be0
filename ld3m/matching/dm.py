"""Distribution matching (DM, Zhao & Bilen 2023): synthetic images should have the mean embedding of real ones."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ld3m.errors import InputError
from ld3m.matching.gradient import buffers_of, weights_of
from ld3m.matching.shapes import check_classes
from ld3m.networks import fused


def dm_loss(network: nn.Module, real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the squared distance between mean embeddings, a sum over features, one per class, not summed.

    All classes of the call go through the network in one batch, the real ones without a graph. The network runs in the
    mode it is in; its weights get no gradient and its buffers stay.

    Args:
        network: with `embed(images)` -> (B, features).
        real: (C, R, 3, H, W), R real images of each of C classes, augmented by the caller; gets no gradient.
        synthetic: (C, S, 3, H, W), differentiable.

    Returns:
        (C,) losses.
    """
    check_classes("dm_loss", network, real, synthetic)
    if not hasattr(network, "embed"):
        raise InputError(
            f"dm_loss needs a network with embed(images) -> (B, features), got {type(network).__name__}; "
            "build one with ld3m.networks.build or add the method"
        )
    with torch.no_grad():
        target = _mean_embeddings(fused(network), real)
    return (_mean_embeddings(network, synthetic) - target).square().sum(1)


def _mean_embeddings(network: nn.Module, images: Tensor) -> Tensor:
    state = {f"network.{name}": tensor for name, tensor in (weights_of(network) | buffers_of(network)).items()}
    features = functional_call(_Embedding(network), state, (images.flatten(0, 1),))  # (C, B, 3, H, W) -> (C * B, F)
    return features.unflatten(0, images.shape[:2]).mean(1)  # (C * B, F) -> (C, F)


class _Embedding(nn.Module):
    """The network's embedding as a module's forward pass, which is what `functional_call` runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.embed(images).flatten(1)
