"""Weights of images in results, files and exports."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ld3m.errors import CheckpointError
from ld3m.runs.exporting import export
from ld3m.runs.result import Result, load
from ld3m.runtime.storage import load_tensors, save_tensors

WEIGHTS = torch.tensor([0.5, 1.5, 1.0, 1.0])


@pytest.fixture
def weighted():
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    labels, config = torch.tensor([0, 0, 1, 1]), {"data": "builtin", "by": "kmeans"}
    return Result(images, labels, ("a", "b"), {}, config, mean, std, weights=WEIGHTS)


def test_they_are_saved_and_loaded(weighted, tmp_path):
    assert torch.equal(load(weighted.save(tmp_path)).weights, WEIGHTS)
    assert load(replace(weighted, weights=None).save(tmp_path)).weights is None


def test_a_set_without_has_none_in_its_file(weighted, tmp_path):
    replace(weighted, weights=None).save(tmp_path)
    assert "weights" not in load_tensors(tmp_path / "distilled.safetensors")[0]


def test_a_detached_set_keeps_them(weighted, tmp_path):
    loaded = load(weighted.save(tmp_path))
    assert torch.equal(loaded.detached().weights, WEIGHTS) and loaded.detached().path is None


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        (torch.tensor([1.0, 1.0]), "one for each of 4 images"),
        (torch.tensor([1, 1, 1, 1]), "weights are finite numbers"),
        (torch.tensor([1.0, float("nan"), 1.0, 1.0]), "weights are finite numbers"),
        (torch.tensor([1.0, -1.0, 1.0, 1.0]), "weights are 0 or more"),
        (torch.zeros(4), "not all 0"),
    ],
)
def test_damaged_ones_are_refused(weights, fault, weighted, tmp_path):
    weighted.save(tmp_path)
    tensors, about = load_tensors(tmp_path / "distilled.safetensors")
    save_tensors(tmp_path / "distilled.safetensors", {**tensors, "weights": weights}, about)
    with pytest.raises(CheckpointError, match=fault):
        load(tmp_path)


@pytest.mark.parametrize("format", ["imagefolder", "safetensors"])
def test_every_export_has_them(format, weighted, tmp_path, monkeypatch):
    """The code of the card reads them, in the order of the labels."""
    to = export(weighted.save(tmp_path / "run"), format, tmp_path / "to")
    card = (to / "README.md").read_text()
    assert "is to be multiplied by its weight" in card
    monkeypatch.chdir(to)
    found: dict = {}
    exec(card.partition("```python\n")[2].partition("```")[0], found)
    np.testing.assert_allclose(np.asarray(found["weights"]), WEIGHTS.numpy())
    assert len(found["labels"]) == 4
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "run", format, to, overwrite=True)  # it is known as an export


def test_the_files_of_a_folder_are_named(weighted, tmp_path):
    to = export(weighted.save(tmp_path / "run"), "imagefolder", tmp_path / "to")
    with open(to / "weights.csv") as file:
        rows = {row["file"]: float(row["weight"]) for row in csv.DictReader(file)}
    assert rows == {"a/0.png": 0.5, "a/1.png": 1.5, "b/0.png": 1, "b/1.png": 1}
    assert all((to / name).is_file() for name in rows)


def test_an_export_without_says_nothing_of_them(weighted, tmp_path):
    to = export(replace(weighted, weights=None).save(tmp_path / "run"), "imagefolder", tmp_path / "to")
    assert not (to / "weights.csv").exists() and "weight" not in (to / "README.md").read_text()


def test_json_of_reports_has_sizes(tmp_path):
    from ld3m.runs.report import Report, size_text, stored_bytes

    about = {"storage_bytes": {"ld3m": {"images": 4096, "labels": 80, "latents": 10**6, "soft_labels": 20}}}
    assert stored_bytes(about) == {"ld3m": 4196} and stored_bytes({}) == {}
    assert [size_text(size) for size in (100, 2048, 20 * 2**20)] == ["0 KiB", "2 KiB", "20 MiB"]
    row = {"set": "ld3m", "network": "ConvNet", "accuracies": [50.0], "mean": 50.0, "std": 0.0}
    data = {"classes": 1, "images_per_class": 1, "test_images": 1, "resolution": 4}
    protocol = {"name": "quick", "recipes": {"ConvNet": {"epochs": 2}}}
    report = Report([row], protocol, None, {"data": data, **about})
    assert report.table().splitlines()[1].endswith("4 KiB")
    assert Report.from_json(report.to_json()).table() == report.table()
    damaged = json.loads(report.to_json()) | {"storage_bytes": {"ld3m": {"images": -1}}}
    with pytest.raises(CheckpointError, match="storage_bytes"):
        Report.from_json(json.dumps(damaged))
