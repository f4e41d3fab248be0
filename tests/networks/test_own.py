"""Networks of the user's own, and the batch norm forms of the soft-label recipes."""

import sys
import types

import pytest
import torch
from torch import nn

from ld3m import networks
from ld3m.errors import ConfigError
from ld3m.networks import Zoo

SIZE = {"num_classes": 5, "resolution": 8}


def linear(num_classes, resolution):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * resolution**2, num_classes))


def pooled(count):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, count), nn.Dropout(0.5))


@pytest.mark.parametrize("factory", [linear, pooled])
def test_a_factory_makes_fresh_networks_that_follow_from_the_generator(factory):
    zoo = Zoo({"mine": factory})
    zoo.check("mine", **SIZE)
    first, again, other = (
        zoo.build("mine", **SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    weights = [next(network.parameters()) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.training


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    Zoo({"mine": pooled}).build("mine", **SIZE)
    assert torch.equal(before, torch.get_rng_state())


def test_an_import_path_is_a_factory(monkeypatch):
    module = types.ModuleType("user_networks")
    module.tiny = linear
    monkeypatch.setitem(sys.modules, "user_networks", module)
    zoo = Zoo(["user_networks:tiny", "ConvNet-w0.1"])
    assert zoo.names == ("user_networks:tiny", "ConvNet-w0.1") and list(zoo.factories) == ["user_networks:tiny"]
    assert zoo.build("user_networks:tiny", **SIZE)(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    assert type(zoo.build("ConvNet-w0.1", **SIZE)).__name__ == "ConvNet"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda n: {"weights": n}, "returned a dict, not a torch.nn.Module"),
        (lambda n: nn.Flatten(), "a module without weights"),
        (lambda n: linear(n + 2, 8), r"should return logits \(2, 5\) for two images, got \(2, 7\)"),
        (lambda n: nn.Linear(4, n), r"does not take images \(2, 3, 8, 8\): RuntimeError"),
        (lambda: nn.Linear(4, 2), "failed for 5 classes: TypeError"),
    ],
)
def test_factories_of_something_else_are_refused(factory, message):
    with pytest.raises(ConfigError, match=message):
        Zoo({"mine": factory}).check("mine", **SIZE)


def test_one_module_for_all_is_refused():
    network = linear(5, 8)
    with pytest.raises(ConfigError, match="the same module twice"):
        Zoo({"mine": lambda n: network}).check("mine", **SIZE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:make", "cannot be imported: No module named 'nowhere_at_all'"),
        ("torch.nn:NoSuch", "cannot be imported: .* 'NoSuch'"),
        ("a b:c", "should read package.module:factory"),
    ],
)
def test_paths_to_nothing_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        Zoo([name])


def test_what_cannot_be_called_is_refused():
    with pytest.raises(ConfigError, match="is given as a int"):
        Zoo({"mine": 3})


def test_timm_is_used_where_it_is_there_and_named_where_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm: pip install 'ld3m\[timm\]'"):
        Zoo(["timm:resnet18"])
    fake = types.ModuleType("timm")
    fake.is_model = lambda name: name == "tiny"

    def create_model(name, num_classes, pretrained, **more):
        if more:
            raise TypeError("no such option")
        assert not pretrained
        return linear(num_classes, 8)

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert Zoo(["timm:tiny"]).check("timm:tiny", **SIZE)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    with pytest.raises(ConfigError, match="timm has no network 'huge'"):
        Zoo(["timm:huge"])


@pytest.mark.parametrize(("name", "count"), [("ResNet18BN", 11_689_512), ("ResNet50BN", 25_557_032)])
def test_batch_norm_residual_networks_have_the_parameters_of_torchvisions(name, count):
    network = networks.blueprint(name, num_classes=1000, resolution=224)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(("resolution", "kernel", "side"), [(32, 3, 32), (64, 3, 64), (128, 7, 32), (224, 7, 56)])
def test_small_images_get_the_modified_stem(resolution, kernel, side):
    network = networks.build("ResNet18BN", num_classes=2, resolution=resolution)
    assert network.stem[0].kernel_size == (kernel, kernel)
    assert network.eval().stem(torch.zeros(1, 3, resolution, resolution)).shape[-1] == side


def test_convnet_with_batch_norm_has_running_statistics():
    network = networks.build("ConvNetBN-w0.1", num_classes=3, resolution=8)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 1
    assert not any(isinstance(module, nn.GroupNorm) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "base"), [("ConvNet-6-w0.5", "ConvNet-6"), ("ResNetAP-10", "ResNetAP-10"), ("ResNet18BN", "ResNet18BN")]
)
def test_names_with_a_hyphen_keep_it(name, base):
    assert networks.base_name(name) == base


def test_convnet_6_needs_64_pixels():
    with pytest.raises(ConfigError, match="resolution of at least 2"):
        networks.blueprint("ConvNet-6", num_classes=10, resolution=32)


def test_grey_images_have_a_network_of_one_channel():
    from ld3m.networks.one_channel import one_channel

    def make() -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        return one_channel(networks.build("ConvNet-w0.1", num_classes=3, resolution=8, generator=generator), generator)

    network = make()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape == (13, 1, 3, 3) and first.weight.abs().max() <= 1 / 3 and first.weight.abs().max() > 0.2
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(images), network(images[:, :1].expand(-1, 3, -1, -1)))
    assert torch.equal(network(images), make()(images))
    plain = pooled(3)
    assert one_channel(plain) is plain
