"""torch's default initialisation, drawn from a generator: one seed gives one network, without global state."""

import torch
from torch import nn


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all weights anew, in the order of `network.modules()`, and return the network.

    Convolutions and linear layers: weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Norms: 1 and 0. What a module
    of another kind owns itself (positions and class token of ViT): N(0, 1).

    Args:
        generator: on the device of the weights; None draws from torch's global generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, generator=generator)
    return network
