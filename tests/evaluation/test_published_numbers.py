"""What an evaluation reports is what was trained, tested and asked for: sets, epochs, repeats, stored progress."""

from dataclasses import replace

import pytest
import torch

import ld3m
from ld3m.data import Dataset, load
from ld3m.evaluation import comparison
from ld3m.evaluation.augmentation import cutmix
from ld3m.evaluation.protocols import Protocol, Recipe
from ld3m.evaluation.training import train_and_test

CONVNET = "ConvNet-w0.06"


def protocol(**more: object) -> Protocol:
    return Protocol("own", (CONVNET,), {"ConvNet": Recipe(0.02, 12, 0.0)}, **more)


@pytest.fixture(scope="module")
def around_a_mean() -> Dataset:
    """Three classes whose first training image is the mean of the class and the only one that looks like its tests."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.full((3, 3, 8, 8), 0.4)
    mean[range(3), range(3)] = 0.6
    offsets = 0.2 + 0.2 * torch.rand(3, 5, 3, 8, 8, generator=draw)
    train = torch.cat([mean[:, None], mean[:, None] + offsets, mean[:, None] - offsets], 1)  # (3, 11, 3, 8, 8)
    test = (mean.roll(1, 0)[:, None] + 0.3 * torch.randn(3, 30, 3, 8, 8, generator=draw)).clamp(0, 1)
    labels = torch.arange(3)
    pairs = (train.flatten(0, 1), labels.repeat_interleave(11)), (test.flatten(0, 1), labels.repeat_interleave(30))
    return load(dict(zip(("train", "test"), pairs, strict=True)), resolution=8)


def test_kmeans_trains_on_the_training_images_nearest_to_the_means(around_a_mean):
    data = around_a_mean
    nearest = data.train.batch([0, 11, 22])
    report = ld3m.evaluate((nearest, torch.arange(3)), data, protocol=protocol(), repeats=3, progress=False)
    distilled, random, kmeans = (row["accuracies"] for row in report.rows)
    assert kmeans == distilled != random
    assert len(set(kmeans)) > 1  # the figures can tell


def test_the_last_epoch_is_the_result_and_the_best_of_those_tested_stands_beside_it(around_a_mean):
    data = around_a_mean
    images, labels = data.train.batch([0, 11, 22]), torch.arange(3)
    rows = {}
    for tested in (1, 2, 12):
        options = {"protocol": protocol(tested=tested), "repeats": 4, "baselines": (), "progress": False}
        [rows[tested]] = ld3m.evaluate((images, labels), data, **options).rows
    assert rows[1]["accuracies"] == rows[2]["accuracies"] == rows[12]["accuracies"]
    assert "best_epoch" not in rows[1]
    best, last = rows[12]["best_epoch"]["accuracies"], rows[12]["accuracies"]
    assert all(b >= a for a, b in zip(last, best, strict=True)) and best != last
    assert "best_epoch" in rows[2]


@pytest.mark.parametrize("tested", [1, 2, 5])
def test_as_many_epochs_are_tested_as_the_protocol_says(tested, toy):
    images, labels = toy.train.batch(range(6)), toy.train.labels[:6]
    generator = torch.Generator().manual_seed(0)
    [found] = train_and_test(CONVNET, [images], labels, toy, protocol(tested=tested), [generator])
    assert len(found) == tested


def test_accuracies_stand_in_the_order_of_the_repeats(toy):
    good, labels = toy.train.batch(range(30)), toy.train.labels[:30]
    sets = [good, good.roll(1, 1), good.roll(2, 1)]  # the second and third show every class in another's color
    recipes = {"ConvNet": Recipe(0.05, 30, 0.0)}
    generators = [torch.Generator().manual_seed(repeat) for repeat in range(3)]
    found = train_and_test(CONVNET, sets, labels, toy, replace(protocol(), recipes=recipes), generators)
    first, second, third = (accuracies[-1] for accuracies in found)
    assert first > 80 and max(second, third) < 20  # chance is 33


def test_cutmix_pastes_areas_that_are_uniform_before_they_are_cut_off():
    """A box of share u = s² at a uniform place keeps s − s²/4 of each side on average: E[u − u^1.5 / 2 + u² / 16]."""
    images, draw = torch.zeros(2, 3, 64, 64), torch.Generator().manual_seed(0)
    pasted = torch.tensor([1 - cutmix(images, draw)[1].kept for _ in range(3000)])
    assert float(pasted.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)
    assert float(pasted.max()) > 0.85


CHANGES = {
    "seed": {"seed": 1},
    "data": {"data": "darker"},
    "full_epochs": {"full_epochs": 3},
    "epochs": {"epochs": 7},
    "protocol": {"protocol": protocol(weight_decay=0.0)},
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_an_interrupted_evaluation_goes_on_only_with_what_decides_the_same_numbers(change, toy, tmp_path, monkeypatch):
    calls = []

    def train(*_arguments, **_more):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return [[float(len(calls))]]

    monkeypatch.setattr(comparison, "train_and_test", train)
    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    images = toy.train.batch(range(3))
    config = {"space": "pixel", "network": "ConvNet"}
    result = ld3m.Result(images, torch.arange(3), toy.class_names, {}, config, toy.mean, toy.std)
    folder = result.save(tmp_path / "run")
    options = {"data": toy, "protocol": protocol(), "repeats": 2, "scores": ("lrs",), "progress": False}
    with pytest.raises(KeyboardInterrupt):
        ld3m.evaluate(folder, **options)
    calls[:] = [1] * 10
    options |= CHANGES.get(change, {})
    if options["data"] == "darker":
        darker = replace(toy.train, images=toy.train.images // 2)
        options["data"] = replace(toy, train=darker, mean=toy.mean / 2, std=toy.std / 2)
    ld3m.evaluate(folder, **options)
    assert len(calls) - 10 == (4 if change is None else 7)  # of two repeats on three sets, and all real images once
