"""Every number of every preset, as a table: a change of any is a change of what runs without a word come out as."""

from dataclasses import asdict

import pytest

from ld3m.config import DistillConfig, resolve
from ld3m.config.presets import PRESETS

NAMES = (
    "iterations", "steps", "width", "real_batch", "num_experts", "expert_training_epochs", "expert_epochs",
    "max_start_epoch", "student_steps", "evaluate",
)  # fmt: skip
COMMON = {  # preset, resolution -> values of NAMES
    ("builtin", 32): (50, 10, 64, 32, 4, 6, 2, 4, 10, "quick"),
    ("paper", 128): (5000, 10, 128, 256, 5000, 15, 3, 5, 20, "glad-hard"),
    ("paper", 256): (10000, 20, 128, 256, 5000, 15, 3, 5, 20, "glad-hard"),
    ("released", 128): (10000, 10, 128, 256, 5000, 15, 2, 2, 10, "glad-hard"),
    ("released", 256): (10000, 10, 128, 256, 5000, 15, 2, 2, 10, "glad-hard"),
}
ITERATIONS = {("paper", "glad"): 1000}  # in a space of its own
RATES = {  # preset, space -> (lr, lr_codes, layer) for dc, dm, mtt
    ("builtin", "ld3m"): ((0.3, None, None), (0.3, None, None), (100.0, None, None)),
    ("builtin", "autoencoder"): ((0.3, None, None), (0.3, None, None), (100.0, None, None)),
    ("builtin", "pixel"): ((1.0, None, None), (1.0, None, None), (100.0, None, None)),
    ("builtin", "glad"): ((3.0, 0.1, 4), (3.0, 0.1, 4), (3000.0, 100.0, 4)),
    ("paper", "ld3m"): ((1e-3, None, None), (1e-2, None, None), (10.0, None, None)),
    ("paper", "pixel"): ((1e-3, None, None), (1e-2, None, None), (10.0, None, None)),
    ("paper", "glad"): ((1.0, 1e-3, 16), (10.0, 1e-2, 20), (1e4, 10.0, 12)),
    ("released", "ld3m"): ((0.1, None, None), (1.0, None, None), (1000.0, None, None)),
    ("released", "autoencoder"): ((0.1, None, None), (1.0, None, None), (1000.0, None, None)),
    ("released", "glad"): ((1.0, 1e-3, 16), (10.0, 1e-2, 20), (1e4, 10.0, 5)),
}


@pytest.mark.parametrize(("name", "space"), RATES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_values_of_a_preset(name, space, number):
    algorithm = ("dc", "dm", "mtt")[number]
    for (preset, resolution), values in COMMON.items():
        if preset != name:
            continue
        found = asdict(resolve(DistillConfig(preset=name, space=space, algorithm=algorithm, resolution=resolution), 64))
        expected = dict(zip(NAMES, values, strict=True))
        expected["iterations"] = ITERATIONS.get((name, space), expected["iterations"])
        assert {key: found[key] for key in NAMES} == expected
        assert tuple(found[key] for key in ("lr", "lr_codes", "layer")) == RATES[name, space][number]


def test_no_preset_says_more():
    """What is added to a preset is added here as well."""
    assert {name: sorted(set(values) - {"ld3m", "autoencoder"}) for name, values in PRESETS.items()} == {
        "builtin": sorted({*NAMES, "lr", "pixel", "glad"}),
        "paper": sorted({*NAMES, "lr", "glad"}),
        "released": sorted({*NAMES, "lr", "glad"}),
    }


@pytest.mark.parametrize(("resolution", "preset"), [(127, "builtin"), (128, "paper"), (None, "builtin")])
def test_the_preset_follows_from_the_resolution(resolution, preset):
    assert resolve(DistillConfig(resolution=resolution), 64).preset == preset


@pytest.mark.parametrize("name", NAMES[:-1])
def test_what_is_given_wins(name):
    assert getattr(resolve(DistillConfig(preset="paper", **{name: 7}), 128), name) == 7
