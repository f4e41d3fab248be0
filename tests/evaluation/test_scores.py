"""Scores of DD-Ranking by hand, and the trainings they need."""

import math

import pytest

from ld3m.errors import ConfigError
from ld3m.evaluation import scores
from ld3m.evaluation.protocols import find
from ld3m.evaluation.runner import Training


def test_the_scores_are_normalised_to_the_unit_interval():
    assert scores.normalized(-1) == 0
    assert scores.normalized(1) == pytest.approx(1)
    assert scores.normalized(0) == pytest.approx((1 - 1 / math.e) / (math.e - 1 / math.e))


def accuracies(table: dict[Training, float]):
    return lambda training: table[training]


OWN = Training("ld3m", "AlexNet", 1)


def test_label_robust_score_with_soft_labels():
    # improvement 0.6 - 0.5, hard label recovery 0.9 - 0.4: alpha = 0.05 - 0.25
    table = {
        OWN: 60.0,
        Training("random", "AlexNet", 1): 50.0,
        Training("ld3m", "AlexNet", 1, "hard"): 40.0,
        Training("full", "AlexNet", 0, "full"): 90.0,
    }
    wanted = (math.exp(-0.2) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.score("lrs", accuracies(table), "soft", OWN) == pytest.approx(wanted)


def test_label_robust_score_with_hard_labels_takes_the_protocols_own_training():
    table = {OWN: 60.0, Training("random", "AlexNet", 1): 50.0, Training("full", "AlexNet", 0, "full"): 90.0}
    wanted = (math.exp(0.05 - 0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.score("lrs", accuracies(table), "hard", OWN) == pytest.approx(wanted)


def test_augmentation_robust_score():
    table = {
        OWN: 60.0,
        Training("random", "AlexNet", 1): 50.0,
        Training("ld3m", "AlexNet", 1, "plain"): 45.0,
        Training("random", "AlexNet", 1, "plain"): 15.0,
    }
    wanted = (math.exp(0.05 + 0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.score("ars", accuracies(table), "soft", OWN) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("names", "labels", "wanted"),
    [
        ((), "soft", []),
        (("lrs",), "hard", [("full", 0, "full")]),
        (("lrs",), "soft", [("full", 0, "full"), ("ld3m", 0, "hard"), ("ld3m", 1, "hard")]),
        (("ars",), "hard", [(of, repeat, "plain") for of in ("ld3m", "random") for repeat in (0, 1)]),
    ],
)
def test_only_the_trainings_that_are_needed_are_asked_for(names, labels, wanted):
    got = scores.trainings(names, labels, "ld3m", "AlexNet", 2)
    assert [(training.set, training.repeat, training.variant) for training in got] == wanted


def test_variants_change_one_thing():
    protocol = find("d3hr")
    assert scores.variant(protocol, "own", 7) is protocol
    hard, plain, full = (scores.variant(protocol, name, 7) for name in ("hard", "plain", "full"))
    assert (hard.labels, hard.augmentation, hard.tested) == ("hard", "crop-cutmix", 1)
    assert (plain.labels, plain.augmentation, plain.tested) == ("soft", "none", 1)
    assert (full.labels, full.recipe("ResNet18").epochs) == ("hard", 7)


def test_unknown_scores_and_missing_random_images_are_refused():
    with pytest.raises(ConfigError, match="scores are of lrs, ars; got 'hlr'"):
        scores.check(["hlr"], ["random"])
    with pytest.raises(ConfigError, match="ars compares with random real images; keep 'random'"):
        scores.check(["ars"], ["kmeans"])
    scores.check([], [])
