"""Distribution matching (DM, Zhao & Bilen 2023): synthetic images should have the mean embedding of real ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ld3m.config import ResolvedDistillConfig
from ld3m.errors import InputError
from ld3m.matching.checks import check_chunk, check_classes, clear_network_errors
from ld3m.matching.compiled import compiled
from ld3m.matching.gradient import buffers_of, weights_of
from ld3m.matching.loss import Loss, LossCosts, Work, count_line
from ld3m.networks import fused


def dm_loss(
    network: nn.Module,
    real: Tensor | Sequence[Tensor],
    synthetic: Tensor,
    *,
    compile: bool = False,
    real_chunk: int | None = None,
) -> Tensor:
    """Return the squared distance between mean embeddings, a sum over features, one per class, not summed.

    All classes of the call go through the network in one batch, the real ones without a graph. The network runs in the
    mode it is in; its weights get no gradient and its buffers stay.

    Args:
        network: with `embed(images)` -> (B, features).
        real: (C, R, 3, H, W), R real images of each of C classes, augmented by the caller; gets no gradient. Where the
            classes have unequally many, C tensors (R, 3, H, W).
        synthetic: (C, S, 3, H, W), differentiable.
        compile: run the synthetic side through torch.compile, once for each network object and shape.
        real_chunk: real images that go through the network at once; all when None. Not for a network that sees a batch
            as a whole (batch norm in train mode, active dropout).

    Returns:
        (C,) losses.
    """
    check_classes("dm_loss", network, real, synthetic)
    check_chunk("dm_loss", network, real_chunk)
    if not hasattr(network, "embed"):
        raise InputError(
            f"dm_loss needs a network with embed(images) -> (B, features), got {type(network).__name__}; "
            "build one with ld3m.networks.build or add the method"
        )
    with torch.no_grad(), clear_network_errors("dm_loss", Embedding(network), real[0]):
        target = mean_embeddings(Embedding(fused(network)), real, real_chunk)
    embed = compiled(mean_embeddings) if compile else mean_embeddings
    return (embed(Embedding(network), synthetic) - target).square().sum(1)


def mean_embeddings(embedding: "Embedding", images: Tensor | Sequence[Tensor], chunk: int | None = None) -> Tensor:
    """Return the mean embedding (C, features) of images (C, B, 3, H, W), `chunk` of them at a time.

    The classes' images may be tensors (B, 3, H, W) of unequal sizes, which go through the network as one batch too.
    """
    state = weights_of(embedding) | buffers_of(embedding)
    flat = images.flatten(0, 1) if isinstance(images, Tensor) else torch.cat(list(images))  # -> (C * B, 3, H, W)
    parts = [functional_call(embedding, state, (part,)) for part in flat.split(chunk or len(flat))]
    features = torch.cat(parts) if len(parts) > 1 else parts[0]  # (C * B, F)
    if isinstance(images, Tensor):
        return features.unflatten(0, images.shape[:2]).mean(1)  # (C * B, F) -> (C, F)
    return torch.stack([part.mean(0) for part in features.split([len(own) for own in images])])


class Embedding(nn.Module):
    """The network's embedding as a module's forward pass, which is what `functional_call` runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network  # with `embed`, beside what a module has

    def forward(self, images: Tensor) -> Tensor:
        return self.network.embed(images).flatten(1)


def of_classes(
    network: nn.Module,
    real: Tensor | Sequence[Tensor],
    synthetic: Tensor,
    labels: Tensor,
    config: ResolvedDistillConfig,
    real_chunk: int | None,
) -> Tensor:
    """Return the losses with the settings of a distillation."""
    return dm_loss(network, real, synthetic, compile=config.compile, real_chunk=real_chunk)


def costs(network: nn.Module, work: Work) -> LossCosts:
    """Count the real side without a graph, the synthetic one with its way back."""
    images = partial(work.images, network)

    @torch.no_grad()
    def embed(x: Tensor) -> Tensor:
        return mean_embeddings(Embedding(fused(network)), x[None])

    def pull(x: Tensor) -> None:
        mean_embeddings(Embedding(network), x.requires_grad_()[None]).sum().backward()

    real, synthetic = count_line(embed, images), count_line(pull, images)
    return LossCosts(real, replace(synthetic, each=work.ipc * synthetic.each))


LOSS = Loss(of_classes, costs, joins_classes=True)
