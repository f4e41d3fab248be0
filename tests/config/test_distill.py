"""Settings: types, ranges, presets, YAML."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m import config as configuration
from ld3m.config import PRESETS, DistillConfig, ResolvedDistillConfig, differences, read_yaml, resolve, to_yaml
from ld3m.config.fields import fits
from ld3m.errors import ConfigError


def build(settings):
    return configuration.build(settings, DistillConfig())


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("learn", ("latents",), ("latents",)),
        ("learn", ["conditioning"], ("conditioning",)),
        ("class_ids", [3, 1], (3, 1)),
        ("class_ids", None, None),
        ("lr", 1, 1),
        ("guidance_scale", 0, 0),
        ("memory_budget", 10**9, 10**9),
        ("memory_budget", "8GB", "8GB"),
        ("prior", Path("a/b.ckpt"), "a/b.ckpt"),
        ("init", Path("there"), "there"),
        ("device", torch.device("cuda:1"), "cuda:1"),
        ("dtype", torch.bfloat16, "bfloat16"),
        ("augment", False, False),
    ],
)
def test_accepted_and_stored_as(name, value, stored):
    config = build({name: value})
    assert getattr(config, name) == stored
    assert differences(DistillConfig(), config) == (
        [f"{name} {getattr(DistillConfig(), name)!r} → {stored!r}"] * (getattr(DistillConfig(), name) != stored)
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ipc", "3", "ipc is int, got '3'"),
        ("ipc", True, "ipc is int, got True"),
        ("ipc", 1.5, "ipc is int, got 1.5"),
        ("augment", "no", "augment is bool, got 'no'"),
        ("lr", "high", r"lr is float \| None, got 'high'"),
        ("lr", True, r"lr is float \| None, got True"),
        ("learn", "latents", r"learn is tuple\[str, \.\.\.\], got 'latents'"),
        ("learn", [1], r"learn is tuple\[str, \.\.\.\], got \[1\]"),
        ("class_ids", [0.5, 1], r"class_ids is tuple\[int, \.\.\.\] \| None, got \[0.5, 1\]"),
        ("class_ids", ["a"], "class_ids is"),
        ("schedule", abs, "schedule is str"),
        ("seed", "abc", "seed is int, got 'abc'"),
        ("itterations", 3, "'itterations' is not a setting of distill; did you mean 'iterations'"),
        ("qqq", 3, "'qqq' is not a setting of distill; known are ipc, .*, prior, prior_config"),
    ],
)
def test_wrong_types_and_names_are_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        build({name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *[(name, 0, f"{name} is a whole number, at least 1; got 0") for name in ("ipc", "iterations", "steps")],
        *[(name, -1, f"{name} is a whole number, at least 1; got -1") for name in ("resolution", "real_batch")],
        ("latent_size", 0, "latent_size is a whole number"),
        ("num_experts", 0, "num_experts is a whole number"),
        ("student_steps", 0, "student_steps is a whole number"),
        ("steps", 1001, "steps is a whole number from 1 to 1000, got 1001"),
        ("lr", 0.0, "lr is a number above 0, got 0.0"),
        ("lr", float("nan"), "lr is a number above 0, got nan"),
        ("lr", float("inf"), "lr is a number above 0, got inf"),
        ("student_lr", -0.1, "student_lr is a number above 0, got -0.1"),
        ("guidance_scale", float("nan"), "guidance_scale is a finite number, got nan"),
        ("retain", 1.5, "retain is a fraction from 0 to 1, got 1.5"),
        ("retain", float("nan"), "retain is a fraction"),
        ("metric", "l2", "metric is one of layerwise-cosine, mse, cosine; got 'l2'"),
        ("noise", "none", "noise is one of fresh, fixed; got 'none'"),
        ("unroll", "none", "unroll is one of exact, tesla; got 'none'"),
        ("init_conditioning", "zero", "init_conditioning is one of class, normal, null; got 'zero'"),
        ("preset", "fast", "preset is one of builtin, paper, released; got 'fast'"),
        ("dtype", "float16", "dtype is one of float32, bfloat16, float64; got 'float16'"),
        ("learn", (), r"learn names one or both of latents, conditioning; got \[\]"),
        ("learn", ("latents", "pixels"), r"learn names one or both of latents, conditioning; got \['latents', 'pixels"),
    ],
)
def test_values_out_of_range_are_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        build({name: value})


def test_experts_are_for_trajectories_alone():
    with pytest.raises(ConfigError, match="experts are for algorithm mtt, and the algorithm is 'dc'; leave them out"):
        build({"experts": "there"})


def test_a_number_that_yaml_takes_for_a_word_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nsteps: 5\nmemory_budget: 8GB\n")
    config = build(read_yaml(tmp_path / "a.yaml"))
    assert (config.lr, config.steps, config.memory_budget) == (1e-3, 5, "8GB")
    with pytest.raises(ConfigError, match=r"lr is float \| None, got 'fast'"):
        build({"lr": "fast"})


@pytest.mark.parametrize(
    ("resolution", "algorithm", "expected"),
    [
        (32, "dc", {"preset": "builtin", "steps": 10, "evaluate": "quick"}),
        (128, "dc", {"preset": "paper", "lr": 1e-3, "iterations": 5000, "steps": 10, "real_batch": 256}),
        (128, "dm", {"preset": "paper", "lr": 1e-2, "evaluate": "glad-hard"}),
        (256, "dm", {"preset": "paper", "lr": 1e-2, "iterations": 10000, "steps": 20}),
        (
            128,
            "mtt",
            {"lr": 10.0, "expert_epochs": 3, "max_start_epoch": 5, "student_steps": 20, "expert_training_epochs": 15},
        ),
    ],
)
def test_the_preset_follows_the_resolution(resolution, algorithm, expected):
    """The figures are those of the paper's supplement."""
    config = resolve(DistillConfig(algorithm=algorithm), resolution)
    assert expected.items() <= vars(config).items()
    assert (config.resolution, config.guidance_scale, config.dtype) == (resolution, 3.0, "float32")


def test_the_builtin_preset_is_sized_for_a_cpu():
    config = resolve(DistillConfig(), 32)
    assert config.real_batch <= 64
    assert config.ipc == 1


@pytest.mark.parametrize(("algorithm", "lr"), [("dc", 0.1), ("dm", 1.0), ("mtt", 1000.0)])
def test_the_released_preset_holds_the_command_lines_defaults(algorithm, lr):
    config = resolve(DistillConfig(algorithm=algorithm, preset="released"), 256)
    assert (config.lr, config.steps) == (lr, 10)
    assert (config.expert_epochs, config.max_start_epoch, config.student_steps) == (2, 2, 10)


def test_what_is_given_wins_over_the_preset():
    given = DistillConfig(preset="paper", lr=7.0, steps=3, resolution=64, evaluate="none", iterations=1)
    config = resolve(given, 256)
    assert (config.lr, config.steps, config.resolution, config.evaluate, config.iterations) == (7.0, 3, 64, "none", 1)
    assert config.real_batch == PRESETS["paper"]["real_batch"]


def test_pixel_space_has_learning_rates_of_its_own():
    pixel, latent = (resolve(DistillConfig(algorithm="dm", space=space), 32).lr for space in ("pixel", "ld3m"))
    assert pixel == PRESETS["builtin"]["pixel"]["lr"]["dm"] != latent


@given(
    st.sampled_from(("dc", "dm", "mtt")),
    st.integers(1, 1000),
    st.none() | st.floats(1e-6, 1e6),
    st.none() | st.lists(st.integers(0, 1000), max_size=4),
    st.none() | st.integers(1, 2048),
    st.booleans(),
)
def test_yaml_gives_the_same_settings_back(tmp_path_factory, algorithm, steps, lr, class_ids, resolution, augment):
    values = {"algorithm": algorithm, "steps": steps, "lr": lr, "class_ids": class_ids, "resolution": resolution}
    config = build(values | {"augment": augment, "learn": ("latents",)})
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    for written in (config, resolve(config, 32)):
        path.write_text(to_yaml(written, data="some: set"))
        content = read_yaml(path)
        assert content.pop("data") == "some: set"
        assert differences(build(content), written) == []


def test_yaml_names_may_have_dashes(tmp_path):
    (tmp_path / "c.yaml").write_text("guidance-scale: 2\nreal_batch: 5\n")
    assert read_yaml(tmp_path / "c.yaml") == {"guidance_scale": 2, "real_batch": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"!!python/object/apply:os.mkdir [PWNED]\n", "is not plain YAML"),
        (b"a: [1\n", "is not plain YAML"),
        (b"- a\n- b\n", r"holds names and values \(name: value\), got list"),
        (b"", "holds names and values"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=f"config c.yaml {message}"):
        read_yaml(Path("c.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nosuch\.yaml cannot be read"):
        read_yaml(tmp_path / "nosuch.yaml")


def test_differences_name_old_and_new():
    stored = DistillConfig(lr=0.1)
    assert differences(stored, stored) == []
    assert differences(stored, replace(stored, lr=0.2, seed=3)) == ["seed 0 → 3", "lr 0.1 → 0.2"]


@pytest.mark.parametrize("settings", [{"lr": np.float64(0.25)}, {"ipc": np.int64(3)}, {"class_ids": [np.int32(2), 1]}])
def test_numbers_of_numpy_are_written_as_numbers(settings, tmp_path):
    config = build(settings)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert build(read_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(("algorithm", "space"), [("dc", "ld3m"), ("mtt", "glad"), ("dm", "pixel")])
def test_nothing_is_open_that_a_run_needs(algorithm, space):
    config = resolve(DistillConfig(algorithm=algorithm, space=space), 32)
    kinds = {field.name: field.type for field in fields(ResolvedDistillConfig)}
    assert all(fits(value, kinds[name]) for name, value in vars(config).items())
    assert not fits(None, kinds["lr"]) and not fits(None, kinds["cuda_graphs"])
    with pytest.raises(TypeError, match="resolve makes such a config"):
        ResolvedDistillConfig()


def test_a_preset_without_a_value_asks_for_it(monkeypatch):
    monkeypatch.setitem(PRESETS, "builtin", {k: v for k, v in PRESETS["builtin"].items() if k != "lr"})
    with pytest.raises(ConfigError, match="preset 'builtin' has no lr for algorithm 'dc' in space 'ld3m'; give lr"):
        resolve(DistillConfig(), 32)
    assert resolve(DistillConfig(lr=2.0), 32).lr == 2.0


def test_a_loss_that_no_preset_knows_has_the_values_of_gradient_matching(monkeypatch):
    monkeypatch.setitem(PRESETS, "builtin", PRESETS["builtin"] | {"lr": {"dc": 7.0, "dm": 1.0}})
    assert resolve(DistillConfig(algorithm="mtt"), 32).lr == 7.0
