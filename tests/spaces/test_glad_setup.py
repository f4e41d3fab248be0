"""The start of a run in the space "glad", the reasons to refuse one, and the run itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ld3m
from ld3m.config import DistillConfig, resolve
from ld3m.distillation.job import objective_of, prepare
from ld3m.distillation.loop import _Loop
from ld3m.distillation.objectives import ClassMatching
from ld3m.errors import ConfigError, InputError
from ld3m.matching import dm
from ld3m.priors import load_stylegan
from ld3m.runtime.storage import load_tensors
from ld3m.spaces import GladSpace
from ld3m.spaces.glad import generator_name

SETTINGS = {"space": "glad", "algorithm": "dm", "iterations": 3, "width": 4, "real_batch": 4, "evaluate": "none"}


@pytest.fixture
def make(coloured):
    """Prepare a run on `coloured`."""
    return lambda **more: prepare(coloured, SETTINGS | more, out=None, resume=False, overwrite=False)


@pytest.fixture
def go(coloured):
    return lambda out=None, resume=False, **more: ld3m.distill(
        coloured, out=out, resume=resume, progress=False, **(SETTINGS | more)
    )


@pytest.mark.parametrize(
    ("resolution", "name"), [(None, 32), (16, 32), (64, 32), (128, 128), (224, 128), (256, 256), (512, 256)]
)
def test_the_generator_follows_the_resolution(resolution, name):
    assert generator_name(DistillConfig(space="glad", resolution=resolution)) == f"random:stylegan-{name}"
    assert generator_name(DistillConfig(space="glad", resolution=resolution, prior="a.safetensors")) == "a.safetensors"


@pytest.mark.parametrize(
    ("preset", "algorithm", "expected"),
    [
        ("paper", "dc", (1.0, 1e-3, 16, 1000)),
        ("paper", "dm", (10.0, 1e-2, 20, 1000)),
        ("paper", "mtt", (1e4, 10.0, 12, 1000)),
        ("released", "mtt", (1e4, 10.0, 5, 10000)),
    ],
)
def test_the_presets_are_the_published_settings(preset, algorithm, expected):
    config = DistillConfig(space="glad", preset=preset, algorithm=algorithm)
    for resolution in (128, 256):
        got = resolve(config, resolution, 31)
        assert (got.lr, got.lr_codes, got.layer, got.iterations) == expected
    assert resolve(config, 128, 18).layer == min(expected[2], 16)  # one convolution and the image's layer are left
    ld3m_config = resolve(DistillConfig(preset=preset, algorithm=algorithm), 128)
    assert (ld3m_config.layer, ld3m_config.lr_codes) == (None, None)


def test_the_start_is_one_random_code_an_image(make):
    job, generator = make(ipc=2), load_stylegan("random:stylegan-32")
    features, codes = job.space.parameters["features"].detach(), job.space.parameters["codes"].detach()
    assert (features.shape, codes.shape) == ((6, 37, 52, 52), (6, 4, 64))
    assert torch.equal(codes, codes[:, :1].expand_as(codes))
    first = codes[:, :1].expand(-1, 9, -1)
    torch.testing.assert_close(features, generator.features(first, 4), atol=1e-5, rtol=1e-5)
    assert (codes[1:] - codes[:-1]).abs().amax((1, 2)).min() > 0.1
    again, other = make(ipc=2), make(ipc=2, seed=1)
    assert torch.equal(again.space.parameters["features"], features)
    assert not torch.equal(other.space.parameters["codes"], codes)


def test_features_that_are_too_large_or_not_finite_are_mended(make):
    generator = load_stylegan("random:stylegan-32")
    generator.layers[3].bias[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e3, -1e3])
    clean = make().space.parameters["features"].detach()
    features = make(prior=generator).space.parameters["features"].detach()
    assert torch.isfinite(features).all()
    assert features[:, 3].max() == 10
    assert features[:, 4].min() == -10
    assert torch.equal(features[:, 0], torch.zeros_like(features[:, 0]))
    torch.testing.assert_close(features[:, 5:], clean[:, 5:])


def test_features_may_start_from_noise_of_their_own_statistics(make):
    made, noise = (make(init=init).space.parameters["features"].detach().flatten(1) for init in ("real", "noise"))
    torch.testing.assert_close(noise.mean(1), made.mean(1), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.std(1), made.std(1), atol=0.01, rtol=0)
    assert torch.corrcoef(torch.stack([made[0], noise[0]]))[0, 1].abs() < 0.05


@pytest.mark.parametrize(("learn", "expected"), [(("latents",), [True, False]), (("conditioning",), [False, True])])
def test_learn_chooses_features_or_codes(learn, expected, make):
    assert [p.requires_grad for p in make(learn=learn).space.parameters.values()] == expected


def test_a_generator_with_classes_starts_from_those_of_the_data(make, stylegan_file, stylegan):
    def codes(**more):
        job = make(prior=str(stylegan_file), layer=5, **more)
        return job.space.parameters["codes"].detach()

    chosen, other, null = codes(class_ids=(2, 0, 1)), codes(class_ids=(2, 3, 1)), codes()
    assert chosen.shape == (3, 11, 64)
    assert torch.equal(chosen[::2], other[::2])
    assert not torch.equal(chosen[1], other[1])
    assert torch.equal(null, codes(class_ids=(10, 10, 10)))
    with pytest.raises(InputError, match=r"class_ids of tiny.safetensors go from 0 to 9, and 10 is the null class"):
        codes(class_ids=(0, 1, 11))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 8}, r"layer is from 0 to 7 for the 8 layers of random:stylegan-32, got 8"),
        ({"layer": -1}, r"layer is from 0 to 7 .*, got -1"),
        ({"class_ids": (0, 1, 2)}, r"random:stylegan-32 has no classes to match; leave class_ids out"),
        ({"prior": "random:tiny"}, r"generator is one of random:stylegan-xl-128, .*; got 'random:tiny'"),
        ({"prior_config": "x.yaml"}, r"prior_config goes with a CompVis checkpoint"),
        ({"lr_codes": 0.0}, r"lr_codes is a number above 0, got 0.0"),
        ({"init": "kmeans"}, r"init 'kmeans' needs an encoder, which space 'glad' has not; take 'real' or 'noise'"),
        ({"init": "nosuch"}, r"init is 'real', 'noise' or the folder of a distilled set, got 'nosuch'"),
        ({"space": "ld3m", "prior": "random:stylegan-32"}, r"random priors are random:cin256, .*; got .*stylegan-32"),
        (
            {"memory_budget": "1MB"},
            r"memory_budget of 1.00 MB does not hold the weights of .* and the activations of one image from layer 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, message, make):
    with pytest.raises((ConfigError, InputError), match=message):
        make(**settings)


def test_a_loaded_prior_has_to_be_of_the_spaces_kind(make, tiny_prior):
    with pytest.raises(ConfigError, match=r"space 'glad' takes a StyleGAN as prior, got random:tiny; choose one that"):
        make(prior=tiny_prior)
    with pytest.raises(
        ConfigError, match=r"space 'pixel' takes a latent diffusion model as prior, got random:stylegan"
    ):
        make(space="pixel", prior=load_stylegan("random:stylegan-32"))


@pytest.mark.parametrize("algorithm", ["dm", "dc", "mtt"])
def test_a_run_keeps_what_it_learnt(algorithm, go, tmp_path):
    more = {"num_experts": 2, "expert_training_epochs": 2, "max_start_epoch": 2, "expert_epochs": 1, "student_steps": 2}
    result = go(tmp_path / "run", algorithm=algorithm, lr=0.5, lr_codes=0.05, layer=6, **more)
    assert result.images.shape == (3, 3, 32, 32)
    assert result.parameters["features"].shape == (3, 16, 52, 52)
    assert result.parameters["codes"].shape == (3, 2, 64)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm_features"] > 0 and line["grad_norm_codes"] > 0 for line in lines)
    state, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert {"features", "codes", "momentum/features", "momentum/codes"} <= set(state)
    loaded = ld3m.load(tmp_path / "run")
    for name, tensor in result.parameters.items():
        assert torch.equal(loaded.parameters[name], tensor)
        assert torch.equal(state[name], tensor)
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["prior"], stored["layer"], stored["lr"], stored["lr_codes"]) == ("builtin", 6, 0.5, 0.05)
    again = go(init=str(result.path), algorithm="dm", iterations=1, lr=1e-9, lr_codes=1e-9, layer=6)
    torch.testing.assert_close(again.images, result.images, atol=1e-4, rtol=0)
    with pytest.raises(
        ConfigError, match=r"init .*run holds {'features': \(3, 16, 52, 52\), .*this run needs .*37, 52"
    ):
        go(init=str(result.path), layer=4)


def test_features_and_codes_have_rates_of_their_own(make, monkeypatch):
    """The first step of SGD is rate times gradient."""
    job = make(lr=0.25, lr_codes=0.5)
    before = {name: parameter.detach().clone() for name, parameter in job.space.parameters.items()}
    _Loop(job, objective_of(job, False))._iterate(0)
    for name, rate in (("features", 0.25), ("codes", 0.5)):
        parameter = job.space.parameters[name]
        torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad)


@pytest.mark.parametrize("iteration", [0, 2])
def test_an_interrupted_run_ends_with_the_same_bytes(iteration, go, tmp_path, monkeypatch):
    whole = go(tmp_path / "whole").path
    with monkeypatch.context() as patch:
        backward = ClassMatching.backward

        def stopping(self, k):
            if k == iteration:
                raise KeyboardInterrupt
            return backward(self, k)

        patch.setattr(ClassMatching, "backward", stopping)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut")
    resumed = go(tmp_path / "cut", resume=True).path
    for name in ("distilled.safetensors", "checkpoint.safetensors", "grid.png"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_the_loss_of_one_network_and_batch_falls(make):
    job = make(algorithm="dc")
    objective = objective_of(job, False)
    loop = _Loop(job, objective)
    before = objective.backward(0)
    for iteration in range(8):
        loop._iterate(iteration)
        loop.optimizer.keep(iteration + 1)
    assert objective.backward(0) < 0.9 * before


def test_a_small_budget_changes_nothing_but_memory(go):
    whole, small = go(ipc=3), go(ipc=3, memory_budget="4MB")
    assert (whole.config["retain"], small.config["retain"]) == (1.0, 0.0)
    torch.testing.assert_close(whole.images, small.images, atol=1e-3, rtol=0)


def test_an_iteration_that_runs_out_of_memory_is_repeated_with_less(go, monkeypatch, caplog):
    whole = go(ipc=3)
    losses, held = dm.dm_loss, []

    def lossy(*args, **kwargs):
        if not held:
            raise MemoryError
        return losses(*args, **kwargs)

    apply = GladSpace.apply_plan
    monkeypatch.setattr(GladSpace, "apply_plan", lambda self, plan: (held.append(plan), apply(self, plan)))
    monkeypatch.setattr(dm, "dm_loss", lossy)
    result = go(ipc=3)
    assert [plan.micro_batch for plan in held] == [6]  # of nine images
    assert re.search(r"out of memory in iteration 0; it is repeated with less: [\d.]+ MB at most of ", caplog.text)
    torch.testing.assert_close(result.images, whole.images, atol=1e-3, rtol=0)


def test_the_command_works_from_any_folder(tmp_path):
    root = Path(ld3m.__file__).parents[1]
    command = [sys.executable, "-m", "ld3m", "distill", "--space", "glad", "--iterations", "2", "--evaluate", "none"]
    command += ["--real-batch", "4", "--width", "8", "--out", "run", "--device", "cpu", "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "10 images of 10 classes in run" in done.stdout
    result = ld3m.load(tmp_path / "run")
    assert result.images.shape == (10, 3, 32, 32)
    assert set(result.parameters) == {"features", "codes"}
    assert (tmp_path / "run" / "report.html").is_file()


def test_weights_of_a_file_make_the_images(go, stylegan_file, tmp_path):
    state = load_file(stylegan_file)
    save_file({key: tensor.half() for key, tensor in state.items()}, tmp_path / "half.safetensors")
    result = go(prior=str(tmp_path / "half.safetensors"), layer=12, class_ids=(0, 1, 2), iterations=1)
    assert result.parameters["features"].shape == (3, 11, 52, 52)
    assert result.images.std() > 0.01
