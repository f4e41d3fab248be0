"""torch's default initialisation, drawn from a generator: one seed gives one network, without global state."""

import torch
from torch import nn


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all weights anew, in the order of `network.modules()`, and return the network.

    Convolutions and linear layers: weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Norms: 1 and 0. What a module
    of another kind owns itself (positions and class token of ViT): N(0, 1). Where the network says has_fan_out_init,
    convolutions, which have no biases there: N(0, 2 / (k * k * C_out)).

    Args:
        generator: on the device of the weights; None draws from torch's global generator.
    """
    has_fan_out_init = getattr(network, "has_fan_out_init", False)
    for module in network.modules():
        if has_fan_out_init and isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel()  # C_out * k * k
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, generator=generator)
    return network
