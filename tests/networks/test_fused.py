import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ld3m import networks
from ld3m.networks.fused import _InstanceNormReluPool


def ops_in(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, _InstanceNormReluPool)]


def convnet(resolution: int = 16, **options) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    return networks.build("ConvNet", num_classes=4, resolution=resolution, width=8, generator=draw, **options)


@pytest.mark.parametrize("resolution", [16, 17, 20])  # pooled maps of 17 and 20 px are odd
def test_logits_and_gradients_are_those_of_the_network(resolution):
    network = convnet(resolution).double()
    images, labels = torch.randn(5, 3, resolution, resolution, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    expected, got = (
        torch.autograd.grad(F.cross_entropy(n(images), labels), list(network.parameters()))
        for n in (network, networks.fused(network))
    )
    for wanted, gradient in zip(expected, got, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-13)


def test_every_block_of_a_convnet_is_fused_and_the_network_itself_is_left_alone():
    network = convnet()
    twin = networks.fused(network)
    assert ops_in(twin) == ["features.1", "features.5"]
    assert ops_in(network) == []


def test_names_and_parameters_are_shared():
    network = convnet()
    twin = dict(networks.fused(network).named_parameters())
    assert list(twin) == [name for name, _ in network.named_parameters()]
    assert all(twin[name] is parameter for name, parameter in network.named_parameters())


def test_weights_can_be_given_as_for_the_network_itself():
    network, other = convnet(), {name: 2 * p.detach() for name, p in convnet().named_parameters()}
    images = torch.randn(2, 3, 16, 16)
    expected, got = (torch.func.functional_call(n, other, (images,)) for n in (network, networks.fused(network)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, networks.fused(network)(images), atol=1e-3)


@pytest.mark.parametrize("norm", ["batchnorm", "layernorm", "groupnorm", "none"])
def test_other_norms_are_left_alone(norm):
    network = convnet(norm=norm)
    assert networks.fused(network) is network


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, 1), nn.MaxPool2d(2)])
def test_other_poolings_are_left_alone(pool):
    network = nn.Sequential(nn.GroupNorm(3, 3), nn.ReLU(), pool)
    assert networks.fused(network) is network
