"""Names, options, errors and initialisation."""

import pytest
import torch
from torch import nn

from ld3m import networks
from ld3m.errors import ConfigError
from ld3m.networks.alexnet import AlexNet
from ld3m.networks.convnet import ConvNet
from ld3m.networks.resnet import ResNet18
from ld3m.networks.vgg import VGG11
from ld3m.networks.vit import ViT

PLAIN = ("AlexNet", "VGG11", "ResNet18", "ViT")


def shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in network.named_parameters()]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_name_at_32_px_is_the_cifar_version(name):
    plain = networks.blueprint(name, num_classes=7, resolution=32)
    assert shapes(plain) == shapes(networks.blueprint(f"{name}CIFAR", num_classes=7, resolution=32))


@pytest.mark.parametrize(("resolution", "depth"), [(16, 2), (28, 2), (32, 3), (64, 4), (128, 5), (256, 6)])
def test_convnet_depth_follows_resolution(resolution, depth):
    network = networks.blueprint("ConvNet", num_classes=10, resolution=resolution)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == depth
    assert network.classifier.in_features == 128 * (resolution // 2**depth) ** 2


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("name", list(networks.NETWORKS)[:5])
def test_half_width(name, resolution):
    full = networks.blueprint(name, num_classes=5, resolution=resolution)
    half = networks.build(f"{name}-w0.5", num_classes=5, resolution=resolution, generator=torch.Generator())
    widths = [
        [m.weight.shape[0] for m in net.modules() if isinstance(m, nn.Conv2d | nn.GroupNorm)] for net in (full, half)
    ]
    assert widths[1] == [width // 2 for width in widths[0]]
    images = torch.rand(2, 3, resolution, resolution)
    assert half(images).shape == (2, 5)
    assert half.embed(images).shape[1] == full.to_empty(device="cpu").embed(images).shape[1] // 2


def test_half_width_vit_keeps_heads_of_64():
    half = networks.blueprint("ViT-w0.5", num_classes=5, resolution=64)
    attention, feed_forward = (layer.fn for layer in half.transformer.layers[0])
    assert (attention.heads, attention.to_qkv.weight.shape) == (4, (3 * 256, 256))
    assert feed_forward.net[0].weight.shape == (256, 256)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("ResNet18", 32), *((n, r) for n in ("ConvNet", "AlexNet", "VGG11", "ViT") for r in (32, 64))],
)
def test_embed_is_what_enters_the_last_linear_layer(name, resolution):
    network = networks.build(f"{name}-w0.25", num_classes=5, resolution=resolution, generator=torch.Generator()).eval()
    images = torch.rand(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(1))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(network.embed(images)), network(images), rtol=1e-5, atol=1e-6)


def test_resnet_embeds_by_4x4_pools():
    network = networks.build("ResNet18-w0.125", num_classes=5, resolution=64, generator=torch.Generator())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    embedded = network.embed(images).view(2, 64, 2, 2)  # an 8x8 map of 64 channels
    torch.testing.assert_close(network.classifier(embedded.mean((2, 3))), network(images))


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm", "layernorm", "groupnorm", "none"])
def test_initialisation_is_that_of_torch(norm):
    torch.manual_seed(3)
    expected = ConvNet(10, 32, width=8, norm=norm).state_dict()
    got = networks.build(
        "ConvNet", num_classes=10, resolution=32, width=8, norm=norm, generator=torch.Generator().manual_seed(3)
    ).state_dict()
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("constructor", [AlexNet, VGG11, ResNet18])
def test_initialisation_of_the_other_convolutional_networks_is_that_of_torch(constructor):
    torch.manual_seed(3)
    expected = constructor(10, 32, scale=0.1)
    got = networks.initialize(constructor(10, 32, scale=0.1), torch.Generator().manual_seed(3))
    for (name, value), other in zip(expected.named_parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-8, msg=name)


def test_vit_initialisation():
    network = networks.build("ViT", num_classes=10, resolution=256, generator=torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    assert abs(float(network.pos_embedding.mean())) < 0.02
    assert abs(float(network.pos_embedding.std()) - 1) < 0.02
    assert abs(float(network.cls_token.std()) - 1) < 0.1
    weight = network.transformer.layers[3][1].fn.net[0].weight
    bound = 512**-0.5
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert abs(float(weight.std()) - bound / 3**0.5) < 0.01 * bound


def test_one_seed_gives_one_network_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (
        networks.build("ViT-w0.125", num_classes=3, resolution=32, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.ndim > 1:
            assert not torch.equal(a, c)


def test_without_a_generator_the_global_one_is_drawn_from():
    torch.manual_seed(5)
    first = networks.build("ConvNet", num_classes=3, resolution=16, width=4)
    second = networks.build(
        "ConvNet", num_classes=3, resolution=16, width=4, generator=torch.Generator().manual_seed(5)
    )
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_vit_patches_are_ordered_by_row_column_channel():
    network = ViT(2, 8, patch=4, depth=1)
    images = torch.arange(3 * 64.0).view(1, 3, 8, 8)
    patches = network.to_patch_embedding[0](images)
    assert patches.shape == (1, 4, 48)
    for patch, row, column, channel in [(0, 0, 0, 0), (1, 2, 3, 1), (2, 1, 0, 2), (3, 3, 3, 2)]:
        pixel = images[0, channel, row + 4 * (patch // 2), column + 4 * (patch % 2)]
        assert patches[0, patch, (row * 4 + column) * 3 + channel] == pixel


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nosuch", {}, r"unknown network 'nosuch'\. Known: ConvNet, AlexNet, VGG11, ResNet18, ViT"),
        ("resnet18", {}, r"did you mean ResNet18\?"),
        ("AlexNte", {}, r"did you mean AlexNet\?"),
        ("AlexNet-w0", {}, "unknown network 'AlexNet-w0'"),
        ("AlexNet-half", {}, "did you mean AlexNet.*-w0.5"),
        ("AlexNetCIFAR", {"resolution": 64}, "AlexNetCIFAR is for 32 px alone, got resolution=64; take AlexNet"),
        ("AlexNet", {"resolution": 4}, "resolution >= 8, got 4"),
        ("VGG11", {"resolution": 16}, "resolution >= 32, got 16"),
        ("ResNet18", {"resolution": 16}, ">= 32, got 16"),
        ("ViT", {"resolution": 40}, "multiple of its patch of 16 pixels.*resolution=40"),
        ("ConvNet", {"resolution": 32, "depth": 6}, r"at least 2 \*\* depth.*depth=6"),
        ("ConvNet", {"depth": 0}, "depth >= 1"),
        ("ConvNet", {"width": 0}, "width >= 1"),
        ("ConvNet", {"norm": "nosuch"}, "norm must be one of instancenorm, batchnorm"),
        ("ConvNet", {"norm": "groupnorm", "width": 6}, "multiple of 4, got 6"),
        ("ConvNet", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("AlexNet", {"width": 64, "norm": "none"}, "AlexNet takes no norm, width.*-w0.5"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ConfigError, match=message):
        networks.build(name, **{"num_classes": 10, "resolution": 32} | options)
