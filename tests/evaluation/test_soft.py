"""Soft labels: the loss, the optimiser and batch of `d3hr`, and an evaluation from end to end."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ld3m.errors import ConfigError
from ld3m.evaluation import Report, TeacherTraining, comparison, evaluate, train_teacher
from ld3m.evaluation.augmentation import Mix
from ld3m.evaluation.protocols import Recipe, find, half_cosine
from ld3m.evaluation.training import NormalizedImages, _loss, train
from ld3m.runs.report import layout


@pytest.fixture(scope="module")
def teacher(toy, tmp_path_factory):
    brief = TeacherTraining(network="ConvNet-w0.06", epochs=6, lr=0.05, batch_size=16)
    return train_teacher(toy, tmp_path_factory.mktemp("teacher") / "teacher.safetensors", brief, progress=False)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """One clean image of each class."""
    images = torch.full((3, 3, 8, 8), 0.15)
    images[range(3), range(3)] = 0.75
    return images, torch.arange(3)


def test_soft_loss_is_the_divergence_at_the_temperature():
    logits, wanted = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    p, q = ((values / 20).softmax(1) for values in (wanted, logits))
    divergence = (p * (p.log() - q.log())).sum() / 4
    torch.testing.assert_close(_loss(logits, wanted, None, find("d3hr")), divergence)


def test_hard_loss_of_mixed_images_weighs_both_labels():
    logits, labels = torch.randn(3, 3), torch.tensor([0, 1, 2])
    mix = Mix(torch.tensor([2, 0, 1]), 0.7)
    terms = -logits.log_softmax(1)
    wanted = sum(0.7 * terms[k, k] + 0.3 * terms[k, other] for k, other in enumerate([2, 0, 1])) / 3
    torch.testing.assert_close(_loss(logits, labels, mix, find("d3hr")), wanted)


def test_half_cosine_stops_at_half():
    rates = [half_cosine(2.0, epoch, 300) for epoch in range(300)]
    assert rates[0] == 2.0
    assert rates[150] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 1.0 < rates[-1] < 1.006
    assert rates == sorted(rates, reverse=True)


def test_d3hr_is_as_published():
    protocol = find("d3hr")
    names = ("ConvNet", "ResNet18", "VGG11", "AlexNet", "ViT")
    assert [protocol.recipe(name).rate for name in names] == [1e-3, 1e-3, 5e-4, 1e-4, 1e-4]
    assert {(recipe.epochs, recipe.ema_decay) for recipe in protocol.recipes.values()} == {(300, 0.0)}
    assert (protocol.labels, protocol.temperature) == ("soft", 20)
    assert (protocol.optimiser, protocol.weight_decay, protocol.tested) == ("adamw", 0.01, 9)
    assert protocol.with_epochs(400).recipe("ResNet18") == Recipe(1e-3, 400, 0.0)


@pytest.mark.parametrize(
    ("images", "classes", "size"),
    [(10, 10, 10), (50, 10, 15), (100, 10, 50), (500, 10, 100), (100, 100, 30), (1000, 100, 100), (20_000, 200, 100)],
)
def test_batch_follows_from_the_images_per_class(images, classes, size):
    assert find("d3hr").batch_size(images, classes) == size


def test_other_labels_are_said():
    said = "soft labels instead of hard, at temperature 1"
    assert find("quick").with_labels("soft").deviations[-1] == said
    assert find("d3hr").with_labels("hard").deviations[-1] == "hard labels instead of soft"
    assert find("quick").with_labels("hard") == find("quick").with_labels(None) == find("quick")


@pytest.mark.parametrize("field", ["optimiser", "schedule", "augmentation", "labels"])
def test_unknown_words_of_a_protocol_are_refused(field):
    with pytest.raises(ConfigError, match=f"{field} is one of .*; got 'other'"):
        replace(find("quick"), **{field: "other"})


def test_adamw_by_hand_decays_weights_of_several_axes_only():
    """Two steps of full batches on a linear network, augmentation off."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 2)).double()
    reference, images = copy.deepcopy(network), torch.randn(4, 3, 4, 4, dtype=torch.float64)
    guide = torch.randn(4, 2, dtype=torch.float64)

    def answers(seen: torch.Tensor) -> torch.Tensor:  # by image, since their order is drawn
        return torch.stack([guide[int((images == one).flatten(1).all(1).nonzero())] for one in seen])

    protocol = replace(find("d3hr"), augmentation="none", weight_decay=0.3)
    train(
        [network],
        [images],
        torch.tensor([0, 0, 1, 1]),
        protocol,
        Recipe(0.1, 2, 0.0),
        [torch.Generator()],
        answers=answers,
    )

    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in reference.named_parameters()}
    for step, rate in enumerate((0.1, 0.1 * 0.5 * (1 + math.cos(math.pi / 4))), 1):
        loss = _loss(reference(images), guide, None, protocol)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
                first, second = moments[name]
                first.lerp_(g, 0.1), second.lerp_(g * g, 0.001)
                p *= 1 - rate * (0.3 if p.ndim > 1 else 0)
                p -= rate * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    for got, wanted in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


def test_the_teacher_sees_the_augmented_images(toy, brief):
    seen = []

    def answers(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 3)

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 3))

        def forward(self, images):
            assert torch.equal(images, seen[-1])
            return images.mean((2, 3)) @ self.weight

    images = torch.rand(6, 3, 8, 8)
    protocol = replace(find("d3hr"), batch=4)
    train(
        [Spy()],
        [images],
        torch.arange(3).repeat(2),
        protocol,
        Recipe(0.1, 2, 0.0),
        [torch.Generator()],
        answers=answers,
    )
    assert [len(part) for part in seen] == [4, 2] * 2
    assert not any(torch.equal(part, images[: len(part)]) for part in seen)


def test_rows_carry_the_teacher_beside_random_images(toy, pair, teacher, monkeypatch):
    """Every training is told the teacher and ends below its best epoch: the row is of the last, not of the best."""
    curves, train_and_test = [], comparison.train_and_test

    def spy(*arguments, **options):
        assert options["teacher"] is teacher
        [accuracies] = train_and_test(*arguments, **options)
        assert len(accuracies) == 9
        curves.append([*accuracies[:-2], 100.0, accuracies[-1] / 2 + len(curves)])
        return [curves[-1]]

    monkeypatch.setattr(comparison, "train_and_test", spy)
    monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
    options = {"networks": ["ConvNet-w0.06"], "epochs": 12, "repeats": 2, "progress": False, "together": False}
    report = evaluate(pair, toy, protocol="d3hr", teacher=teacher, baselines=("random",), **options)
    assert [(row["set"], row["labels"], row["teacher"]) for row in report.rows] == [
        ("distilled", "soft", teacher.name),
        ("random", "soft", teacher.name),
    ]
    lasts = [curve[-1] for curve in curves]  # by repeat, and in it by set
    assert [row["accuracies"] for row in report.rows] == [lasts[0::2], lasts[1::2]]
    for row in report.rows:
        assert row["mean"] == pytest.approx(sum(row["accuracies"]) / 2) and row["mean"] < 100
        assert row["best_epoch"] == {"accuracies": [100.0, 100.0], "mean": 100.0, "std": 0.0}
    assert report.about["teacher"]["test_accuracy"] == teacher.about["test_accuracy"]
    table = report.table()
    assert table.splitlines()[0].split() == [
        *("ConvNet-w0.06", "last", "ConvNet-w0.06", "best", "of", "9", "tests", "unseen", "mean", "size"),
    ]
    assert f"Soft labels of the teacher {teacher.name}, for every set." in table
    assert "best of n tests: chosen by test accuracy" in table
    assert Report.from_json(report.to_json()) == report


def test_quick_takes_soft_labels_and_a_folder_keeps_both_tables(toy, pair, teacher, brief, tmp_path):
    from ld3m.runs.result import Result

    result = Result(*pair, toy.class_names, {}, {"space": "ld3m"}, toy.mean, toy.std)
    folder = result.save(tmp_path / "run")
    options = {
        "protocol": brief,
        "networks": ["ConvNet-w0.06"],
        "repeats": 1,
        "progress": False,
        "baselines": ("random",),
    }
    hard = evaluate(folder, toy, **options)
    file = teacher.save(tmp_path / "teacher.safetensors")
    soft = evaluate(folder, toy, **options, labels="soft", teacher=file)
    assert soft.rows[0]["mean"] > 80  # chance is 33
    assert "best_epoch" not in soft.rows[0] and "teacher" not in hard.rows[0]
    assert Report.from_json((folder / "evaluation.json").read_text()) == hard
    assert Report.from_json((folder / "evaluation-soft.json").read_text()) == soft
    assert not (folder / "evaluation-progress.json").exists()


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_scores_are_columns_and_their_trainings_are_kept(toy, pair, teacher, brief, labels):
    given = {"labels": labels, "teacher": teacher if labels == "soft" else None}
    report = evaluate(
        pair, toy, protocol=brief.with_epochs(4), networks=["ConvNet-w0.06"], repeats=2, progress=False,
        baselines=("random",), scores=("lrs", "ars"), full_epochs=2, **given,
    )  # fmt: skip
    extra = {(row["set"], row["variant"]): row["accuracies"] for row in report.about["score_trainings"]}
    hard = [("distilled", "hard")] if labels == "soft" else []
    assert set(extra) == {("full", "full"), ("distilled", "plain"), ("random", "plain"), *hard}
    assert {key: len(values) for key, values in extra.items()} == dict.fromkeys(extra, 2) | {("full", "full"): 1}
    own, other = report.rows
    recovery = [
        (extra["full", "full"][0] - x) / 100 for x in (extra["distilled", "hard"] if hard else own["accuracies"])
    ]
    gain = [(a - b) / 100 for a, b in zip(own["accuracies"], other["accuracies"], strict=True)]
    alphas = [0.5 * g - 0.5 * r for g, r in zip(gain, recovery, strict=True)]
    wanted = [(math.exp(a) - 1 / math.e) / (math.e - 1 / math.e) for a in alphas]
    assert own["lrs"]["values"] == pytest.approx(wanted)
    assert 0 < own["ars"]["mean"] < 1 and "lrs" not in other
    columns, sets = layout(report.rows, report.unseen)
    assert columns[-2:] == ["lrs", "ars"]
    assert sets["random"][-2:] == [None, None]
    line = next(line for line in report.table().splitlines() if line.startswith("distilled"))
    assert f"{own['lrs']['mean']:.3f} ± {own['lrs']['std']:.3f}" in line
    assert json.loads(report.to_json())["rows"][0]["lrs"]["values"] == own["lrs"]["values"]


def test_a_full_training_that_is_too_short_is_said(toy, pair, brief, caplog, monkeypatch):
    monkeypatch.setattr(
        "ld3m.evaluation.comparison.train_and_test",
        lambda _name, images, *_args, **_more: [
            [10.0 if isinstance(part, NormalizedImages) else 40.0] for part in images
        ],
    )
    evaluate(
        pair, toy, protocol=brief, networks=["ConvNet-w0.06"], repeats=2, progress=False, baselines=("random",),
        scores=("lrs",), full_epochs=2,
    )  # fmt: skip
    message = "lrs of ConvNet-w0.06 says nothing: all real images give 10.0 %, random ones of the set's size 40.0 %"
    assert message in caplog.text and "raise full_epochs, which is 2" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "d3hr"}, "soft labels need a teacher; train one with `ld3m teacher`"),
        ({"labels": "soft"}, "soft labels need a teacher"),
        ({"labels": "firm"}, "labels is one of hard, soft; got 'firm'"),
        ({"teacher": "t.safetensors"}, "a teacher has no use for hard labels"),
        ({"labels": "soft", "teacher": "t.safetensors", "baselines": ()}, "stand beside random real images"),
        ({"scores": ["best"]}, "scores are of lrs, ars"),
        ({"scores": ["lrs"], "full_epochs": 1}, "full_epochs is a whole number, at least 2 .* got 1"),
    ],
)
def test_bad_combinations_are_refused(toy, pair, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(pair, toy, **({"protocol": "quick", "networks": ["ConvNet-w0.06"]} | options))


def test_a_teacher_of_other_classes_is_refused_before_any_training(toy, pair, teacher, monkeypatch):
    monkeypatch.setattr(comparison, "train_and_test", None)
    renamed = replace(toy, class_names=("red", "blue", "green"))
    with pytest.raises(ConfigError, match="classes in another order"):
        evaluate(pair, renamed, protocol="d3hr", networks=["ConvNet-w0.06"], teacher=teacher, progress=False)
