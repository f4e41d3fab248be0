"""`ld3m.distill` from data to result."""

import inspect
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ld3m
from ld3m.config import PRESETS, DistillConfig, build
from ld3m.distillation import experts, objectives
from ld3m.distillation.job import prepare
from ld3m.distillation.objectives import ClassMatching
from ld3m.errors import ConfigError, NumericsError
from ld3m.runtime.storage import load_tensors

FILES = {
    "config.yaml", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.json", "distilled.safetensors", "grid.png",
    "curves.png", "result.json", "report.html",
}  # fmt: skip


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def bytes_of(result):
    return (result.path / "distilled.safetensors").read_bytes()


def same(a, b):
    return torch.equal(a.images, b.images) and (a.latents is None or torch.equal(a.latents, b.latents))


def test_the_signature_is_the_contract():
    expected = {
        "data": "builtin", "prior": "builtin", "algorithm": "dc", "space": "ld3m", "ipc": 1, "resolution": None,
        "iterations": None, "steps": None, "guidance_scale": 3.0, "injection": "x0", "schedule": "linear",
        "noise": "fresh", "learn": ("latents", "conditioning"), "init": "real", "init_conditioning": "class",
        "class_ids": None, "latent_size": None, "network": "ConvNet", "lr": None, "real_batch": None, "augment": True,
        "experts": None, "memory_budget": None, "retain": None, "device": None, "dtype": None, "seed": 0, "out": None,
        "resume": False, "overwrite": False, "evaluate": None, "progress": True,
    }  # fmt: skip
    parameters = inspect.signature(ld3m.distill).parameters
    assert {name: parameters[name].default for name in expected} == expected
    assert parameters["data"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for name, p in parameters.items() if name != "data")


@pytest.mark.parametrize("space", ["ld3m", "autoencoder", "pixel"])
@pytest.mark.parametrize("algorithm", ["dm", "dc", "mtt"])
def test_every_algorithm_in_every_space(algorithm, space, distill_small, tmp_path):
    result = distill_small(algorithm=algorithm, space=space, ipc=2, iterations=2, out=tmp_path / "run", lr=0.05)
    assert result.images.shape == (6, 3, 16, 16)
    assert result.images.dtype == torch.float32
    assert 0 <= result.images.min() < result.images.max() <= 1
    assert result.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (result.class_names, result.path, result.ipc) == (("0", "1", "2"), tmp_path / "run", 2)
    assert (None if result.latents is None else result.latents.shape) == (None if space == "pixel" else (6, 3, 8, 8))
    assert (None if result.conditioning is None else result.conditioning.shape) == (
        (6, 1, 8) if space == "ld3m" else None
    )

    learnt = {"ld3m": ["latents", "conditioning"], "autoencoder": ["latents"], "pixel": ["pixels"]}[space]
    learnt += ["student_lr"] * (algorithm == "mtt")
    lines = metrics(tmp_path / "run")
    assert [line["iteration"] for line in lines] == [0, 1]
    for line in lines:
        assert set(line) == {"iteration", "loss", "seconds", *(f"grad_norm_{name}" for name in learnt)}
        assert all(line[key] > 0 for key in line if key != "iteration")
    tensors, about = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert about["iteration"] == "2"
    assert set(tensors) == {*learnt, *(f"momentum/{name}" for name in learnt)}
    if space != "pixel":
        assert torch.equal(tensors["latents"], result.latents)


@pytest.fixture(scope="module")
def run(distill_small, tmp_path_factory):
    return distill_small(out=tmp_path_factory.mktemp("runs") / "run")


def test_the_output_folder_is_complete(run):
    assert {path.name for path in run.path.iterdir() if path.is_file()} == FILES | {".ld3m.json"}
    assert [path.name for path in run.path.rglob("*") if path.name.startswith(".")] == [".ld3m.json"]
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config == run.config
    assert json.loads((run.path / "checkpoint.json").read_text())["iteration"] == 3
    assert "<html" in (run.path / "report.html").read_text()
    for name in ("grid.png", "curves.png"):
        assert len(np.unique(np.asarray(Image.open(run.path / name)))) > 10
    for label in range(3):
        shown = np.asarray(Image.open(run.path / "images" / str(label) / "0.png"))
        assert (shown == (run.images[label] * 255).round().byte().permute(1, 2, 0).numpy()).all()


def test_result_json_says_what_the_run_was(run):
    facts = json.loads((run.path / "result.json").read_text())
    assert facts["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert (facts["seed"], facts["iterations"], facts["protocol"], facts["accuracy"]) == (0, 3, "none", None)
    assert facts["device"].startswith("cpu")
    assert 0 < facts["seconds_per_iteration"] < facts["seconds"] < 60
    assert facts["peak_memory_bytes"] > 50e6


def test_the_folder_loads_as_the_result(run, tmp_path):
    for loaded in (ld3m.load(run.path), ld3m.load(run.save(tmp_path / "copy"))):
        for name in ("images", "labels", "latents", "conditioning", "mean", "std"):
            assert torch.equal(getattr(loaded, name), getattr(run, name))
        assert (loaded.class_names, loaded.config) == (run.class_names, run.config)


def test_the_stored_settings_run_again(run, coloured, tmp_path):
    settings = yaml.safe_load((run.path / "config.yaml").read_text())
    assert settings.pop("data") == "<tuple>"
    again = ld3m.distill(coloured, out=tmp_path / "again", progress=False, **settings)
    assert bytes_of(again) == bytes_of(run)


@pytest.mark.parametrize(
    "more", [{}, {"noise": "fixed"}, {"algorithm": "mtt", "lr": 1.0}, {"network": "ViT-w0.1", "width": None}]
)
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(more, distill_small, tmp_path):
    runs = []
    for k, seed in enumerate((5, 5, 6)):
        torch.manual_seed(k)  # the global generators have no part in it
        runs.append(distill_small(out=tmp_path / str(k), seed=seed, iterations=2, **more))
    assert bytes_of(runs[0]) == bytes_of(runs[1])
    assert not torch.equal(runs[0].images, runs[2].images)
    assert not torch.equal(runs[0].latents, runs[2].latents)


def test_a_folder_changes_nothing(distill_small, run):
    assert same(distill_small(), run)


def test_the_global_generator_is_left_alone(distill_small):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    distill_small(iterations=1, network="ViT-w0.1", width=None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("space", ["autoencoder", "pixel", "ld3m"])
def test_the_loss_goes_down(space, distill_small, tmp_path, monkeypatch):
    """With the same network, noise and real images in every iteration."""
    backward = ClassMatching.backward
    monkeypatch.setattr(ClassMatching, "backward", lambda self, _iteration: backward(self, 0))
    distill_small(
        space=space, init="noise", iterations=8, augment=False, noise="fixed", real_batch=100, out=tmp_path / "run",
        lr={"autoencoder": 0.1, "pixel": 1.0, "ld3m": 0.1}[space],
    )  # fmt: skip
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


def test_momentum_is_a_half(distill_small, tmp_path, monkeypatch):
    """Two iterations of one gradient g move the parameter by lr g, then by lr 1.5 g."""

    def backward(self, _iteration):
        for parameter in self.space.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        return torch.tensor(1.0)

    monkeypatch.setattr(ClassMatching, "backward", backward)
    first, second = (distill_small(iterations=n, lr=0.25, space="autoencoder").latents for n in (1, 2))
    torch.testing.assert_close(first - second, torch.full_like(first, 0.25 * 1.5))


def test_the_presets_learning_rate_is_used(distill_small, monkeypatch):
    def moved(**settings):
        shift = torch.zeros(())

        def backward(self, _iteration):
            for parameter in self.space.parameters.values():
                parameter.grad = torch.ones_like(parameter)
            shift.copy_(self.space.parameters["latents"].detach()[0, 0, 0, 0])
            return torch.tensor(1.0)

        monkeypatch.setattr(ClassMatching, "backward", backward)
        result = distill_small(iterations=1, space="autoencoder", **settings)
        return float(shift - result.latents[0, 0, 0, 0]), result.config["lr"]

    for settings, rate in (
        ({"preset": "paper", "algorithm": "dc"}, 1e-3),
        ({"preset": "released"}, 1.0),
        ({}, PRESETS["builtin"]["lr"]["dm"]),
    ):
        assert moved(**settings) == (pytest.approx(rate, rel=1e-3), rate)


@pytest.mark.parametrize(("learnt", "untouched"), [("latents", "conditioning"), ("conditioning", "latents")])
def test_what_is_not_learnt_stays_bit_for_bit(learnt, untouched, distill_small, tiny_prior, coloured):
    settings = {"prior": tiny_prior, "class_ids": (0, 1, 2), "init": "noise", "evaluate": "none"}
    start = prepare(coloured, settings, out=None, resume=False, overwrite=False).space.parameters
    result = distill_small(**settings, learn=(learnt,), lr=0.5)
    assert torch.equal(getattr(result, untouched), start[untouched])
    assert not torch.equal(getattr(result, learnt), start[learnt])


@pytest.mark.parametrize(
    "settings",
    [
        {"injection": "none"},
        {"injection": "mean"},
        {"schedule": "cosine"},
        {"guidance_scale": 1.0},
        {"steps": 3},
        {"noise": "fixed"},
        {"init_conditioning": "normal"},
        {"init_conditioning": "null"},
        {"class_ids": (2, 1, 0)},
        {"metric": "mse", "algorithm": "dc"},
        {"augment": False},
        {"lr": 0.2},
        {"real_batch": 2},
        {"width": 4},
        {"network": "AlexNet-w0.1", "width": None},
    ],
    ids=str,
)
def test_every_setting_has_an_effect(settings, distill_small):
    base = {"algorithm": settings.get("algorithm", "dm"), "iterations": 2, "steps": 3 if "schedule" in settings else 2}
    changed, plain = (distill_small(**base | more) for more in (settings, {}))
    assert torch.isfinite(changed.images).all()
    assert not torch.equal(changed.images, plain.images)
    assert {key: changed.config[key] for key in settings} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }


def test_a_latent_size_gives_images_of_the_resolution(distill_small):
    result = distill_small(latent_size=12, iterations=1)
    assert result.latents.shape == (3, 3, 12, 12)
    assert result.images.shape == (3, 3, 16, 16)


@pytest.mark.parametrize("retain", [0.0, 0.5, 1.0])
def test_what_is_kept_changes_nothing(retain, distill_small, relative_error):
    assert relative_error(distill_small(retain=retain, lr=0.01).latents, distill_small(lr=0.01).latents) < 1e-5


def test_a_small_budget_streams_classes_to_the_same_result(distill_small, relative_error, monkeypatch):
    seen = []
    backward = ClassMatching.backward
    monkeypatch.setattr(
        ClassMatching, "backward", lambda self, i: (seen.append(max(map(len, self._groups))), backward(self, i))[1]
    )
    small, large = (distill_small(memory_budget=budget, lr=0.01, iterations=1) for budget in (7_000_000, "1GB"))
    assert seen[0] < seen[1] == 3
    assert relative_error(small.latents, large.latents) < 1e-5
    assert small.config["retain"] < large.config["retain"] == 1.0


def test_trajectories_are_trained_under_the_folder_and_may_be_handed_in(distill_small, tmp_path, monkeypatch):
    own = distill_small(algorithm="mtt", iterations=2, out=tmp_path / "own", lr=1.0)
    assert sorted(path.name for path in (own.path / "experts").iterdir()) == [
        "expert-00000.safetensors", "expert-00001.safetensors",
    ]  # fmt: skip
    monkeypatch.setattr(experts, "_train_epoch", None)
    given = distill_small(algorithm="mtt", iterations=2, experts=own.path / "experts", lr=1.0)
    assert torch.equal(given.images, own.images)
    with pytest.raises(ConfigError, match=r"3 epochs of every expert are needed, but .+ has 2"):
        distill_small(algorithm="mtt", experts=own.path / "experts", max_start_epoch=3)


def test_the_student_learns_its_rate_slowly(distill_small, tmp_path, monkeypatch):
    def backward(self, _iteration):
        for parameter in (*self.space.parameters.values(), self.parameters[0][1]):
            parameter.grad = torch.full_like(parameter, 1000.0)
        return torch.tensor(1.0)

    monkeypatch.setattr(objectives.TrajectoryMatching, "backward", backward)
    run = distill_small(algorithm="mtt", iterations=2, student_lr=0.02, out=tmp_path / "run", lr=0.1)
    rate = load_tensors(run.path / "checkpoint.safetensors")[0]["student_lr"].item()
    assert rate == pytest.approx(0.02 - 1e-6 * 1000 * (1 + 1.5), rel=1e-5)


def test_pixels_stay_pictures_at_any_rate(distill_small):
    images = distill_small(space="pixel", lr=1e6).images
    assert images.min() == 0
    assert images.max() == 1


@pytest.mark.parametrize("algorithm", ["dm", "mtt"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_state_before(algorithm, distill_small, tmp_path, monkeypatch):
    kind = {"dm": ClassMatching, "mtt": objectives.TrajectoryMatching}[algorithm]
    whole, backward = distill_small(algorithm=algorithm, out=tmp_path / "whole"), kind.backward
    with monkeypatch.context() as patch:
        patch.setattr(kind, "backward", lambda self, i: backward(self, i) * (float("nan") if i == 2 else 1))
        with pytest.raises(NumericsError, match=r"loss is nan in iteration 2; the state before it is kept. Lower lr"):
            distill_small(algorithm=algorithm, out=tmp_path / "run")
    tensors, about = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert about["iteration"] == "2"
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert [line["iteration"] for line in metrics(tmp_path / "run")] == [0, 1]
    assert bytes_of(distill_small(algorithm=algorithm, out=tmp_path / "run", resume=True)) == bytes_of(whole)


def test_without_a_folder_nothing_can_be_evaluated(coloured, tiny_prior):
    settings = {"prior": tiny_prior, "algorithm": "dm", "iterations": 1, "steps": 1, "width": 4, "progress": False}
    assert ld3m.distill(coloured, **settings).config["evaluate"] == "none"
    with pytest.raises(ConfigError, match="evaluate 'quick' needs out=, where its report goes; or pass the result to"):
        ld3m.distill(coloured, **settings, evaluate="quick")


def test_a_run_does_not_start_from_its_own_folder(distill_small, tmp_path):
    path = distill_small(out=tmp_path / "run").path
    with pytest.raises(ConfigError, match=r"init .+ is the folder of this run, which replaces what is"):
        distill_small(out=path, init=str(path), overwrite=True)
    assert (path / "distilled.safetensors").is_file()


def test_a_gradient_that_is_not_finite_stops(distill_small, monkeypatch):
    def backward(self, _iteration):
        self.space.parameters["latents"].grad = torch.full((3, 3, 8, 8), float("inf"))
        self.space.parameters["conditioning"].grad = torch.zeros(3, 1, 8)
        return torch.tensor(0.5)

    monkeypatch.setattr(ClassMatching, "backward", backward)
    with pytest.raises(NumericsError, match="grad norm latents is inf in iteration 0"):
        distill_small()


@pytest.mark.parametrize("lr", [1e30, 3e38])
def test_a_rate_that_is_far_too_high_stops_with_a_finite_checkpoint(lr, distill_small, tmp_path):
    with pytest.raises(NumericsError, match=r"in iteration \d; the state before it is kept. Lower lr"):
        distill_small(lr=lr, out=tmp_path / "run", iterations=5)
    tensors, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_float64_prior_is_driven_by_float32_latents(coloured, distill_small):
    result = distill_small(prior="random:tiny", dtype="float64", iterations=1, lr=0.01)
    assert (result.images.dtype, result.latents.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(result.latents, distill_small(iterations=1, lr=0.01).latents, atol=1e-4, rtol=1e-4)


def test_settings_are_checked_by_name(distill_small):
    with pytest.raises(ConfigError, match="'iteration' is not a setting of distill; did you mean 'iterations'"):
        distill_small(iteration=3)
    assert build({}, DistillConfig()).iterations is None
