"""Files of a run that are damaged or edited between: named, and the last whole state is taken."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

import ld3m
from ld3m.config import DistillConfig
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runs.exporting import export
from ld3m.runs.folder import RunFolder
from ld3m.runs.report import Report
from ld3m.runs.result import Result


@pytest.fixture
def stopped(tmp_path):
    """A run of two checkpoints, opened again."""
    folder = RunFolder(tmp_path / "run", resume=False, overwrite=False)
    folder.start("some", DistillConfig(lr=0.5), "data")
    for iteration in (1, 2):
        folder.log({"iteration": iteration - 1})
        folder.save_checkpoint(iteration, {"latents": torch.full((3,), float(iteration))})
    owned = [folder]

    def reopen():
        owned.pop().close()
        owned.append(again := RunFolder(tmp_path / "run", resume=True, overwrite=False))
        again.start("some", DistillConfig(lr=0.5), "data")
        return again

    yield tmp_path / "run", reopen
    owned.pop().close()


DAMAGE = {
    "cut": lambda whole: whole[:-3],
    "empty": lambda whole: b"",
    "flipped": lambda whole: whole[:-1] + bytes([whole[-1] ^ 64]),
    "zeroed": lambda whole: whole[:-6] + bytes(6),
    "header": lambda whole: whole[:20] + b"\xff" + whole[21:],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kind, stopped, caplog):
    path, reopen = stopped
    file = path / "checkpoint.safetensors"
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    iteration, tensors = reopen().load_checkpoint()
    assert iteration == 1 and torch.equal(tensors["latents"], torch.ones(3))
    assert "Going on from the checkpoint before it, checkpoint-previous.safetensors" in caplog.text
    assert [json.loads(line)["iteration"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [0]
    (path / "checkpoint-previous.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors .*start again with --overwrite"):
        reopen().load_checkpoint()


def test_a_whole_checkpoint_is_taken_and_the_one_before_goes(stopped):
    path, reopen = stopped
    assert reopen().load_checkpoint()[0] == 2
    reopen().forget_previous()
    assert not (path / "checkpoint-previous.safetensors").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda settings: settings | {"lr": 0.25}, "lr 0.5 → 0.25"),
        (lambda settings: settings | {"seed": 7}, "seed 0 → 7"),
        (lambda settings: {k: v for k, v in settings.items() if k != "lr"}, "lr 0.5 → not said"),
        (lambda settings: {"data": "some"}, "algorithm 'dc' → not said.* and [0-9]+ more"),
    ],
)
def test_settings_edited_between_are_named(edit, said, stopped):
    path, reopen = stopped
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump(edit(yaml.safe_load(file.read_text()))))
    with pytest.raises(ConfigError, match=rf"config\.yaml in .* was cut or edited since the run began: {said}"):
        reopen().load_checkpoint()


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1]\n", b'{"iteration": "x"}\n', b"[" * 5000 + b"\n"])
def test_damaged_metrics_are_dropped_and_said(damage, stopped, caplog):
    path, reopen = stopped
    (path / "metrics.jsonl").write_bytes(damage + b'{"iteration": 1}\n')
    assert reopen().load_checkpoint()[0] == 2
    assert (path / "metrics.jsonl").read_bytes() == b'{"iteration": 1}\n'
    assert "lacks 1 of 2 iterations" in caplog.text


WHOLE = Result(
    images=torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    labels=torch.arange(2).repeat_interleave(2),
    class_names=("a", "b"),
    parameters={"latents": torch.ones(4, 3, 2, 2)},
    config={"data": "x"},
    mean=torch.full((3,), 0.5),
    std=torch.full((3,), 0.25),
)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("images", torch.full((4, 3, 8, 8), float("nan")), "images are finite and from 0 to 1, got nan"),
        ("images", torch.full((4, 3, 8, 8), 1e9), "images are finite and from 0 to 1, got 1e"),
        ("images", torch.full((4, 3, 8, 8), -5.0), "images are finite and from 0 to 1, got -5"),
        ("images", torch.ones(4, 1, 8, 8), "images are floating point of shape"),
        ("images", torch.ones(4, 3, 8, 8, dtype=torch.uint8), "images are floating point of shape"),
        ("labels", torch.tensor([0.0, 0.0, 1.0, 1.0]), "labels are integers"),
        ("labels", torch.tensor([0, 0, 1, 99]), "labels count up from 0 to 1"),
        ("labels", torch.tensor([-1, 0, 1, 1]), "labels count up from 0 to 1"),
        ("labels", torch.tensor([0, 1]), "labels are integers, one for each of 4 images"),
        ("class_names", ("a", "a"), "two classes have the same name"),
        ("mean", torch.full((3,), float("inf")), "mean holds finite"),
        ("std", torch.zeros(3), "std is above 0"),
        ("std", torch.ones(1), "std has 3 values"),
        ("parameters", {"latents": torch.ones(3, 3, 2, 2)}, "latents has a row for each of 4 images"),
        ("parameters", {"latents": torch.full((4, 3, 2, 2), float("nan"))}, "latents holds finite"),
    ],
)
def test_a_set_that_is_none_is_neither_loaded_nor_exported(field, value, said, tmp_path, monkeypatch):
    from ld3m.runs.result import json as used
    from ld3m.runtime.storage import save_tensors

    bad = replace(WHOLE, **{field: value})
    tensors = {"images": bad.images, "labels": bad.labels, "mean": bad.mean, "std": bad.std, **bad.parameters}
    about = {"class_names": used.dumps(bad.class_names), "config": used.dumps(bad.config)}
    (tmp_path / "run").mkdir()
    save_tensors(tmp_path / "run/distilled.safetensors", tensors, about)
    for call in (lambda: ld3m.load(tmp_path / "run"), lambda: export(tmp_path / "run", "imagefolder", tmp_path / "to")):
        with pytest.raises(CheckpointError, match=f"is no distilled set: {said}"):
            call()
    assert not (tmp_path / "to").exists()


def test_a_folder_cannot_end_the_fence_of_a_card(tmp_path):
    name = "x\n```\n<script>alert(1)</script>"
    replace(WHOLE, config={"data": name, "init": "```"}).save(tmp_path / "run")
    card = (export(tmp_path / "run", "imagefolder", tmp_path / "to") / "README.md").read_text()
    recipe = card[card.index("## Recipe") :]
    assert recipe.count("```") == 2 and "\n<script>" not in card


@pytest.mark.parametrize("value", [1e9, -1, "60", None, [], True, float("nan")])
def test_accuracies_that_are_none_are_refused(value):
    row = {"set": "s", "network": "n", "accuracies": [value], "mean": 1.0, "std": 0.0}
    content = {"rows": [row], "unseen": {}, "protocol": {"name": "quick", "recipes": {}}, "distilled_with": None}
    content["data"] = {"classes": 2, "images_per_class": 1, "test_images": 3, "resolution": 8}
    if value is None:
        Report.from_json(json.dumps(content))  # a training that diverged
        return
    with pytest.raises(CheckpointError, match=r"rows\[0\]\.accuracies\[0\] is"):
        Report.from_json(json.dumps(content))


def test_the_one_before_stays_until_a_damaged_checkpoint_is_replaced(stopped, monkeypatch):
    path, reopen = stopped
    (path / "checkpoint.safetensors").write_bytes(b"")
    folder = reopen()
    folder.load_checkpoint()
    with monkeypatch.context() as patch:
        patch.setattr("ld3m.runs.folder.save_tensors", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            folder.save_checkpoint(2, {"latents": torch.ones(3)})
    folder = reopen()
    assert folder.load_checkpoint()[0] == 1
    for iteration in (2, 3):
        folder.save_checkpoint(iteration, {"latents": torch.full((3,), float(iteration))})
    (path / "checkpoint.safetensors").write_bytes(b"")
    assert reopen().load_checkpoint()[0] == 2


def test_more_iterations_and_moved_sources_are_no_edit_and_stored_from_then_on(tmp_path):
    path, sources = tmp_path / "run", {"prior": "weights"}

    def opened(**settings):
        folder = RunFolder(path, resume=path.exists(), overwrite=False)
        folder.start("some", DistillConfig(lr=0.5, **settings), "data", sources)
        return folder

    with opened(iterations=2, prior="a") as folder:
        folder.save_checkpoint(2, {})
    with opened(iterations=2, prior="b") as folder:  # moved, and killed before the next checkpoint
        folder.load_checkpoint()
        folder.prolong("elsewhere", DistillConfig(lr=0.5, iterations=3, prior="b"))
    with opened(iterations=3, prior="b") as folder:
        assert folder.load_checkpoint()[0] == 2
        folder.save_checkpoint(3, {})
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("iterations: 3", "iterations: 2"))
    with pytest.raises(ConfigError, match=r"was cut or edited since the run began: iterations 3 → 2\."):
        opened(iterations=2, prior="b")
    (path / "checkpoint.safetensors").unlink()  # no fingerprint is known, nor settings
    with opened(iterations=2, prior="b") as folder:
        assert folder.load_checkpoint()[0] == 2


def test_rates_that_were_lowered_are_shown_with_those_used():
    row = {"set": "s", "network": "n", "accuracies": [None], "mean": None, "std": 0.0}
    protocol = {"name": "quick", "recipes": {"n": {"epochs": 2, "rate": 0.1}}, "lowered": {"n": 0.2}}
    content = {"rows": [row], "unseen": {"s": None}, "protocol": protocol, "distilled_with": None}
    content["data"] = {"classes": 2, "images_per_class": 1, "test_images": 3, "resolution": 8}
    content["diverged"] = [{"set": "s", "network": "n", "repeat": 0, "variant": "own"}]
    report = Report.from_json(json.dumps(content))
    assert "all its trainings, on every set, were done again at 0.1" in report.table()
    for part, value, said in (
        ("recipes", {"n": {"epochs": 2}}, r"protocol\.recipes\.n is an object with 'rate'"),
        ("recipes", {}, r"protocol\.recipes is an object with 'n'"),
        ("lowered", {"n": "0.2"}, r"protocol\.lowered\.n is a number"),
    ):
        with pytest.raises(CheckpointError, match=said):
            Report.from_json(json.dumps({**content, "protocol": protocol | {part: value}}))


@pytest.fixture
def begun(tmp_path):
    """A run that was killed before its first checkpoint."""
    with RunFolder(tmp_path / "run", resume=False, overwrite=False) as folder:
        folder.start("some", DistillConfig(lr=0.5), "data")
    (tmp_path / "run/metrics.jsonl").write_text('{"iteration": 0}\n')
    return tmp_path / "run"


CUTS = {
    "at a line end": lambda whole: b"".join(whole.splitlines(True)[:9]),
    "after the first line": lambda whole: whole.splitlines(True)[0],
    "in a word": lambda whole: whole[: len(whole) // 2],
    "in the last value": lambda whole: whole[:-3],
    "empty": lambda whole: b"",
    "garbled": lambda whole: whole[:20] + b"\xff\xfe" + whole[22:],
    "edited": lambda whole: whole.replace(b"lr: 0.5", b"lr: 0.25"),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_settings_cut_before_the_first_checkpoint_say_what_to_do(cut, begun):
    whole = (begun / "config.yaml").read_bytes()
    (begun / "config.yaml").write_bytes(cut(whole))
    said = r"config\.yaml .*(was cut or edited before the first checkpoint|Restore).*--overwrite"
    with pytest.raises(ConfigError, match=said):
        RunFolder(begun, resume=True, overwrite=False).stored(DistillConfig)
    (begun / "config.yaml").write_bytes(whole)
    RunFolder(begun, resume=True, overwrite=False).stored(DistillConfig)
    (begun / "config.yaml").write_bytes(cut(whole))
    with RunFolder(begun, resume=False, overwrite=True) as folder:  # as it says
        folder.start("other", DistillConfig(lr=0.125), "data")
    assert RunFolder(begun, resume=True, overwrite=False).stored(DistillConfig)[1].lr == 0.125
    assert not (begun / "metrics.jsonl").exists()


def test_settings_that_are_gone_say_what_to_do(begun):
    (begun / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"run has lost its config\.yaml: restore it, or start again with --ov"):
        RunFolder(begun, resume=True, overwrite=False)
    with RunFolder(begun, resume=False, overwrite=True) as folder:
        folder.start("other", DistillConfig(), "data")
    RunFolder(begun, resume=True, overwrite=False)


def test_settings_that_the_run_changes_itself_are_known(begun, monkeypatch):
    """Also where it is killed between its two files."""
    with RunFolder(begun, resume=True, overwrite=False) as folder:
        folder.start("some", DistillConfig(lr=0.5), "data")
        folder.prolong("some", DistillConfig(lr=0.5, iterations=7))
    with RunFolder(begun, resume=True, overwrite=False) as folder:
        folder.start("some", DistillConfig(lr=0.5, iterations=7), "data")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("ld3m.runs.folder.write_text", interrupt)
            folder.prolong("some", DistillConfig(lr=0.5, iterations=9))
    RunFolder(begun, resume=True, overwrite=False).stored(DistillConfig)


def interrupt(*_args):
    raise KeyboardInterrupt


def test_the_settings_of_an_earlier_release_are_taken_as_they_are(begun):
    marker = json.loads((begun / ".ld3m.json").read_text())
    del marker["settings"]
    (begun / ".ld3m.json").write_text(json.dumps(marker))
    (begun / "config.yaml").write_bytes(CUTS["edited"]((begun / "config.yaml").read_bytes()))
    assert RunFolder(begun, resume=True, overwrite=False).stored(DistillConfig)[1].lr == 0.25
