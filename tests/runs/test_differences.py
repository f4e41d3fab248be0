"""Differences between sets, repeat by repeat."""

import math

import pytest

from ld3m.runs.class_tables import class_tables, difference_table
from ld3m.runs.differences import difference_lines, paired


def row(name: str, network: str, *accuracies: float | None) -> dict:
    return {"set": name, "network": network, "accuracies": list(accuracies)}


ROWS = [
    row("own", "ConvNet", 60.0, 62.0, 67.0),
    row("own", "VGG11", 50.0, None, 54.0),
    row("random", "ConvNet", 50.0, 51.0, 52.0),
    row("random", "VGG11", 49.0, 48.0, 50.0),
    row("kmeans", "ConvNet", 50.0, 53.0, 56.0),
    row("kmeans", "VGG11", 49.0, 48.0, 50.0),
]


def test_means_and_standard_errors_by_hand():
    found = {(one["set"], one["network"]): one for one in paired(ROWS, None)}
    own = found["own", "ConvNet"]  # 10, 11, 15: mean 12, variance 7
    assert own["mean"] == pytest.approx(12) and own["standard_error"] == pytest.approx(math.sqrt(7 / 3))
    assert (own["against"], own["repeats"]) == ("random", 3)
    lost = found["own", "VGG11"]  # 1 and 4
    assert (lost["mean"], lost["repeats"]) == (2.5, 2) and lost["standard_error"] == pytest.approx(1.5)
    averaged = found["own", "unseen mean"]  # 55 - 49.5, 60.5 - 51
    assert averaged["mean"] == pytest.approx((5.5 + 9.5) / 2) and averaged["repeats"] == 2
    assert found["kmeans", "VGG11"]["mean"] == 0 == found["kmeans", "VGG11"]["standard_error"]
    assert "random" not in {name for name, _ in found}


def test_the_network_of_the_distillation_is_not_unseen():
    networks = [one["network"] for one in paired(ROWS, "ConvNet") if one["set"] == "own"]
    assert networks == ["ConvNet", "VGG11"]  # a single unseen one is its own mean


def test_a_set_alone_and_a_single_repeat():
    assert paired(ROWS[:2], None) == [] == difference_lines([])
    [one] = paired([row("own", "A", 3.0), row("kmeans", "A", 1.0)], None)
    assert (one["mean"], one["standard_error"], one["against"]) == (2.0, None, "kmeans")
    assert difference_lines([one])[1] == "  own - kmeans: A +2.0"


def test_the_page_shows_them_and_escapes_names():
    evaluation = {"paired": paired(ROWS, None), "data": {"class_names": ["<cat>", "dog"]}}
    evaluation["rows"] = [{"set": "own", "network": "A", "per_class": [50.0, 75.0], "confusion": [[1, 1], [1, 3]]}]
    assert '<td>+12.0 <span class="soft">± 1.5</span></td>' in difference_table(evaluation)
    tables = class_tables(evaluation)
    assert "&lt;cat&gt;" in tables and "<cat>" not in tables and "<td>75.0</td>" in tables
    assert '<td style="background: rgb(70 110 180 / 0.45)">3</td>' in tables
    assert difference_table({}) == "" == class_tables({"rows": [{"set": "own"}]})
