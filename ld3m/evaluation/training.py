"""One training of the evaluation: a fresh network, a small set, a protocol, and the test accuracy at the end."""

import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ld3m import networks, seeds
from ld3m.data import Dataset
from ld3m.evaluation.protocols import Protocol, Recipe, ema_decay, learning_rate
from ld3m.matching import dsa

logger = logging.getLogger(__name__)
_CHUNK_PIXELS = 100 * 32**2  # of one test batch on a CPU, where larger ones leave the cache
_CHUNK_PIXELS_DEVICE = 2500 * 32**2


def train_and_test(
    name: str,
    images: Tensor,
    labels: Tensor,
    data: Dataset,
    protocol: Protocol,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    each_epoch: Callable[[], None] = lambda: None,
) -> float:
    """Train a fresh network on a set and return its accuracy on the test split, in percent.

    Args:
        name: network of `ld3m.networks` that the protocol has a recipe for.
        images: (N, 3, H, H) in [0, 1], not normalised.
        labels: (N,) int64.
        data: gives test split, mean and standard deviation.
        generator: on the CPU; weights, order of images and augmentation are drawn from it.
        each_epoch: called before every epoch; what it raises ends the training.
    """
    network = networks.build(
        name, num_classes=len(data.class_names), resolution=data.resolution, generator=generator
    ).to(device)
    if not any(isinstance(module, nn.GroupNorm) for module in network.modules()):
        network.to(memory_format=torch.channels_last)  # a fifth faster on a CPU; with group norms it is slower
    images, labels = data.normalise(images.float().to(device)), labels.to(device)
    scope = seeds.scoped_global_rng(generator.initial_seed(), "dropout") if has_dropout(network) else nullcontext()
    with scope, torch.enable_grad():
        loss = train(network, images, labels, protocol, protocol.recipe(name), generator, each_epoch)
    if not loss.isfinite():
        logger.warning("the loss of %s ended as %s: its learning rate does not suit these images", name, float(loss))
    return accuracy(network, data)


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    recipe: Recipe,
    generator: torch.Generator,
    each_epoch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Train a network on normalised images, leave the average of its weights in it, and return the last loss."""
    parameters, model = list(network.parameters()), networks.fused(network)
    average = [torch.zeros_like(parameter) for parameter in parameters]
    optimiser = torch.optim.SGD(parameters, recipe.rate, protocol.momentum, weight_decay=protocol.weight_decay)
    network.train()
    for epoch in range(recipe.epochs):
        each_epoch()
        optimiser.param_groups[0]["lr"] = learning_rate(recipe.rate, epoch, recipe.epochs)
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for batch in order.split(protocol.batch):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(dsa.augment(images[batch], generator)), labels[batch])
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - ema_decay(epoch + 1, recipe.ema_decay))
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
    return loss.detach()


@torch.inference_mode()
def accuracy(network: nn.Module, data: Dataset) -> float:
    """Return a network's accuracy on the test split, in percent."""
    model = networks.fused(network.eval())
    device = next(network.parameters()).device
    budget = _CHUNK_PIXELS if device.type == "cpu" else _CHUNK_PIXELS_DEVICE
    correct = 0
    for indices in torch.arange(len(data.test)).split(max(1, budget // data.resolution**2)):
        images = data.normalise(data.test.batch(indices).to(device))
        correct += int((model(images).argmax(1).cpu() == data.test.labels[indices]).sum())
    return 100 * correct / len(data.test)


def has_dropout(network: nn.Module) -> bool:
    """Whether training draws from torch's global generator, which all threads share."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())
