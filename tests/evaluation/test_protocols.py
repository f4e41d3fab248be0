"""Schedules against what the published code did, and the table of protocols."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ld3m.errors import ConfigError
from ld3m.evaluation.protocols import PROTOCOLS, Protocol, Recipe, base_name, ema_decay, find, learning_rate


@pytest.fixture(scope="module")
def recorded(reference):
    return json.loads((reference / "eval_schedule.json").read_text())


@pytest.mark.parametrize("epochs", ["10", "100", "1000"])
def test_learning_rate_is_the_recorded_one(recorded, epochs):
    wanted = recorded["lr"][epochs]
    got = [learning_rate(recorded["base_lr"], epoch, int(epochs)) for epoch in range(int(epochs))]
    assert got == pytest.approx(wanted, rel=0, abs=1e-17)


@pytest.mark.parametrize("epochs", [2, 3, 7, 51])
def test_learning_rate_peaks_twice_and_stays_positive(epochs):
    rates = [learning_rate(1.0, epoch, epochs) for epoch in range(epochs)]
    half = epochs // 2
    assert rates[0] == 1e-7
    assert rates[half] == pytest.approx(1.0, abs=1e-15)
    assert rates[half + 1 : half + 2] in ([], [1.0])
    assert min(rates) > 0


def test_ema_decay_is_the_recorded_one(recorded):
    assert ema_decay(1, 0.995) == 0
    for update, decay in recorded["ema"]["decay_by_k"].items():
        assert ema_decay(int(update), recorded["ema"]["beta"]) == pytest.approx(decay, abs=1e-6)


def test_average_of_growing_weights_is_the_recorded_one(recorded):
    average, got = torch.zeros(1), []
    for update in range(1, 7):
        average.lerp_(torch.tensor([float(update)]), 1 - ema_decay(update, 0.995))
        got.append(float(average))
    assert got == pytest.approx(recorded["ema"]["demo_theta_t_equals_t"]["ema_pytorch_0.8.3"], abs=1e-6)


def test_glad_hard_is_as_published():
    protocol = find("glad-hard")
    assert protocol.networks == ("AlexNet", "VGG11", "ResNet18", "ViT")
    rates = [protocol.recipe(name).rate for name in (*protocol.networks, "ConvNet")]
    assert rates == [1e-3, 1e-4, 1e-3, 1e-3, 1e-3]
    assert {(recipe.epochs, recipe.ema_decay) for recipe in protocol.recipes.values()} == {(1000, 0.995)}
    assert (protocol.batch, protocol.momentum, protocol.weight_decay) == (256, 0.9, 5e-4)


def test_quick_trains_half_width_networks_for_50_to_300_epochs():
    protocol = find("quick")
    assert protocol.networks == ("AlexNet-w0.5", "VGG11-w0.5", "ResNet18-w0.5")
    assert all(50 <= recipe.epochs <= 300 for recipe in protocol.recipes.values())


def test_every_protocol_states_its_deviations_and_knows_the_same_networks():
    for protocol in PROTOCOLS.values():
        assert any("sample standard deviation" in text for text in protocol.deviations), protocol.name
        assert set(protocol.recipes) == {"AlexNet", "VGG11", "ResNet18", "ViT", "ConvNet"}


def test_quick_keeps_the_half_life_as_a_share_of_the_training():
    def half_lives(protocol: Protocol) -> list[float]:
        return [math.log(0.5) / math.log(recipe.ema_decay) / recipe.epochs for recipe in protocol.recipes.values()]

    wanted = half_lives(find("glad-hard"))
    assert half_lives(find("quick")) == pytest.approx(wanted)
    assert half_lives(find("quick").with_epochs(37)) == pytest.approx(wanted)


def test_other_epochs_are_said_and_leave_the_published_average_alone():
    protocol = find("glad-hard").with_epochs(100)
    assert protocol.recipe("VGG11") == Recipe(1e-4, 100, 0.995)
    assert protocol.deviations[-1] == "100 epochs instead of 1000"
    assert find("glad-hard").with_epochs(1000) == find("glad-hard").with_epochs(None) == PROTOCOLS["glad-hard"]


def test_a_recipe_of_the_very_name_comes_before_that_of_the_base_name():
    wide, half = Recipe(1.0, 10, 0.9), Recipe(2.0, 10, 0.9)
    protocol = replace(find("quick"), recipes={"AlexNet": wide, "AlexNet-w0.5": half})
    assert protocol.recipe("AlexNet-w0.5") == half
    assert protocol.recipe("AlexNet-w0.25") == protocol.recipe("AlexNetCIFAR") == wide


@pytest.mark.parametrize(("name", "base"), [("ConvNet-w0.5", "ConvNet"), ("ViTCIFAR", "ViT"), ("VGG11", "VGG11")])
def test_base_name_drops_width_and_variant(name, base):
    assert base_name(name) == base


def test_unknown_protocol_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"glad-hard, quick, d3hr, .*rded; got 'glad'; did you mean 'glad-hard'\?"):
        find("glad")


def test_network_without_recipe_lists_those_that_have_one():
    with pytest.raises(ConfigError, match="no recipe for network 'LeNet'; it knows AlexNet, VGG11"):
        find("glad-hard").recipe("LeNet")


@pytest.mark.parametrize("epochs", [1, 0, -3, 2.5, True])
def test_too_few_epochs_are_refused(epochs):
    with pytest.raises(ConfigError, match=f"epochs is a whole number, at least 2 .* got {epochs}"):
        find("quick").with_epochs(epochs)
