"""Runs that are stopped, in every way, and gone on with: the same bytes as if they had not been."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ld3m
from ld3m import cli
from ld3m.distillation import experts
from ld3m.distillation import loop as distillation
from ld3m.distillation.objectives import ClassMatching, TrajectoryMatching
from ld3m.errors import ConfigError, Ld3mError
from ld3m.evaluation import finish as finishing
from ld3m.evaluation.protocols import PROTOCOLS
from ld3m.runs.folder import RunFolder
from ld3m.runtime import locks, storage
from ld3m.runtime.storage import load_tensors
from ld3m.spaces import LatentSpace

ITERATIONS = 4


def bytes_of(path):
    return (path / "distilled.safetensors").read_bytes()


def iterations_of(path):
    return [json.loads(line)["iteration"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def go(distill_small):
    def call(out, **settings):
        return distill_small(
            **{"iterations": ITERATIONS, "steps": 1, "real_batch": 2, "width": 4, "out": out, **settings}
        )

    return call


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """Uninterrupted runs, by algorithm."""
    root = tmp_path_factory.mktemp("whole")
    return {name: go(root / name, algorithm=name).path for name in ("dm", "dc", "mtt")}


def assert_resumed(go, path, expected, **settings):
    result = go(path, resume=True, **settings)
    assert bytes_of(path) == bytes_of(expected)
    assert iterations_of(path) == list(range(ITERATIONS))
    assert torch.equal(result.images, load_tensors(expected / "distilled.safetensors")[0]["images"])
    ours, theirs = (load_tensors(folder / "checkpoint.safetensors")[0] for folder in (path, expected))
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


@pytest.mark.parametrize("iteration", range(ITERATIONS))
@pytest.mark.parametrize("after", [False, True])
def test_interrupted_in_any_iteration(iteration, after, go, whole, interrupt, tmp_path, monkeypatch):
    """After the gradients of an iteration are there, too: they must not count twice."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, ClassMatching, "backward", iteration, after=after)
        go(tmp_path)
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["iteration"] == str(iteration)
    assert not (tmp_path / "distilled.safetensors").exists()
    assert_resumed(go, tmp_path, whole["dm"])


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (LatentSpace, "project", True),  # parameters are changed, the iteration is not over
        (RunFolder, "log", False),
        (RunFolder, "log", True),  # the line is written, the state does not count yet
        (RunFolder, "save_checkpoint", False),
        (RunFolder, "save_checkpoint", True),
    ],
)
def test_interrupted_between_two_iterations(owner, name, after, go, whole, interrupt, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distillation, "_CHECKPOINT_SECONDS", 0)
        patch.setattr(distillation, "_CHECKPOINT_SHARE", 0)
        interrupt(patch, owner, name, 1, after=after)
        go(tmp_path)
    assert_resumed(go, tmp_path, whole["dm"])


@pytest.mark.parametrize(
    ("owner", "name"), [(distillation, "draw_curves"), (finishing, "publish"), (finishing, "write_json")]
)
def test_interrupted_while_finishing(owner, name, go, whole, interrupt, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, owner, name, 0)
        go(tmp_path)
    assert_resumed(go, tmp_path, whole["dm"])
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("algorithm", "kind"), [("dc", ClassMatching), ("mtt", TrajectoryMatching)])
def test_interrupted_twice(algorithm, kind, go, whole, interrupt, tmp_path, monkeypatch):
    for call, options in ((2, {}), (1, {"resume": True})):  # in iteration 2, then in iteration 3
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, kind, "backward", call)
            go(tmp_path, algorithm=algorithm, **options)
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["iteration"] == "3"
    assert_resumed(go, tmp_path, whole[algorithm], algorithm=algorithm)


def test_experts_are_reused_on_resume(go, whole, interrupt, tmp_path, monkeypatch):
    """Interrupted in the second of two experts' last epoch, then in iteration 2."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, experts, "_train_epoch", 3)
        go(tmp_path, algorithm="mtt")
    first = tmp_path / "experts" / "expert-00000.safetensors"
    written = first.stat().st_mtime_ns
    assert len(list((tmp_path / "experts").iterdir())) == 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, TrajectoryMatching, "backward", 2)
        go(tmp_path, algorithm="mtt", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(experts, "_train_epoch", None)
        assert_resumed(go, tmp_path, whole["mtt"], algorithm="mtt")
    assert first.stat().st_mtime_ns == written


KILLED = """
import os, signal, sys
from ld3m import cli
from ld3m.distillation import loop as distillation
from ld3m.runtime import locks, storage
distillation._CHECKPOINT_SECONDS = distillation._CHECKPOINT_SHARE = 0
replace, saved = os.replace, []
def killed(source, target):
    saved.append(target.name)
    if saved.count("checkpoint.safetensors") == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
cli.main(sys.argv[1:])
"""


def test_killed_in_the_middle_of_a_write(coloured_folder, tmp_path):
    """SIGKILL while the third checkpoint has its temporary name: the second one holds, a line too many is dropped."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = f"{coloured_folder} --prior random:tiny --algorithm dm --iterations 4 --steps 1 --width 4 --real-batch 2"
    command = ["distill", *options.split(), "--class-ids", "0", "1", "2", "--device", "cpu"]
    command += ["--evaluate", "none", "--quiet", "--out"]
    process = subprocess.run([sys.executable, "-c", KILLED, *command, str(killed)], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list(killed.glob(".checkpoint.safetensors.*.tmp"))) == 1  # removed when the run goes on
    assert (killed / ".ld3m.lock").is_file()
    assert load_tensors(killed / "checkpoint.safetensors")[1]["iteration"] == "2"
    assert iterations_of(killed) == [0, 1, 2]

    assert cli.main([*command, str(whole)]) == 0
    assert cli.main([*command, str(killed), "--resume"]) == 0
    assert bytes_of(killed) == bytes_of(whole)
    assert iterations_of(killed) == [0, 1, 2, 3]
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_run_killed_before_its_first_checkpoint_starts_at_the_beginning(go, whole, interrupt, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save_checkpoint", lambda *_: None)
        interrupt(patch, ClassMatching, "backward", 2)
        go(tmp_path)
    assert iterations_of(tmp_path) == [0, 1]
    assert_resumed(go, tmp_path, whole["dm"])


def test_a_run_killed_before_its_settings_were_stored_starts_with_those_given(go, whole, tmp_path):
    left = tmp_path / ".config.yaml.1.tmp"
    left.write_text("data: half")
    with pytest.raises(ConfigError, match=r"is empty: no run was begun there; leave --resume out to start one"):
        go(tmp_path, resume=True)
    go(tmp_path)
    assert_resumed(go, tmp_path, whole["dm"])
    assert not left.exists()


def test_a_finished_run_stays_as_it_is(go, whole, tmp_path, monkeypatch):
    go(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "checkpoint.safetensors", "grid.png")}
    monkeypatch.setattr(ClassMatching, "backward", None)
    assert_resumed(go, tmp_path, whole["dm"])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_finished_run_that_goes_on_keeps_its_pictures_until_they_are_drawn_anew(go, tmp_path, monkeypatch):
    go(tmp_path, ipc=2)
    pictures = sorted(tmp_path.rglob("images/*/*.png"))
    (tmp_path / "images" / "0" / "2.png").touch()  # of a set with more images
    (tmp_path / "images" / "0" / "mine.png").touch()

    def none(path, _picture):
        assert all(picture.is_file() for picture in pictures)
        if path.name == "1.png":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ld3m.runs.pictures.save_png", none)
        go(tmp_path, ipc=2, resume=True)
    assert len(pictures) == 6 and all(picture.is_file() for picture in pictures)
    go(tmp_path, ipc=2, resume=True)
    assert not (tmp_path / "images" / "0" / "2.png").exists()
    assert (tmp_path / "images" / "0" / "mine.png").exists()


def test_a_folder_that_is_removed_while_it_is_distilled_into_is_an_error(go, interrupt, tmp_path, monkeypatch):
    backward, calls = ClassMatching.backward, iter(range(9))

    def removing(self, iteration):
        if next(calls) == 2:
            shutil.rmtree(tmp_path / "run")
        return backward(self, iteration)

    monkeypatch.setattr(ClassMatching, "backward", removing)
    with pytest.raises(Ld3mError, match=r"run was removed while it was written, and what was done with it; leave it"):
        go(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder_are_one_run_and_a_refusal(go, whole, tmp_path, monkeypatch):
    """The second one begins while the first one iterates, or both are opened before either has begun."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    backward, errors = ClassMatching.backward, []

    def second(**options):
        with ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(go, tmp_path / "run", seed=1, **options).exception())

    def meanwhile(self, iteration):
        if iteration == 1 and not errors:
            for options in ({}, {"resume": True}, {"overwrite": True}):
                second(**options)
        return backward(self, iteration)

    monkeypatch.setattr(ClassMatching, "backward", meanwhile)
    go(tmp_path / "run")
    assert len(errors) == 3 and all("run is being written by process" in str(error) for error in errors)
    assert bytes_of(tmp_path / "run") == bytes_of(whole["dm"])
    assert iterations_of(tmp_path / "run") == list(range(ITERATIONS))


def test_settings_that_are_not_given_are_the_stored_ones(coloured, whole):
    result = ld3m.distill(coloured, out=whole["dm"], resume=True, progress=False, lr=None)
    assert (result.config["iterations"], result.config["width"], result.config["class_ids"]) == (4, 4, [0, 1, 2])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"iterations": 3}, "iterations 4 → 3"),
        ({"iterations": 9, "seed": 1}, "seed 0 → 1"),
        ({"lr": 0.7, "seed": 3}, r"seed 0 → 3, lr [\d.]+ → 0.7"),
        ({"learn": ("latents",)}, r"learn \('latents', 'conditioning'\) → \('latents',\)"),
        ({"prior": "builtin"}, "prior 'random:tiny' → 'builtin'"),
        ({"algorithm": "mtt"}, "algorithm 'dm' → 'mtt'"),
    ],
)
def test_other_settings_are_named_and_nothing_is_touched(settings, named, go, whole):
    before = {file: file.stat().st_mtime_ns for file in whole["dm"].rglob("*")}
    with pytest.raises(ConfigError, match=f"resume needs the settings of the stored run; these differ: {named}. Leave"):
        go(whole["dm"], resume=True, **settings)
    assert {file: file.stat().st_mtime_ns for file in whole["dm"].rglob("*")} == before


@pytest.mark.parametrize("algorithm", ["dm", "dc", "mtt"])
def test_a_prolonged_run_is_one_of_so_many_iterations_from_the_start(algorithm, go, whole, tmp_path):
    out = tmp_path / "run"
    go(out, algorithm=algorithm, iterations=2)
    first = bytes_of(out)
    go(out, algorithm=algorithm, resume=True, iterations=ITERATIONS)
    assert bytes_of(out) == bytes_of(whole[algorithm]) != first
    assert iterations_of(out) == iterations_of(whole[algorithm])
    assert (out / "config.yaml").read_bytes() == (whole[algorithm] / "config.yaml").read_bytes()


def test_a_prolonged_run_that_is_interrupted_goes_on_to_the_new_end(
    go, whole, coloured, interrupt, tmp_path, monkeypatch
):
    go(tmp_path, iterations=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, ClassMatching, "backward", 1)
        go(tmp_path, resume=True)
    ld3m.distill(coloured, out=tmp_path, resume=True, progress=False)
    assert bytes_of(tmp_path) == bytes_of(whole["dm"])


def test_a_prolonged_run_is_evaluated_anew(distill_small, tmp_path, monkeypatch):
    cut = dataclasses.replace(PROTOCOLS["quick"].with_epochs(2), networks=("ConvNet-w0.06",))
    monkeypatch.setitem(PROTOCOLS, "quick", cut)
    settings = {"out": tmp_path, "evaluate": "quick", "holdout": 0.25}
    distill_small(iterations=1, **settings)
    before = json.loads((tmp_path / "evaluation.json").read_text())
    assert json.loads((tmp_path / "result.json").read_text())["iterations"] == 1
    distill_small(iterations=3, resume=True, **settings)
    after = json.loads((tmp_path / "evaluation.json").read_text())
    assert json.loads((tmp_path / "result.json").read_text())["iterations"] == 3
    assert before["rows"][1:] == after["rows"][1:]  # random and k-means real images
    assert before["seconds"] != after["seconds"] or before["rows"][0] != after["rows"][0]


def test_other_data_under_the_same_name_is_noticed(go, coloured, tmp_path):
    go(tmp_path, space="autoencoder")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    for images, labels in ((255 - coloured[0], coloured[1]), (coloured[0], coloured[1].flip(0))):
        with pytest.raises(ConfigError, match=r"resume needs the data that the run in .+ began with; this has"):
            go(tmp_path, space="autoencoder", resume=True, data=(images, labels))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_run_may_be_replaced_by_one_of_other_settings(go, whole, tmp_path):
    go(tmp_path, algorithm="mtt", ipc=2, seed=1)
    (tmp_path / "mine.txt").write_text("kept")
    go(tmp_path, algorithm="mtt", overwrite=True)
    assert bytes_of(tmp_path) == bytes_of(whole["mtt"])
    assert sorted(path.name for path in tmp_path.rglob("images/*/*")) == ["0.png"] * 3
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_keeps_the_checkpoint_before(call, go, whole, tmp_path, monkeypatch):
    """It is full from iteration 2 on, when a checkpoint or a line of metrics is written."""
    full, original = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), open
    backward = ClassMatching.backward

    def fail(path, *args, **kwargs):
        if call == "fsync" or str(path).endswith("metrics.jsonl"):
            raise full
        return original(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "_CHECKPOINT_SECONDS", 0)
        patch.setattr(distillation, "_CHECKPOINT_SHARE", 0)

        def fills(self, iteration):
            if iteration == 2:
                patch.setattr(*((storage.os, "fsync", fail) if call == "fsync" else ("builtins.open", fail)))
            return backward(self, iteration)

        patch.setattr(ClassMatching, "backward", fills)
        with pytest.raises(
            Ld3mError, match=r"could not write .+: No space left on device; the disk is full: free some"
        ):
            go(tmp_path)
    tensors, about = load_tensors(tmp_path / "checkpoint.safetensors")
    assert about["iteration"] == "2"
    assert set(tensors) == {"latents", "conditioning", "momentum/latents", "momentum/conditioning"}
    assert_resumed(go, tmp_path, whole["dm"])
