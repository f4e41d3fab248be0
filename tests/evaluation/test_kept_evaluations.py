"""Evaluations of a run side by side: none is destroyed, and page and card show all."""

import json
from dataclasses import replace

import pytest

from ld3m.config import DistillConfig, to_yaml
from ld3m.evaluation import comparison, evaluate
from ld3m.runs.evaluations import earlier_files, readable_name
from ld3m.runs.exporting import export
from ld3m.runs.folder import RunFolder

CONVNET = "ConvNet-w0.06"


@pytest.fixture
def go(toy, result, brief, tmp_path, monkeypatch):
    """Evaluate the set in tmp_path/run: trainings give what the caller says."""
    folder = result.save(tmp_path / "run")

    def call(accuracy, **options):
        monkeypatch.setattr(comparison, "train_and_test", lambda name, images, *_, **__: [[accuracy]] * len(images))
        defaults = {"protocol": brief, "networks": [CONVNET], "repeats": 1, "progress": False}
        return evaluate(folder, toy, **{**defaults, **options})

    call.folder = folder
    return call


def kept(folder):
    return {path.name: json.loads(path.read_text())["rows"][0]["mean"] for path in earlier_files(folder)}


def newest(folder):
    return json.loads((folder / "evaluation.json").read_text())["rows"][0]["mean"]


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"repeats": 2}, {"networks": ["ConvNet-w0.08"]}, {"epochs": 7}, {"baselines": ()}],
    ids=lambda options: next(iter(options)),
)
def test_an_evaluation_of_other_settings_leaves_the_one_before(go, other):
    first = go(63.25)
    assert not earlier_files(go.folder)
    go(10.5, **other)
    assert newest(go.folder) == 10.5
    assert kept(go.folder) == {f"{first.about['key']}.json": 63.25}
    assert first.about["key"].startswith(f"quick_{CONVNET}_seed0_")
    # The first once more: it is the newest again, and the other one is kept.
    go(63.25)
    assert newest(go.folder) == 63.25 and list(kept(go.folder).values()) == [10.5]


def test_the_same_evaluation_again_replaces_itself(go):
    go(63.25)
    go(63.25)
    assert newest(go.folder) == 63.25 and not earlier_files(go.folder)


def test_of_another_set_of_the_same_folder_too(go, result):
    go(63.25)
    replace(result, images=result.images.flip(3) * 0.5).save(go.folder)
    go(12.5)
    assert list(kept(go.folder).values()) == [63.25]


def test_page_and_card_show_all(go, tmp_path):
    go(63.25)
    go(10.5, seed=1)
    go(20.5, seed=2)
    page = (go.folder / "report.html").read_text()
    newest, earlier = page.split("<h2>Earlier evaluations</h2>")
    assert "20.5" in newest and "63.2" not in newest
    assert "63.2" in earlier and "10.5" in earlier
    assert "seed 0</h3>" in earlier and "seed 1</h3>" in earlier
    card = (export(go.folder, "safetensors", tmp_path / "set") / "README.md").read_text()
    assert card.index("20.5") < card.index("63.2") and "10.5" in card


def test_an_evaluation_from_before_they_had_names_is_kept(go):
    go(63.25)
    path = go.folder / "evaluation.json"
    content = json.loads(path.read_text())
    del content["key"]
    path.write_text(json.dumps(content))
    go(63.25)
    (name,) = kept(go.folder)
    assert name.startswith(f"quick_{CONVNET}_seed0_")


def test_what_is_damaged_is_not_kept(go):
    go(63.25)
    (go.folder / "evaluation.json").write_text("{")
    go(63.25)
    assert newest(go.folder) == 63.25 and not earlier_files(go.folder)


def test_a_name_leads_nowhere_else(go):
    go(63.25)
    path = go.folder / "evaluation.json"
    path.write_text(path.read_text().replace('"key": "quick', '"key": "../../quick'))
    go(10.5, seed=1)
    assert [path.parent for path in earlier_files(go.folder)] == [go.folder / "evaluations"]


def test_names_are_readable_and_of_bounded_length():
    name = readable_name("quick", ["AlexNet-w0.5", "VGG11"], 3, "my photos/ä", "0123456789")
    assert name == "quick_AlexNet-w0.5+VGG11_seed3_my-photos--_01234567"
    assert readable_name("quick", list("abcdef"), 0, "x", "0" * 16) == "quick_a+b+c+d+2_seed0_x_00000000"
    assert len(readable_name("quick", ["n" * 300], 0, "x", "0" * 16)) == 200


def test_overwriting_a_run_removes_its_evaluations_and_resuming_does_not(go):
    go(63.25)
    go(10.5, seed=1)
    mine = go.folder / "evaluations" / "mine.txt"
    mine.write_text("kept")
    (go.folder / "config.yaml").write_text(to_yaml(DistillConfig(), data="builtin"))
    RunFolder(go.folder, resume=True, overwrite=False).start("builtin", DistillConfig(), "")
    assert len(earlier_files(go.folder)) == 1
    RunFolder(go.folder, resume=False, overwrite=True).start("builtin", DistillConfig(), "")
    assert not earlier_files(go.folder) and mine.is_file()
