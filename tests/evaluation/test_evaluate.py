"""`evaluate` from end to end on toy data, its files, and what it refuses."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from ld3m.data import ImageSet
from ld3m.errors import CheckpointError, ConfigError, DataError, InputError, Ld3mError
from ld3m.evaluation import Report, comparison, evaluate
from ld3m.networks import build
from ld3m.runtime import locks


@pytest.fixture
def report(toy) -> Report:
    images = torch.full((3, 3, 8, 8), 0.15)
    images[range(3), range(3)] = 0.75
    pair = images, torch.arange(3)
    return evaluate(
        pair, toy, protocol="quick", networks=["ConvNet-w0.06", "AlexNet-w0.03"], epochs=30, repeats=3, progress=False
    )


def test_a_tiny_network_learns_from_each_set(report):
    for row in report.rows:
        if row["network"].startswith("ConvNet"):
            assert row["mean"] > 80  # chance is 33


def test_rows_cover_sets_networks_and_repeats(report):
    assert [(row["set"], row["network"]) for row in report.rows] == [
        (name, network) for name in ("distilled", "random", "kmeans") for network in ("ConvNet-w0.06", "AlexNet-w0.03")
    ]
    assert {len(row["accuracies"]) for row in report.rows} == {3}


def test_json_round_trip_and_facts(report):
    assert Report.from_json(report.to_json()) == report
    about = report.about
    assert about["storage_bytes"] == {
        "distilled": {"images": 3 * 3 * 64 * 4, "labels": 24},
        "random": {"images": 3 * 3 * 64, "labels": 24},
        "kmeans": {"images": 3 * 3 * 64, "labels": 24},
    }
    assert {name: len(seeds) for name, seeds in about["seeds"].items()} == {
        "ConvNet-w0.06": 3, "AlexNet-w0.03": 3, "random": 3, "kmeans": 1,
    }  # fmt: skip
    assert about["data"]["test_images"] == 90
    assert about["data"]["images_per_class"] == 1
    assert report.protocol["deviations"][-1] == "30 epochs instead of 60 / 150 / 300"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_numbers_however_trainings_are_scheduled(toy, result, brief, threads):
    brief = brief.with_epochs(6)
    options = {"protocol": brief, "networks": ["ConvNet-w0.06"], "repeats": 2, "progress": False}
    serial = evaluate(result, toy, **options)
    torch.set_num_threads(threads)  # two workers with a thread each, at 2
    other = evaluate(result, toy, **options)
    assert serial.rows == other.rows
    assert evaluate(result, toy, **options, seed=1).rows != serial.rows


def test_random_images_are_drawn_anew_and_kmeans_ones_are_not(toy, result, brief, monkeypatch):
    seen, train = [], toy.train.images

    def spy(name, images, labels, data, protocol, generators, **_):
        seen.append(images[0])
        assert labels.tolist() == [0, 1, 2]
        return [[50.0]]

    monkeypatch.setattr(comparison, "train_and_test", spy)
    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    report = evaluate(result, toy, protocol=brief, networks=["ConvNet-w0.06"], repeats=2, progress=False)
    assert [len(report.about["seeds"][name]) for name in ("random", "kmeans")] == [2, 1]
    distilled, random, kmeans, distilled_2, random_2, kmeans_2 = seen
    assert torch.equal(distilled, result.images) and torch.equal(distilled_2, result.images)
    classes = [train[toy.train.labels == label] for label in range(3)]
    distances = [(of_class / 255 - (of_class / 255).mean(0)).flatten(1).norm(dim=1) for of_class in classes]
    middles = [of_class[d.argmin()] for of_class, d in zip(classes, distances, strict=True)]
    assert torch.equal(kmeans, torch.stack(middles)) and torch.equal(kmeans, kmeans_2)
    for images in (random, random_2):  # of the training split, and of their class
        assert all((of_class == image).flatten(1).all(1).any() for of_class, image in zip(classes, images, strict=True))
        assert not torch.equal(images, kmeans)
    assert not torch.equal(random, random_2)


def test_a_repeat_starts_alike_on_every_set(toy, result, brief, monkeypatch):
    states = []

    def spy(name, images, labels, data, protocol, generators, **_):
        states.append(
            (name, build(name, num_classes=3, resolution=8, generator=generators[0]).classifier.weight.sum().item())
        )
        return [[50.0]]

    monkeypatch.setattr(comparison, "train_and_test", spy)
    evaluate(result, toy, protocol=brief, networks=["ConvNet-w0.06"], repeats=2, progress=False)
    assert len(states) == 6 and len(set(states)) == 2


def test_a_folder_gets_its_report_and_an_interrupted_evaluation_goes_on(toy, result, brief, tmp_path, monkeypatch):
    folder = result.save(tmp_path / "run")
    options = {"protocol": brief.with_epochs(4), "networks": ["ConvNet-w0.06"], "repeats": 2, "progress": False}
    whole = evaluate(result, toy, **options)
    calls, train_and_test = [], comparison.train_and_test

    def interrupted(*arguments, **more):
        calls.append(arguments[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train_and_test(*arguments, **more)

    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    monkeypatch.setattr(comparison, "train_and_test", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, toy, **options)
    assert len(calls) == 4 and not (folder / "evaluation.json").exists()
    report = evaluate(folder, toy, **options)
    assert len(calls) == 4 + 3  # three of six were done
    assert report.rows == whole.rows
    assert [row["set"] for row in report.rows] == ["ld3m", "random", "kmeans"]
    assert Report.from_json((folder / "evaluation.json").read_text()) == report
    assert not (folder / "evaluation-progress.json").exists()


@pytest.mark.parametrize("is_removed", [False, True])
def test_an_evaluation_owns_the_folder(is_removed, toy, result, brief, tmp_path, monkeypatch):
    """Another one is refused meanwhile; a folder that is removed is not made anew, and is an error."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    folder, errors = result.save(tmp_path / "run"), []
    options = {"protocol": brief.with_epochs(2), "networks": ["ConvNet-w0.06"], "repeats": 1, "progress": False}
    train_and_test = comparison.train_and_test

    def meanwhile(*arguments, **more):
        if not errors:
            with ThreadPoolExecutor(1) as pool:
                errors.append(pool.submit(evaluate, folder, toy, **options).exception())
            if is_removed:
                shutil.rmtree(folder)
        return train_and_test(*arguments, **more)

    monkeypatch.setattr(comparison, "train_and_test", meanwhile)
    if is_removed:
        with pytest.raises(Ld3mError, match="run was removed while it was written"):
            evaluate(folder, toy, **options)
        assert not folder.exists()
    else:
        evaluate(folder, toy, **options)
        assert (folder / "evaluation.json").is_file() and not (folder / ".ld3m.lock").exists()
    assert isinstance(errors[0], ConfigError) and "run is being written by process" in str(errors[0])


def test_progress_of_other_settings_is_kept_and_not_used(toy, result, brief, tmp_path, monkeypatch, caplog):
    folder = result.save(tmp_path)
    calls = []
    monkeypatch.setattr(comparison, "train_and_test", lambda *_, **__: calls.append(1) or [[50.0]])
    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    others = {"other": [[["ld3m", "ConvNet", 0, "own"], [12.5]]]}
    (folder / "evaluation-progress.json").write_text(json.dumps(others))
    options = {"protocol": brief, "networks": ["ConvNet-w0.06"], "repeats": 1, "baselines": (), "progress": False}
    evaluate(folder, toy, **options)
    assert len(calls) == 1
    assert json.loads((folder / "evaluation-progress.json").read_text()) == others
    (folder / "evaluation-progress.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        evaluate(folder, toy, **options)
    assert len(calls) == 2
    assert "evaluation-progress.json is damaged" in caplog.text


def test_a_finished_evaluation_leaves_the_trainings_of_one_that_was_broken_off(
    toy, result, brief, tmp_path, monkeypatch
):
    folder, calls = result.save(tmp_path), []

    def broken_off(name, *arguments, **more):
        calls.append(name)
        if name == "ConvNet-w0.1":
            raise KeyboardInterrupt
        return [[50.0]]

    monkeypatch.setattr(comparison, "train_and_test", broken_off)
    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    options = {"protocol": brief, "repeats": 1, "baselines": (), "progress": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, toy, networks=["ConvNet-w0.06", "ConvNet-w0.1"], **options)
    evaluate(folder, toy, networks=["ConvNet-w0.08"], **options)
    monkeypatch.setattr(comparison, "train_and_test", lambda name, *_, **__: calls.append(name) or [[50.0]])
    evaluate(folder, toy, networks=["ConvNet-w0.06", "ConvNet-w0.1"], **options)
    assert calls == ["ConvNet-w0.06", "ConvNet-w0.1", "ConvNet-w0.08", "ConvNet-w0.1"]
    assert not (folder / "evaluation-progress.json").exists()


def test_the_bar_counts_trainings(toy, result, brief, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "train_and_test", lambda *_, **__: [[50.0]])
    evaluate(result, toy, protocol=brief, networks=["ConvNet-w0.06"], repeats=2, progress=True)
    shown = capsys.readouterr()
    assert "evaluate: 6 of 6" in shown.err and shown.out == ""


def test_unequal_numbers_of_images_are_met_by_the_baselines(toy, brief, monkeypatch):
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    counts = []

    def spy(name, images, labels, *_, **__):
        counts.append(torch.bincount(labels).tolist())
        return [[50.0]]

    monkeypatch.setattr(comparison, "train_and_test", spy)
    report = evaluate(
        (torch.rand(6, 3, 8, 8), labels), toy, protocol=brief, networks=["ConvNet-w0.06"], repeats=1, progress=False
    )
    assert counts == [[2, 1, 3]] * 3
    assert report.about["data"]["images_per_class"] == "1 to 3"


def test_uint8_images_are_read_as_fractions(toy, result, brief, monkeypatch):
    seen = []
    monkeypatch.setattr(comparison, "train_and_test", lambda name, images, *_, **__: seen.append(images[0]) or [[50.0]])
    images = (result.images * 255).byte()
    evaluate(
        (images, result.labels),
        toy,
        protocol=brief,
        networks=["ConvNet-w0.06"],
        repeats=1,
        baselines=(),
        progress=False,
    )
    assert torch.equal(seen[0], images.float() / 255)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"protocol": "quik"}, ConfigError, "did you mean 'quick'"),
        ({"networks": ["AlexNot"]}, ConfigError, "unknown network 'AlexNot'; did you mean AlexNet.* Known: ConvNet"),
        ({"networks": ["AlexNet-x2"]}, ConfigError, "unknown network 'AlexNet-x2'"),
        ({"networks": []}, ConfigError, "networks names at least one"),
        ({"protocol": "quick", "networks": ["VGG11"]}, ConfigError, "needs resolution >= 32, got 8"),
        ({"baselines": ["mean"]}, ConfigError, "baselines are of random, kmeans, .*; got 'mean'"),
        ({"repeats": 0}, ConfigError, "repeats is a whole number, at least 1; got 0"),
        ({"epochs": 1}, ConfigError, "epochs is a whole number, at least 2"),
        ({"device": "nonsense"}, ConfigError, "device 'nonsense' cannot be used"),
    ],
)
def test_bad_settings_are_refused(toy, result, brief, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(result, toy, **({"protocol": brief, "networks": ["ConvNet-w0.06"]} | options))


def assert_refused(error, message, subject, data, **options):
    with pytest.raises(error, match=message):
        evaluate(subject, data, protocol="quick", networks=["ConvNet-w0.06"], **options)


def test_bad_subjects_are_refused(toy, result, tmp_path):
    assert_refused(CheckpointError, "is not a folder", tmp_path / "nowhere", toy)
    assert_refused(CheckpointError, "has no distilled.safetensors", tmp_path, toy)
    assert_refused(InputError, "got int", 3, toy)
    assert_refused(InputError, r"square, .* got \(3, 8, 8\)", (torch.rand(3, 8, 8), torch.arange(3)), toy)
    assert_refused(InputError, r"one for each of 3 images; got \(2,\)", (result.images, torch.arange(2)), toy)
    assert_refused(InputError, "NaN or infinite", (result.images / 0, torch.arange(3)), toy)
    assert_refused(InputError, r"labels must be 0…2, .* found \[0, 1\]", (result.images, torch.tensor([0, 1, 1])), toy)
    assert_refused(InputError, r"found \[0, 1, 3\]", (result.images, torch.tensor([0, 1, 3])), toy)


def test_data_that_does_not_fit_is_refused(toy, result):
    two = ImageSet(toy.train.images[:2], toy.train.labels[:2], ("red", "green"))
    assert_refused(
        DataError, "has 3 classes, data .* has 2", result, replace(toy, train=two, class_names=("red", "green"))
    )
    renamed = replace(toy, class_names=("red", "blue", "grey"))
    assert_refused(DataError, r"first 'green' and 'blue' \(2 of 3 differ\)", result, renamed)
    assert_refused(DataError, "no test split to evaluate on", result, replace(toy, test=None))
    assert_refused(DataError, "resolution 8, asked for is 16", (torch.rand(3, 3, 16, 16), torch.arange(3)), toy)
    many = (result.images.repeat_interleave(21, 0), result.labels.repeat_interleave(21))
    assert_refused(DataError, "has 20 images, images per class 21", many, toy)


def test_more_distilled_than_real_images_are_fine_without_baselines(toy, result, brief, monkeypatch):
    monkeypatch.setattr(comparison, "train_and_test", lambda *_, **__: [[50.0]])
    many = (result.images.repeat_interleave(21, 0), result.labels.repeat_interleave(21))
    report = evaluate(many, toy, protocol=brief, networks=["ConvNet-w0.06"], baselines=(), repeats=1, progress=False)
    assert report.about["data"]["images_per_class"] == 21
