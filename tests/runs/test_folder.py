"""The output folder of a run."""

import errno
import json
import os

import pytest
import torch

from ld3m.config import DistillConfig
from ld3m.errors import CheckpointError, ConfigError, Ld3mError
from ld3m.runs import folder as runs
from ld3m.runs.folder import RunFolder
from ld3m.runtime import storage

CONFIG = DistillConfig(lr=0.5, learn=("latents",), class_ids=(2, 1))


def claim(path, **options):
    return RunFolder(path, **{"resume": False, "overwrite": False} | options)


def started(path, **options):
    folder = claim(path, **options)
    folder.start("some/data", CONFIG, "1f")
    return folder


def metrics(folder):
    return [json.loads(line)["iteration"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_a_claim_writes_nothing(tmp_path):
    claim(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    claim(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_started_run_is_resumed_with_its_settings(tmp_path):
    assert not started(tmp_path / "a" / "run").is_resumed
    folder = claim(tmp_path / "a" / "run", resume=True)
    assert folder.is_resumed
    assert folder.stored(DistillConfig) == ("some/data", CONFIG)


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(
        ConfigError, match=r"out .+ exists and is not empty; choose another --out, .+--resume, .+--overwr"
    ):
        claim(tmp_path)
    with pytest.raises(ConfigError, match=r"is not empty and holds no config.yaml: not a run; choose another --out"):
        claim(tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"holds no config.yaml: not a run, so it is not replaced; choose another --"):
        claim(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    started(tmp_path).save_checkpoint(1, {"latents": torch.ones(2)})
    resumed = claim(tmp_path, resume=True)
    resumed.start("moved/data", CONFIG, "1f")
    assert resumed.load_checkpoint()[0] == 1
    resumed.start("some/data", CONFIG, "2e")
    with pytest.raises(ConfigError, match=r"resume needs the data that the run in .+ began with; this has"):
        resumed.load_checkpoint()


def test_refusals_say_what_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out .+file is a file; choose a folder"):
        claim(tmp_path / "file")
    with pytest.raises(
        ConfigError, match=r"out .+none is not there, so there is nothing to resume; leave --resume out"
    ):
        claim(tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match=r"resume and overwrite exclude each other"):
        claim(tmp_path, resume=True, overwrite=True)


@pytest.mark.parametrize("options", [{}, {"resume": True}])
def test_what_a_killed_write_left_counts_as_empty(options, tmp_path):
    """A run killed before its settings were stored starts at the beginning."""
    (tmp_path / ".config.yaml.tmp").touch()
    folder = started(tmp_path, **options)
    assert not folder.is_resumed
    assert claim(tmp_path, resume=True).stored(DistillConfig) == ("some/data", CONFIG)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    folder = started(tmp_path)
    folder.log({"iteration": 0})
    folder.save_checkpoint(1, {"latents": torch.zeros(1)})
    own = [
        "distilled.safetensors",
        "grid.png",
        "curves.png",
        "evaluation.json",
        "evaluation-soft.json",
        "evaluation-progress.json",
        "result.json",
    ]
    own += ["report.html", "images/a/0.png", "images/gone/7.png", "experts/expert-00003.safetensors"]
    foreign = ["x", "notes.md", "images/mine.png", "images/a/notes.txt", "experts/mine.safetensors", "deep/er/y.png"]
    for name in own + foreign:
        storage.write_text(tmp_path / name, "")
    started(tmp_path, overwrite=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*foreign, "config.yaml"}


def test_overwrite_leaves_the_experts_that_are_used(tmp_path):
    storage.write_text(tmp_path / "experts" / "expert-00000.safetensors", "")
    config = DistillConfig(algorithm="mtt", experts=str(tmp_path / "experts"))
    storage.write_text(tmp_path / "config.yaml", "")
    claim(tmp_path, overwrite=True).start("d", config, "1f")
    assert (tmp_path / "experts" / "expert-00000.safetensors").is_file()


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    folder = started(tmp_path)
    assert folder.load_checkpoint() is None
    tensors = {"latents": torch.randn(2, 3), "momentum/latents": torch.randn(2, 3), "student_lr": torch.tensor(0.5)}
    folder.save_checkpoint(3, {"latents": torch.zeros(1)})
    folder.save_checkpoint(17, tensors)
    iteration, loaded = started(tmp_path, resume=True).load_checkpoint()
    assert iteration == 17
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())
    about = json.loads((tmp_path / "checkpoint.json").read_text())
    assert about == {"iteration": 17, "tensors": ["latents", "momentum/latents", "student_lr"]}


@pytest.mark.parametrize(("iteration", "kept"), [(None, []), (0, []), (2, [0, 1]), (5, [0, 1, 2, 3])])
def test_metrics_after_the_checkpoint_are_dropped(iteration, kept, tmp_path):
    folder = started(tmp_path)
    for k in range(4):
        folder.log({"iteration": k, "loss": 1.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"loss": 2}\n{"iteration": 1, "lo')  # not of a run; torn by a kill
    if iteration is not None:
        folder.save_checkpoint(iteration, {})
    started(tmp_path, resume=True).load_checkpoint()
    assert metrics(folder) == kept


def test_a_foreign_or_damaged_checkpoint_is_named(tmp_path):
    folder = started(tmp_path)
    storage.save_tensors(tmp_path / "checkpoint.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is not a checkpoint of a run; start again"):
        folder.load_checkpoint()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is not a whole safetensors file"):
        folder.load_checkpoint()


def test_damaged_settings_are_named(tmp_path):
    started(tmp_path)
    (tmp_path / "config.yaml").write_text("data: x\nitterations: 3\n")
    with pytest.raises(ConfigError, match="'itterations' is not a setting"):
        claim(tmp_path, resume=True).stored(DistillConfig)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    folder = started(tmp_path)
    folder.save_checkpoint(1, {"latents": torch.ones(2)})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(Ld3mError, match=r"could not write .+checkpoint.safetensors: No space left.+; the disk is full"):
        folder.save_checkpoint(2, {"latents": torch.zeros(2)})
    monkeypatch.undo()
    iteration, tensors = folder.load_checkpoint()
    assert (iteration, tensors["latents"].tolist()) == (1, [1.0, 1.0])


def test_no_permission_is_clear(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = claim(tmp_path / "new")
    monkeypatch.setattr(runs.Path, "mkdir", refuse)
    with pytest.raises(Ld3mError, match=r"could not write .+new: Permission denied; no permission .+ another folder"):
        folder.start("d", CONFIG, "1f")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(Ld3mError, match=r"could not write .+metrics.jsonl: Permission denied"):
        folder.log({})
