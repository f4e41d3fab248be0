"""Trainings that diverge: no results, and the rule that lowers the rate of their network on every set."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from ld3m.evaluation import Report, comparison, evaluate
from ld3m.evaluation.divergence import MOST_HALVINGS
from ld3m.evaluation.inputs import open_inputs
from ld3m.evaluation.protocols import Recipe
from ld3m.evaluation.teacher import Teacher
from ld3m.networks import build
from ld3m.runtime import seeds

CONVNET, ALEXNET = "ConvNet-w0.06", "AlexNet-w0.06"


@pytest.fixture
def pair(toy):
    """The first image of each class, and its labels."""
    positions = torch.cat([toy.train.of_class(k)[:1] for k in range(3)])
    return toy.train.batch(positions), toy.train.labels[positions]


@pytest.fixture
def go(toy, pair):
    def call(inputs=None, **options):
        defaults = {"networks": [CONVNET, ALEXNET], "repeats": 2, "baselines": ["random"], "progress": False}
        return evaluate(inputs or pair, toy, **{**defaults, **options})

    return call


@pytest.fixture
def diverging(monkeypatch):
    """Make trainings diverge that a function of (network, rate, images) says; note all (network, rate)."""
    done = []

    def install(says):
        def train(name, images, labels, data, protocol, generators, **_):
            done.append((name, protocol.recipe(name).rate))
            return [None if says(name, done[-1][1], part) else [50.0 + 10 * done[-1][1]] for part in images]

        monkeypatch.setattr(comparison, "train_and_test", train)
        monkeypatch.setattr(comparison, "num_workers", lambda *_: 1)
        return done

    return install


def test_a_network_that_diverges_at_every_rate_is_null_and_named(go, brief, caplog):
    """Real trainings, at a rate of 1e30."""
    protocol = replace(brief, recipes={"ConvNet": Recipe(0.02, 4, 0.5), "AlexNet": Recipe(1e30, 4, 0.5)})
    with caplog.at_level(logging.WARNING):
        report = go(protocol=protocol)
    rows = {(row["set"], row["network"]): row for row in report.rows}
    assert rows["distilled", ALEXNET] == {
        "set": "distilled", "network": ALEXNET, "accuracies": [None, None], "mean": None, "std": 0.0
    }  # fmt: skip
    assert None not in rows["random", CONVNET]["accuracies"]
    names = [(t["set"], t["network"], t["repeat"], t["variant"]) for t in report.about["diverged"]]
    assert sorted(names) == [(s, ALEXNET, r, "own") for s in ("distilled", "random") for r in range(2)]
    assert report.unseen == {"distilled": None, "random": None}
    assert report.protocol["recipes"][ALEXNET]["rate"] == 1e30 / 2**MOST_HALVINGS
    assert report.protocol["recipes"][CONVNET]["rate"] == 0.02
    assert report.protocol["lowered"] == {ALEXNET: 1e30}
    content = json.loads(report.to_json())
    assert content["rows"][1]["accuracies"] == [None, None] and content["unseen"]["random"] is None
    assert Report.from_json(report.to_json()) == report
    assert f"{ALEXNET} on distilled, repeat 0, diverged at rate 1e+30" in caplog.text
    assert f"{ALEXNET} is trained again on every set at half the rate, 5e+29" in caplog.text
    lines = report.table().splitlines()
    assert lines[1].split()[4:] == ["diverged", "diverged", "1", "KiB"]
    assert f"{ALEXNET} diverged at rate 1e+30: all its trainings, on every set, were done again at 1.25e+29." in lines


def test_all_trainings_of_the_network_are_repeated_at_half_the_rate_and_those_of_others_are_not(
    go, brief, diverging, pair
):
    """At 0.02, AlexNet diverges on the distilled set alone; the random images are trained on again all the same."""
    done = diverging(
        lambda name, rate, images: name == ALEXNET and rate > 0.01 and torch.equal(images.float(), pair[0])
    )
    report = go(protocol=brief)
    assert [at for at in done if at[0] == CONVNET] == [(CONVNET, 0.02)] * 4
    assert [at for at in done if at == (ALEXNET, 0.01)] == [(ALEXNET, 0.01)] * 4
    assert {rate for name, rate in done if name == ALEXNET} == {0.02, 0.01}
    assert {tuple(row["accuracies"]) for row in report.rows if row["network"] == ALEXNET} == {(50.1, 50.1)}
    assert {tuple(row["accuracies"]) for row in report.rows if row["network"] == CONVNET} == {(50.2, 50.2)}
    assert report.protocol["lowered"] == {ALEXNET: 0.02}
    assert "diverged" not in report.about


def test_what_would_be_repeated_anyway_is_not_begun(go, brief, diverging):
    done = diverging(lambda name, rate, images: name == ALEXNET and rate > 0.01)
    go(protocol=brief)
    assert done.count((ALEXNET, 0.02)) == 1


def test_at_the_lowest_rate_every_training_is_done_and_a_lost_one_is_left_out_of_the_mean(go, brief, diverging, pair):
    calls = iter(range(100))
    lowest = 0.02 / 2**MOST_HALVINGS

    def says(name, rate, images):
        return rate > lowest or (torch.equal(images.float(), pair[0]) and next(calls) == 0)

    done = diverging(says)
    report = go(protocol=brief, networks=[CONVNET], repeats=3)
    assert done.count((CONVNET, lowest)) == 6
    distilled, random = report.rows
    score = 50.0 + 10 * lowest
    assert distilled["accuracies"] == [None, score, score]
    assert (distilled["mean"], distilled["std"]) == (pytest.approx(score), 0.0)
    assert random["accuracies"] == [score] * 3
    assert report.about["diverged"] == [{"set": "distilled", "network": CONVNET, "repeat": 0, "variant": "own"}]
    assert report.table().splitlines()[1].endswith("50.0 ± 0.0 (diverged 1 of 3)  1 KiB")


def test_an_interrupted_evaluation_goes_on_at_the_lowered_rate(toy, brief, diverging, go, tmp_path, pair):
    from ld3m import Result

    Result(*pair, toy.class_names, {}, {}, toy.mean, toy.std).save(tmp_path)

    def says(name, rate, images):
        if rate <= 0.01 and len(done) == 4:
            raise KeyboardInterrupt
        return rate > 0.01

    done = diverging(says)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, protocol=brief, networks=[CONVNET])
    assert [rate for _, rate in done] == [0.02, 0.01, 0.01, 0.01]
    report = go(tmp_path, protocol=brief, networks=[CONVNET])
    assert [rate for _, rate in done] == [0.02, 0.01, 0.01, 0.01, 0.01, 0.01]
    assert report.protocol["recipes"][CONVNET]["rate"] == 0.01
    assert not (tmp_path / "evaluation-progress.json").exists()


def test_a_score_that_needs_a_training_that_diverged_is_null(go, brief, monkeypatch):
    def train(name, images, labels, data, protocol, generators, **_):
        return [None if protocol.augmentation == "none" else [50.0]]

    monkeypatch.setattr(comparison, "train_and_test", train)
    report = go(protocol=brief, networks=[CONVNET], scores=["lrs", "ars"])
    assert report.rows[0]["ars"] == {"values": [None, None], "mean": None, "std": 0.0}
    assert report.rows[0]["lrs"]["values"] == [pytest.approx((1 - 1 / torch.e) / (torch.e - 1 / torch.e))] * 2
    assert {t["variant"] for t in report.about["diverged"]} == {"plain"}


def test_progress_is_not_that_of_another_teacher_of_the_same_weights(toy, brief, pair):
    """A teacher that normalises otherwise gives other answers."""
    network = build(CONVNET, num_classes=3, resolution=8, generator=seeds.generator(0))
    keys = []
    for mean in (toy.mean, toy.mean + 0.1, toy.mean):
        about = (toy.class_names, 8, mean, toy.std, toy.name, toy.fingerprint, {})
        teacher = Teacher(network, CONVNET, *about)
        config = comparison.EvaluateConfig(networks=(CONVNET,), repeats=1)
        result = open_inputs(pair, toy)[0]
        keys.append(comparison.Comparison(result, toy, brief, config, torch.device("cpu"), teacher).key())
    assert keys[0] == keys[2] != keys[1]
