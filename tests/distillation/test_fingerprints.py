"""Priors, experts and statistics are told apart by what they hold, not by where they lie."""

import json
import shutil

import pytest
import torch
import yaml

import ld3m
from ld3m.distillation.experts import Experts, train_experts
from ld3m.errors import ConfigError
from ld3m.priors.folder import save_prior
from ld3m.runs.opening import prior_fingerprint
from ld3m.runtime.storage import load_tensors, save_tensors

REFUSED = r"resume needs the {} that the run in .+ began with; .+ holds other weights or values now"


@pytest.fixture
def prior_at(tmp_path):
    """Write a tiny prior into a folder, perhaps with one weight changed; return the folder."""

    def write(name, change=0.0):
        prior = ld3m.load_prior("random:tiny")
        with torch.no_grad():
            next(prior.denoiser.parameters()).view(-1)[0] += change
        save_prior(prior, tmp_path / name, dtype=torch.float32, betas=(0.0015, 0.0195))
        return tmp_path / name

    return write


@pytest.fixture
def go(distill_small, tmp_path):
    def call(**settings):
        return distill_small(**{"iterations": 2, "steps": 1, "real_batch": 2, "width": 4, **settings})

    return call


@pytest.fixture(params=["distill", "sample"])
def run(request, go, coloured, tmp_path):
    """Make or resume a run of `ld3m.distill`, or of `ld3m.sample_dataset`, in tmp_path/run."""

    def call(prior, **more):
        if request.param == "distill":
            return go(prior=prior, out=tmp_path / "run", **more)
        options = {"ipc": 1, "steps": 2, "stop": 1, "class_ids": (0, 1, 2), "evaluate": "none", "progress": False}
        return ld3m.sample_dataset(coloured, prior=prior, out=tmp_path / "run", **options, **more)

    return call


def test_other_weights_under_the_same_path_are_refused(run, prior_at, tmp_path):
    path = prior_at("prior")
    run(path)
    run(path, resume=True)
    prior_at("prior", change=0.25)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match=REFUSED.format("prior")):
        run(path, resume=True)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_a_prior_that_was_moved_serves_where_it_is_named_and_from_then_on(run, prior_at, tmp_path):
    path = prior_at("prior")
    images = run(path).images
    moved = path.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"prior .+/prior of the run is not there; if it was moved, .+ --prior PATH"):
        run(None, resume=True)
    assert torch.equal(run(moved, resume=True).images, images)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["prior"] == str(moved)
    assert torch.equal(run(None, resume=True).images, images)
    with pytest.raises(ConfigError, match=REFUSED.format("prior")):
        run(prior_at("other", change=0.25), resume=True)


def test_a_run_without_a_fingerprint_is_not_gone_on_with_by_a_prior_of_another_path(go, prior_at, tmp_path):
    path, folder = prior_at("prior"), tmp_path / "run"
    go(prior=path, out=folder)
    tensors, about = load_tensors(folder / "checkpoint.safetensors")
    save_tensors(folder / "checkpoint.safetensors", tensors, {name: about[name] for name in ("iteration", "data")})
    with pytest.raises(ConfigError, match=r"these differ: prior .+ has no fingerprint to compare"):
        go(prior=prior_at("copy"), out=folder, resume=True)
    go(prior=path, out=folder, resume=True)


def test_result_json_says_what_the_run_followed_from(go, tiny_prior, tmp_path):
    go(prior=tiny_prior, out=tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())["fingerprints"]
    assert found["prior"] == prior_fingerprint(tiny_prior) and len(found["data"]) == 16
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["prior"] == found["prior"]


def test_a_fingerprint_follows_from_weights_schedule_and_scale():
    prints = set()
    for change in ("nothing", "weight", "schedule", "scale"):
        prior = ld3m.load_prior("random:tiny")
        with torch.no_grad():
            next(prior.first_stage.parameters()).view(-1)[0] += change == "weight"
        prior.alphas_cumprod = prior.alphas_cumprod * (0.99 if change == "schedule" else 1)
        prior.scale_factor = prior.scale_factor * (2 if change == "scale" else 1)
        prints.add(prior_fingerprint(prior))
    assert len(prints) == 4
    assert prior_fingerprint(ld3m.load_prior("random:tiny")) in prints
    assert prior_fingerprint(None) is None


def test_experts_of_other_weights_are_refused_and_moved_ones_serve(go, coloured, tmp_path):
    data = ld3m.data.load(coloured, resolution=16)
    options = {"width": 4, "num_experts": 2, "epochs": 2, "progress": False}
    experts, run = tmp_path / "experts", {"algorithm": "mtt", "out": tmp_path / "run"}
    train_experts(data, experts, **options)
    go(experts=experts, **run)
    moved = experts.rename(tmp_path / "moved")
    go(experts=moved, resume=True, **run)
    shutil.rmtree(moved)
    train_experts(data, moved, seed=1, **options)
    with pytest.raises(ConfigError, match=REFUSED.format("experts")):
        go(resume=True, **run)


def test_the_fingerprint_of_experts_reads_the_last_epoch_of_each(tmp_path):
    files = (tmp_path / "expert-00000.safetensors", tmp_path / "expert-00001.safetensors")
    prints = []
    for value in (0.0, 1.0):
        for file in files:
            last = torch.full((2,), value if file == files[1] else 5.0)
            save_tensors(file, {"000/w": torch.zeros(2), "001/w": last}, {"epochs": "1"})
        prints.append(Experts(files, ("w",), 1).fingerprint())
    assert prints[0] != prints[1]


def test_statistics_of_other_values_are_refused_and_moved_ones_serve(coloured, tmp_path):
    """What they follow from stays the same: only the values tell them apart."""
    options = {"ipc": 1, "steps": 2, "stop": 1, "class_ids": (0, 1, 2), "evaluate": "none", "progress": False}

    def sample(name, **more):
        return ld3m.sample_dataset(coloured, prior="random:tiny", out=tmp_path / name, **options, **more)

    sample("first")
    statistics = (tmp_path / "first" / "statistics").rename(tmp_path / "statistics")
    sample("run", statistics=statistics)
    (tmp_path / "run" / "distilled.safetensors").unlink()  # so that there is something left to do
    moved = statistics.rename(tmp_path / "moved")
    sample("run", statistics=moved, resume=True)
    (tmp_path / "run" / "distilled.safetensors").unlink()
    path = moved / "class-00001.safetensors"
    tensors, about = load_tensors(path)
    save_tensors(path, {name: tensor + 0.5 for name, tensor in tensors.items()}, about)
    with pytest.raises(ConfigError, match=REFUSED.format("statistics")):
        sample("run", resume=True)


@pytest.fixture
def start_at(distill_small, tmp_path):
    """Distil a set to start from into a folder of tmp_path; return the folder."""

    def make(name, **settings):
        return distill_small(
            **{"iterations": 1, "steps": 1, "real_batch": 2, "width": 4, **settings}, out=tmp_path / name
        ).path

    return make


@pytest.mark.parametrize("space", ["ld3m", "pixel"])
def test_another_set_to_start_from_is_refused_and_a_moved_one_serves(space, go, start_at, tmp_path):
    init, run = start_at("init"), {"space": space, "out": tmp_path / "run"}
    images = go(init=init, **run).images
    print_of = load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["init"]
    assert print_of == ld3m.load(init).fingerprint()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["fingerprints"]["init"] == print_of
    moved = init.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"init .+/init of the run is not there; if it was moved, .+ --init PATH"):
        go(resume=True, **run)
    assert torch.equal(go(init=moved, resume=True, **run).images, images)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init"] == str(moved)
    assert torch.equal(go(resume=True, **run).images, images)
    shutil.rmtree(moved)
    start_at("moved", seed=3)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    for settings in ({}, {"init": moved}, {"init": start_at("third", iterations=2)}):
        with pytest.raises(ConfigError, match=REFUSED.format("init")):
            go(resume=True, **run, **settings)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_a_run_that_began_elsewhere_is_not_gone_on_with_by_a_set(go, start_at, tmp_path):
    """Nor the other way round."""
    init = start_at("init")
    go(out=tmp_path / "real")
    with pytest.raises(ConfigError, match=r"these differ: init 'real' → .+/init', and the run has no fingerprint"):
        go(out=tmp_path / "real", init=init, resume=True)
    go(out=tmp_path / "given", init=init)
    with pytest.raises(ConfigError, match=r"these differ: init .+/init.* → 'kmeans'"):
        go(out=tmp_path / "given", init="kmeans", resume=True)
