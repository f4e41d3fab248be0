"""Runs exported as data sets."""

import contextlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ld3m.errors import CheckpointError, ConfigError, Ld3mError
from ld3m.runs import exporting, pictures
from ld3m.runs.exporting import export
from ld3m.runs.result import Result, folder_names
from ld3m.runtime import exchange, locks
from ld3m.runtime.storage import load_tensors, owning

NAMES = ("shirt", "a|b <b>", "ankle*boot")
FOLDERS = ("shirt", "a-b -b-", "ankle-boot")
IPC = 11  # so that the order of 10.png and 2.png matters
CONFIG = {"data": "sets/shoes.zip", "algorithm": "dm", "lr": 0.1, "learn": ["latents"]}


@pytest.fixture
def result():
    return Result(
        images=torch.rand(3 * IPC, 3, 4, 6, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(3).repeat_interleave(IPC),
        class_names=NAMES,
        parameters={},
        config=CONFIG,
        mean=torch.tensor([0.25, 0.5, 0.75]),
        std=torch.tensor([0.125, 0.25, 0.5]),
    )


@pytest.fixture
def run(result, tmp_path):
    return result.save(tmp_path / "run")


@pytest.fixture
def rounded(result):
    return (result.images * 255).round().to(torch.uint8)


def section(readme, title):
    return re.search(rf"\n## {title}\n\n(.*?)(?=\n## |\Z)", readme, re.S)[1]


def table(text):
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]


def test_the_image_folder_holds_the_rounded_images_by_class(run, tmp_path, rounded):
    to = export(run, "imagefolder", tmp_path / "set")
    assert to == tmp_path / "set"
    for label, folder in enumerate(FOLDERS):
        for k in range(IPC):
            with Image.open(to / folder / f"{k}.png") as picture:
                assert np.array_equal(np.asarray(picture), rounded[label * IPC + k].permute(1, 2, 0).numpy())
    assert sorted(os.listdir(to)) == sorted([*FOLDERS, "README.md"])
    assert all(len(os.listdir(to / folder)) == IPC for folder in FOLDERS)


def test_the_tensors_are_the_rounded_images_and_the_labels(run, tmp_path, result, rounded):
    to = export(run, "safetensors", tmp_path / "set")
    tensors, about = load_tensors(to / "images.safetensors")
    assert tensors.keys() == {"images", "labels"}
    assert tensors["images"].dtype == torch.uint8 and torch.equal(tensors["images"], rounded)
    assert tensors["labels"].dtype == torch.int64 and torch.equal(tensors["labels"], result.labels)
    assert {key: json.loads(value) for key, value in about.items()} == {
        "class_names": list(NAMES),
        "mean": [0.25, 0.5, 0.75],
        "std": [0.125, 0.25, 0.5],
    }
    assert sorted(os.listdir(to)) == ["README.md", "images.safetensors"]


@pytest.mark.parametrize("format", ["imagefolder", "safetensors"])
def test_the_code_of_the_readme_loads_images_and_labels(run, tmp_path, monkeypatch, format, result, rounded):
    to = export(run, format, tmp_path / "set")
    code = re.search(r"```python\n(.*?)\n```", (to / "README.md").read_text(), re.S)[1]
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(to)
    loaded = {}
    exec(code, loaded)
    images = torch.as_tensor(loaded["images"])
    assert torch.equal(images if format == "safetensors" else images.permute(0, 3, 1, 2), rounded)
    assert torch.equal(torch.as_tensor(loaded["labels"]), result.labels)
    assert f"# {tuple(images.shape)} uint8" in code


def test_the_readme_is_a_data_set_card_with_recipe_and_statistics(run, tmp_path):
    readme = (export(run, "safetensors", tmp_path / "set") / "README.md").read_text()
    head = yaml.safe_load(readme.split("---\n")[1])
    assert head["license"] == "unknown" and head["pretty_name"] == "shoes.zip, distilled"
    assert "the terms of the source data apply" in readme
    assert "33 synthetic images of 4 × 6 pixels, 11 for each of 3 classes" in readme
    assert "    mean = [0.25, 0.5, 0.75]\n    std = [0.125, 0.25, 0.5]\n" in readme
    assert yaml.safe_load(section(readme, "Recipe").split("```")[1].removeprefix("yaml")) == CONFIG


def test_the_readme_maps_labels_to_what_imagefolder_loaders_give(run, tmp_path):
    classes = section((export(run, "imagefolder", tmp_path / "set") / "README.md").read_text(), "Classes")
    assert "number classes by sorted folder name" in classes
    assert table(classes)[2:] == [
        ["0", "shirt", "shirt", "2"],
        ["1", r"a\|b &lt;b&gt;", "a-b -b-", "0"],
        ["2", r"ankle\*boot", "ankle-boot", "1"],
    ]


def test_the_readme_has_the_scores_where_there_are_some(run, tmp_path):
    readme = (export(run, "safetensors", tmp_path / "before") / "README.md").read_text()
    assert section(readme, "Scores").strip() == "Not evaluated."
    rows = [
        {"set": "ld3m", "network": "ViT", "accuracies": [60.0, 70.0], "mean": 65.0, "std": 5.0},
        {"set": "random", "network": "VGG11", "accuracies": [40.0], "mean": 40.0, "std": 0.0},
    ]
    evaluation = {"rows": rows, "unseen": {"ld3m": [65.0, 5.0]}, "protocol": {"name": "quick"}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    scores = section((export(run, "safetensors", tmp_path / "after") / "README.md").read_text(), "Scores")
    assert "protocol: quick." in scores
    assert table(scores) == [
        ["trained on", "ViT", "VGG11", "unseen mean"],
        ["---", "---", "---", "---"],
        ["ld3m", "65.0 ± 5.0", "–", "65.0 ± 5.0"],
        ["random", "–", "40.0 ± 0.0", "–"],
    ]
    single = {"rows": rows[1:], "unseen": {}, "protocol": {"name": "quick"}}
    (run / "evaluation.json").write_text(json.dumps(single))
    scores = section((export(run, "safetensors", tmp_path / "single") / "README.md").read_text(), "Scores")
    assert "±" not in scores and "one training; protocol: quick." in scores
    assert table(scores)[2] == ["random", "40.0"]


def test_the_readme_says_what_diverged(run, tmp_path):
    rows = [
        {"set": "ld3m", "network": "ViT", "accuracies": [60.0, None, 70.0], "mean": 65.0, "std": 7.1},
        {"set": "random", "network": "ViT", "accuracies": [None] * 3, "mean": None, "std": 0.0},
    ]
    evaluation = {"rows": rows, "unseen": {"ld3m": [65.0, 7.1], "random": None}, "protocol": {"name": "quick"}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    scores = section((export(run, "safetensors", tmp_path / "set") / "README.md").read_text(), "Scores")
    assert table(scores)[2:] == [
        ["ld3m", "65.0 ± 7.1 (diverged 1 of 3)", "65.0 ± 7.1 (diverged 1 of 3)"],
        ["random", "diverged", "diverged"],
    ]
    assert "Trainings that diverged" in scores


def test_the_readme_has_the_scores_of_soft_labels(run, tmp_path):
    rows = [{"set": "ld3m", "network": "ViT", "accuracies": [60.0, 70.0], "mean": 65.0, "std": 5.0, "labels": "soft"}]
    soft = {"rows": rows, "unseen": {}, "protocol": {"name": "rded"}}
    (run / "evaluation-soft.json").write_text(json.dumps(soft))
    scores = section((export(run, "safetensors", tmp_path / "soft") / "README.md").read_text(), "Scores")
    assert "Not evaluated" not in scores and "protocol: rded." in scores
    assert table(scores)[2] == ["ld3m", "65.0 ± 5.0"]


def test_the_readme_names_no_folder_of_the_machine(result, tmp_path):
    config = {"data": str(tmp_path / "photos"), "prior": str(tmp_path / "weights.ckpt"), "steps": 10}
    replace(result, config=config).save(tmp_path / "run")
    readme = (export(tmp_path / "run", "safetensors", tmp_path / "set") / "README.md").read_text()
    assert str(tmp_path) not in readme
    assert "data: photos\n" in readme and "prior: weights.ckpt\n" in readme and "steps: 10\n" in readme


def test_folder_names_are_distinct_even_without_regard_to_case():
    assert folder_names(["a/b", "a:b", "A*B", "a-b-1", "README.md", "cat"]) == [
        "a-b",
        "a-b-1",
        "A-B-2",
        "a-b-1-3",
        "README.md-4",
        "cat",
    ]


def test_an_unknown_format_lists_the_valid_ones(run, tmp_path):
    with pytest.raises(ConfigError, match="format must be one of imagefolder, safetensors, got 'csv'"):
        export(run, "csv", tmp_path / "set")


def test_a_run_that_has_not_ended_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="not a finished run"):
        export(tmp_path, "safetensors", tmp_path / "set")


def test_a_file_in_the_way_is_an_error(run, tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(ConfigError, match=r"set is a file; name a folder"):
        export(run, "safetensors", tmp_path / "set", overwrite=True)
    assert (tmp_path / "set").read_text() == "mine"


def test_a_folder_that_is_not_empty_is_replaced_on_request_alone(run, tmp_path):
    to = tmp_path / "set"
    to.mkdir()
    export(run, "safetensors", to)  # an empty folder is no obstacle
    with pytest.raises(ConfigError, match=r"set is not empty; name another folder, or replace .* by --overwrite"):
        export(run, "imagefolder", to)
    assert sorted(os.listdir(to)) == ["README.md", "images.safetensors"]
    export(run, "imagefolder", to, overwrite=True)
    assert sorted(os.listdir(to)) == sorted([*FOLDERS, "README.md"])
    assert sorted(os.listdir(tmp_path)) == ["run", "set"]


def test_overwriting_never_deletes_the_run_or_the_current_folder(run, tmp_path, monkeypatch):
    for to in (run, tmp_path):
        with pytest.raises(ConfigError, match="holds the run itself, which --overwrite would delete"):
            export(run, "safetensors", to, overwrite=True)
    here = tmp_path / "here"
    here.mkdir()
    (here / "notes").write_text("mine")
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match="holds the current folder"):
        export(run, "safetensors", ".", overwrite=True)
    assert (run / "distilled.safetensors").is_file() and (here / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "error, raised", [(OSError(28, "No space left on device"), Ld3mError), (KeyboardInterrupt(), None)]
)
def test_an_export_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch, error, raised):
    to = export(run, "safetensors", tmp_path / "set")
    before = (to / "README.md").read_bytes()
    save, count = pictures.save_png, iter(range(100))

    def fail_late(path, picture):
        if next(count) == 5:
            raise error
        save(path, picture)

    monkeypatch.setattr(exporting.pictures, "save_png", fail_late)
    with pytest.raises(raised or KeyboardInterrupt, match="disk is full" if raised else None):
        export(run, "imagefolder", to, overwrite=True)
    assert sorted(os.listdir(to)) == ["README.md", "images.safetensors"]
    assert (to / "README.md").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["run", "set"]


@pytest.mark.parametrize("ending", [".tmp", "set", None])  # the new folder into its place, the old one out of it, both
def test_a_folder_that_cannot_be_replaced_keeps_its_place(run, tmp_path, monkeypatch, ending):
    to = export(run, "safetensors", tmp_path / "set")
    before, rename = (to / "README.md").read_bytes(), Path.rename

    def fail(path, target):
        if ending is None or path.name.removesuffix(".replaced.tmp").endswith(ending):
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(exchange, "_swapped", (lambda *_: False) if ending else fail)
    with pytest.raises(Ld3mError, match=r"could not write .*set: Device or resource busy"):
        export(run, "imagefolder", to, overwrite=True)
    assert sorted(os.listdir(to)) == ["README.md", "images.safetensors"]
    assert (to / "README.md").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["run", "set"]


def test_what_a_killed_export_left_is_cleared_away_and_other_folders_stay(run, tmp_path):
    mine = [".set.tmp", ".set.replaced", ".sets.12-0123abcd.tmp", ".set.12.tmp"]
    for name in (*mine, ".set.12-0123abcd.tmp"):
        (tmp_path / name / "old").mkdir(parents=True)
    to = export(run, "safetensors", tmp_path / "set")
    export(run, "safetensors", to, overwrite=True)
    assert sorted(os.listdir(to)) == ["README.md", "images.safetensors"]
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "run", "set"])


@pytest.mark.parametrize("has_swap", [True, False])
@pytest.mark.parametrize("moment", range(6))
def test_an_export_killed_at_any_moment_leaves_the_old_or_the_new_one(run, tmp_path, monkeypatch, has_swap, moment):
    """Nothing happens after the kill: no cleaning up either. The next export, overwriting or not, begins from there."""
    to, rename, rmtree = export(run, "safetensors", tmp_path / "set"), Path.rename, shutil.rmtree
    swapped = exchange._swapped if has_swap else lambda *_: False
    left = iter(range(moment))

    def only_some(function):
        def wrapped(*args, **kwargs):
            if next(left, None) is None:
                raise SystemExit
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(Path, "rename", only_some(rename))
        patch.setattr(exchange, "_swapped", only_some(swapped))
        patch.setattr(shutil, "rmtree", only_some(rmtree))
        export(run, "imagefolder", to, overwrite=True)
    if has_swap:
        assert to.is_dir()
    if not to.exists():
        exchange.restore(to)
    assert sorted(os.listdir(to)) in (["README.md", "images.safetensors"], sorted([*FOLDERS, "README.md"]))
    export(run, "imagefolder", to, overwrite=True)
    assert sorted(os.listdir(to)) == sorted([*FOLDERS, "README.md"])
    assert sorted(os.listdir(tmp_path)) == ["run", "set"]


def test_a_former_export_that_lost_its_name_in_a_kill_is_not_lost(run, tmp_path):
    to = export(run, "safetensors", tmp_path / "set")
    to.rename(tmp_path / ".set.12-0123abcd.replaced.tmp")
    with pytest.raises(ConfigError, match="set is not empty; name another folder"):
        export(run, "imagefolder", to)
    assert sorted(os.listdir(to)) == ["README.md", "images.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["notes.md", "shirt/holiday.png", "shirt/deep/0.png", "cat.png", ".git/config", "data.safetensors", "shirt/1"],
)
def test_overwriting_deletes_nothing_that_no_export_wrote(run, tmp_path, name):
    to = export(run, "imagefolder", tmp_path / "set")
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    (to / name).write_text("mine")
    named = name if name.count("/") == 1 and not name.startswith(".") else name.split("/")[0]
    with pytest.raises(
        ConfigError, match=rf"set holds {re.escape(named)}.*, which no export wrote and --overwrite would"
    ):
        export(run, "imagefolder", to, overwrite=True)
    assert (to / name).read_text() == "mine"


@pytest.mark.parametrize("readme", [None, "", "# Mine", "---\ntags: [ld3m]\n---\n", "---\n: [\n---\n", "---\n1\n---\n"])
def test_a_folder_without_the_card_of_an_export_is_not_replaced(run, tmp_path, readme):
    (tmp_path / "set" / "cats").mkdir(parents=True)
    (tmp_path / "set" / "cats" / "0.png").write_text("mine")
    if readme is not None:
        (tmp_path / "set" / "README.md").write_text(readme)
    with pytest.raises(ConfigError, match=r"set holds cats, which no export wrote"):
        export(run, "imagefolder", tmp_path / "set", overwrite=True)
    assert (tmp_path / "set" / "cats" / "0.png").read_text() == "mine"


def test_an_export_has_its_name_for_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    with owning(tmp_path / "set", is_file=True), ThreadPoolExecutor(1) as pool:
        error = pool.submit(export, run, "imagefolder", tmp_path / "set").exception()
        assert isinstance(error, ConfigError) and "set is being written by process" in str(error)
        assert pool.submit(export, run, "imagefolder", tmp_path / "other").exception() is None
    assert sorted(os.listdir(tmp_path)) == ["other", "run"]


def test_an_export_whose_folder_is_removed_while_it_is_written_is_an_error(run, tmp_path, monkeypatch):
    save, count = pictures.save_png, iter(range(100))

    def remove_late(path, picture):
        if next(count) == 5:
            shutil.rmtree(path.parent.parent)
        save(path, picture)

    monkeypatch.setattr(exporting.pictures, "save_png", remove_late)
    with pytest.raises(Ld3mError, match="where the export was written, was removed meanwhile; export again"):
        export(run, "imagefolder", tmp_path / "set")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_an_export_into_the_data_is_refused(result, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
    replace(result, config={"data": str(tmp_path / "data")}).save(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"to .+data/set lies in the data .+data, where it would be read as a class"):
        export(tmp_path / "run", "imagefolder", tmp_path / "data" / "set")
    assert sorted(os.listdir(tmp_path / "data")) == ["cat", "dog"]


def test_the_hubs_loader_reads_one_split_whatever_the_classes_are_called(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ("bullet train", "freight car", "test tube", "dev", "val 2", "fox-eval", "contrail")
    images = torch.rand(14, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = Result(images, torch.arange(7).repeat_interleave(2), names, {}, {}, torch.zeros(3), torch.ones(3))
    result.save(tmp_path / "run")
    to = export(tmp_path / "run", "imagefolder", tmp_path / "set")
    for how, options in ((str(to), {}), ("imagefolder", {"data_dir": str(to)})):
        found = datasets.load_dataset(how, cache_dir=str(tmp_path / "cache" / str(len(options))), **options)
        assert set(found) == {"train"}
        folders = [found["train"].features["label"].names[label] for label in found["train"]["label"]]
        assert sorted(name.replace("~", "") for name in folders) == sorted(names * 2)
