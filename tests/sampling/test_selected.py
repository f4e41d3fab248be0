"""Sets of chosen real images: what comes out, what is refused, what a kill leaves behind."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image

import ld3m
from ld3m.config import TeacherTraining
from ld3m.data import load
from ld3m.errors import ConfigError, DataError
from ld3m.evaluation import train_teacher
from ld3m.evaluation.measuring import Judges
from ld3m.runs.folder import RunFolder
from ld3m.runs.result import Result
from ld3m.runtime.rows import RowFile
from ld3m.runtime.storage import load_tensors
from ld3m.selection import SELECTIONS

SETTINGS = {"resolution": 16, "evaluate": "none", "progress": False, "early_networks": 1}


@pytest.fixture(autouse=True)
def tiny_judges(monkeypatch):
    monkeypatch.setattr(Judges, "_network", "ConvNet-w0.03")


@pytest.fixture(scope="module")
def go(coloured):
    """Choose of `coloured` in moments."""
    return lambda data=coloured, **settings: ld3m.select(data, **SETTINGS | settings)


@pytest.fixture(scope="module")
def teacher(coloured, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    training = TeacherTraining("ConvNet-w0.03", epochs=2)
    train_teacher(load(coloured, resolution=16), path, training, progress=False)
    return path


@pytest.fixture(scope="module")
def whole(go, teacher, tmp_path_factory):
    """A run that nothing interrupted."""
    return go(out=tmp_path_factory.mktemp("whole") / "run", ipc=2, teacher=teacher).path


def bytes_of(path):
    return (path / "distilled.safetensors").read_bytes()


@pytest.mark.parametrize("by", SELECTIONS)
def test_every_selector_gives_a_set(by, go, coloured):
    result = go(by=by, ipc=2)
    assert result.images.shape == (6, 3, 16, 16) and result.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert result.config["by"] == by and result.config["tiles"] == SELECTIONS[by].tiles(16) and result.path is None
    train = load(coloured, resolution=16).train
    real = {image.numpy().tobytes() for image in train.images}
    levels = (result.images * 255).round().to(torch.uint8)
    assert all(image.numpy().tobytes() in real for image in levels) == (by not in ("rded", "combine"))
    if by == "kmeans":
        assert result.weights.view(3, 2).sum(1).tolist() == pytest.approx([2, 2, 2])
    else:
        assert result.weights is None


def test_the_folder_is_that_of_a_run(whole):
    result = ld3m.load(whole)
    for label in range(3):
        pixels = torch.tensor(list(Image.open(whole / "images" / str(label) / "1.png").tobytes()))
        assert torch.equal(pixels, (result.images[2 * label + 1] * 255).round().permute(1, 2, 0).flatten().long())
    facts = json.loads((whole / "result.json").read_text())
    assert facts["seconds_per_class"] > 0 and set(facts["fingerprints"]) == {"data", "teacher"}
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == ["0", "1", "2"] and all(len(line["positions"]) == 2 for line in lines)
    page = (whole / "report.html").read_text()
    assert "real images chosen by easy" in page and "6 images chosen from" in page and "Curves" not in page
    assert "easy" in repr(result) and result.set_name == "selected"
    names = {entry.name for entry in whole.iterdir()}
    assert {"config.yaml", "grid.png", "scores", "report.html"} <= names
    assert not any(name.endswith((".partial", ".tmp")) for name in names)


def test_the_chosen_images_are_the_easiest(whole, coloured, teacher):
    from ld3m.evaluation import load_teacher

    data, network = load(coloured, resolution=16), load_teacher(teacher).network
    for label in range(3):
        members = data.train.of_class(label)
        with torch.inference_mode():
            losses = -network(data.normalize(data.train.batch(members))).double().log_softmax(1)[:, label]
        stored = load_tensors(whole / "scores" / f"class-{label:05}.safetensors")[0]["score"]
        torch.testing.assert_close(stored, losses, rtol=1e-4, atol=1e-6)
        line = json.loads((whole / "metrics.jsonl").read_text().splitlines()[label])
        assert line["positions"] == members[stored.argsort(stable=True)[:2]].tolist()


def test_it_can_be_exported_evaluated_and_started_from(whole, coloured, distill_small, tmp_path):
    assert distill_small(init=str(whole), ipc=2, iterations=1).images.shape == (6, 3, 16, 16)
    run = shutil.copytree(whole, tmp_path / "run")
    ld3m.export(run, "imagefolder", tmp_path / "to")
    card = (tmp_path / "to" / "README.md").read_text()
    assert len(list((tmp_path / "to").glob("*/*.png"))) == 6 and "6 real images of" in card
    report = ld3m.evaluate(
        run, coloured, protocol="quick", networks=["ConvNet-w0.06"], repeats=1, epochs=2, progress=False
    )
    assert [row["set"] for row in report.rows] == ["selected", "random", "kmeans"]


def test_a_run_ends_with_its_evaluation(go, coloured_folder, tmp_path, monkeypatch):
    from dataclasses import replace

    from ld3m.evaluation.protocols import PROTOCOLS

    quick = replace(PROTOCOLS["quick"].with_epochs(2), networks=("ConvNet-w0.06",))
    monkeypatch.setitem(PROTOCOLS, "quick", quick)
    path = go(coloured_folder, by="random", out=tmp_path / "run", evaluate="quick").path
    assert json.loads((path / "result.json").read_text())["accuracy"]["selected"]


def test_in_memory_it_is_the_same(whole, go, teacher):
    assert torch.equal(go(ipc=2, teacher=teacher).images, ld3m.load(whole).images)


def test_scores_of_another_run_serve_again(whole, go, tmp_path, monkeypatch):
    monkeypatch.setattr("ld3m.evaluation.measuring.train_network", None)
    again = go(out=tmp_path / "run", ipc=2, scores_from=whole / "scores").path
    assert torch.equal(ld3m.load(again).images, ld3m.load(whole).images) and not (again / "scores").exists()
    assert go(ipc=4, scores_from=whole / "scores").images.shape[0] == 12
    assert go(out=again, resume=True).path == again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "el2n"}, "are of something else: measured 'loss' → 'el2n'"),
        ({"holdout": 0.5}, r"are of something else: data '\w{16}' → '\w{16}'"),
        ({"by": "random"}, "scores_from has no use: 'random' measures nothing"),
    ],
)
def test_scores_of_something_else_do_not(settings, message, whole, go, tmp_path):
    with pytest.raises(ConfigError, match=message):
        go(out=tmp_path / "run", scores_from=whole / "scores", **settings)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_scores_is_refused(go, tmp_path):
    with pytest.raises(ConfigError, match=r"scores_from has no class-00000\.safetensors in"):
        go(scores_from=tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"by": "eazy"}, ConfigError, "by is one of random, kmeans, herding, easy.*; did you mean 'easy'"),
        ({"ipc": 12}, DataError, "class '0' has 11 images, --by easy --ipc 12 asks for 12; lower --ipc or add images"),
        ({"by": "combine", "ipc": 3}, DataError, "--by combine --ipc 3, 4 images in each, asks for 12"),
        ({"by": "random", "teacher": "t.safetensors"}, ConfigError, "a teacher is for herding, easy, rded, and"),
        ({"by": "easy", "tiles": 2}, ConfigError, "tiles are for rded and combine"),
        ({"by": "rded", "tiles": 5}, ConfigError, "tiles is at most 4 at 16 px"),
        ({"ipc": 0}, ConfigError, "ipc is a whole number, at least 1"),
        ({"early_epochs": 1}, ConfigError, "early_epochs is a whole number, at least 2"),
        ({"crops": 0}, ConfigError, "crops is a whole number, at least 1"),
        ({"evaluate": "quickly"}, ConfigError, "evaluate is one of"),
        ({"prior": "builtin"}, ConfigError, "'prior' is not a setting of select"),
    ],
)
def test_bad_input_is_one_clear_error(settings, error, message, go, tmp_path):
    with pytest.raises(error, match=message):
        go(out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_data_is_refused(go, coloured, teacher, tmp_path):
    with pytest.raises(ConfigError, match="the teacher was trained on other images"):
        go((255 - coloured[0], coloured[1]), teacher=teacher, out=tmp_path / "run")


def test_the_resolution_is_the_teachers(coloured, teacher):
    result = ld3m.select(coloured, teacher=teacher, evaluate="none", progress=False)
    assert result.images.shape[-1] == result.config["resolution"] == 16


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (RunFolder, "start", 0, True),
        (RunFolder, "save_checkpoint", 0, False),
        (RunFolder, "save_checkpoint", 1, True),
        (RunFolder, "log", 1, True),
        (Judges, "scores", 1, True),
        (RowFile, "write", 4, False),
        (RowFile, "finish", 0, False),
        (RowFile, "finish", 0, True),
        (Result, "draw_grid", 0, False),
    ],
)
def test_interrupted_anywhere_it_ends_with_the_same_bytes(
    owner, name, call, after, go, whole, teacher, interrupt, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, owner, name, call, after=after)
        go(out=tmp_path, ipc=2, teacher=teacher)
    assert bytes_of(go(out=tmp_path, resume=True).path) == bytes_of(whole)
    for path in [*whole.glob("images/*/*.png"), *whole.glob("scores/*")]:
        assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes()
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [0, 1, 2]


def test_a_trained_teacher_is_kept_and_used_again(go, tmp_path, monkeypatch):
    path = go(out=tmp_path / "one", ipc=2).path
    assert (path / "teacher.safetensors").is_file()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", interrupt)
        go(out=tmp_path / "two", ipc=2)
    monkeypatch.setattr("ld3m.evaluation.measuring.train_network", None)
    assert bytes_of(go(out=tmp_path / "two", resume=True).path) == bytes_of(path)
    assert go(out=tmp_path / "three", teacher=path / "teacher.safetensors").images.shape[0] == 3


def interrupt(*_args, **_options):
    raise KeyboardInterrupt


def test_damaged_scores_are_measured_again(go, whole, teacher, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", interrupt)
        go(out=tmp_path, ipc=2, teacher=teacher)
    (tmp_path / "scores" / "class-00000.safetensors").write_bytes(b"no scores")
    assert bytes_of(go(out=tmp_path, resume=True).path) == bytes_of(whole)
    assert "They are measured again" in caplog.text


def test_resume_needs_the_stored_settings_and_teacher(go, whole, coloured, tmp_path):
    with pytest.raises(ConfigError, match="these differ: ipc 2 → 3"):
        go(out=whole, resume=True, ipc=3)
    other = tmp_path / "other.safetensors"
    train_teacher(
        load(coloured, resolution=16), other, TeacherTraining("ConvNet-w0.03", epochs=2, seed=1), progress=False
    )
    with pytest.raises(ConfigError, match="resume needs the teacher that the run in"):
        go(out=whole, resume=True, teacher=other)


def test_overwrite_removes_what_the_other_run_left(go, whole, teacher, tmp_path):
    go(out=tmp_path, ipc=2, seed=5)
    path = go(out=tmp_path, ipc=2, teacher=teacher, overwrite=True).path
    assert bytes_of(path) == bytes_of(whole) and not (path / "teacher.safetensors").exists()
    go(out=tmp_path, ipc=1, by="random", overwrite=True)
    assert not list((path / "scores").glob("*"))


def test_overwrite_can_use_the_teacher_and_the_scores_of_the_run_it_replaces(go, tmp_path):
    path = go(out=tmp_path, ipc=2).path
    images = ld3m.load(path).images
    assert torch.equal(go(out=path, ipc=2, overwrite=True, scores_from=path / "scores").images, images)
    teacher = go(out=path, ipc=1, overwrite=True).path / "teacher.safetensors"
    assert torch.equal(go(out=path, ipc=2, overwrite=True, teacher=teacher).images, images)


_SLOW = """
import sys, time
from ld3m import cli
from ld3m.evaluation.measuring import Judges
from ld3m.runs.folder import RunFolder
Judges._network = "ConvNet-w0.03"
log = RunFolder.log
RunFolder.log = lambda *line: (log(*line), time.sleep(60))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_it_ends_with_the_same_bytes(coloured_folder, ld3m_command, tmp_path):
    """By SIGKILL, in a process of its own, once a class is there."""
    options = "--by easy --resolution 16 --device cpu --evaluate none --quiet --out"
    assert ld3m_command("select", coloured_folder, options, tmp_path / "whole")[0] == 0
    command = ["select", coloured_folder, *options.split(), tmp_path / "run"]
    process = subprocess.Popen([sys.executable, "-c", _SLOW, *command], stderr=subprocess.DEVNULL)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "distilled.safetensors").exists()
    status, _, err = ld3m_command("select --resume --quiet --out", tmp_path / "run")
    assert status == 0, err
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["by"] == "easy"
