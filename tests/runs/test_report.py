"""The report: statistics by hand, table and JSON."""

import json
from dataclasses import replace

import pytest

from ld3m.errors import CheckpointError
from ld3m.runs.report import Report, mean_std, save_report, summary


def row(name: str, network: str, *accuracies: float) -> dict[str, object]:
    mean, std = mean_std(accuracies)
    return {"set": name, "network": network, "accuracies": list(accuracies), "mean": mean, "std": std}


@pytest.fixture
def report() -> Report:
    rows = [
        row("ld3m", "ConvNet", 90.0, 80.0),
        row("ld3m", "AlexNet-w0.5", 60.0, 70.0),
        row("ld3m", "VGG11-w0.5", 50.0, 54.0),
        row("random", "ConvNet", 40.0, 40.0),
        row("random", "AlexNet-w0.5", 9.0, 10.0),
        row("random", "VGG11-w0.5", 41.0, 40.0),
    ]
    recipes = {"ConvNet": {"epochs": 80}, "AlexNet-w0.5": {"epochs": 1000}, "VGG11-w0.5": {"epochs": 80}}
    protocol = {"name": "quick", "recipes": recipes, "deviations": ["short"]}
    data = {"name": "builtin", "classes": 10, "images_per_class": 1, "test_images": 1000, "resolution": 32}
    return Report(rows, protocol, "ConvNet-w0.5", {"data": data, "seed": 3})


def test_mean_and_sample_deviation():
    assert mean_std([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))
    assert mean_std([4.0]) == (4.0, 0.0)


def test_unseen_averages_each_repeat_over_the_other_networks(report):
    # ld3m: repeats (60 + 50) / 2 = 55 and (70 + 54) / 2 = 62; random: 25 and 25. ConvNet distilled, whatever its width.
    assert report.unseen == {"ld3m": (58.5, pytest.approx(24.5**0.5)), "random": (25.0, 0.0)}


def test_a_repeat_in_which_a_network_diverged_has_no_average(report):
    """AlexNet lost the first repeat on ld3m: what is left of it, VGG11's 50, would stand for both."""
    lost = report.rows[1] | {"accuracies": [None, 70.0], "mean": 70.0, "std": 0.0}
    partial = replace(report, rows=[report.rows[0], lost, *report.rows[2:]])
    assert partial.unseen == {"ld3m": (62.0, 0.0), "random": (25.0, 0.0)}
    assert "70.0 (diverged 1 of 2)" in partial.table() and "62.0 (diverged 1 of 2)" in partial.table()
    seen = report.rows[0] | {"accuracies": [None, 80.0], "mean": 80.0, "std": 0.0}
    assert replace(report, rows=[seen, *report.rows[1:]]).unseen == report.unseen  # ConvNet has no part in it


def test_of_values_that_are_not_there_nothing_is_averaged():
    assert summary([None, 40.0, 50.0])["mean"] == 45.0
    assert summary([None, None], "values") == {"values": [None, None], "mean": None, "std": 0.0}


def test_every_network_is_unseen_where_the_distilling_one_is_not_known(report):
    assert replace(report, distilled_with=None).unseen["random"][0] == pytest.approx((40 + 9.5 + 40.5) / 3)


def test_nothing_is_unseen_where_only_the_distilling_network_ran(report):
    alone = replace(report, rows=[r for r in report.rows if r["network"] == "ConvNet"])
    assert alone.unseen == {}
    assert "unseen" not in alone.table().lower()


def test_table(report):
    assert report.table() == (
        "           ConvNet  AlexNet-w0.5  VGG11-w0.5  unseen mean\n"
        "ld3m    85.0 ± 7.1    65.0 ± 7.1  52.0 ± 2.8   58.5 ± 4.9\n"
        "random  40.0 ± 0.0     9.5 ± 0.7  40.5 ± 0.7   25.0 ± 0.0\n"
        "\n"
        "Test accuracy in percent, mean ± sample standard deviation of n = 2 trainings. Protocol quick; "
        "epochs: 80 (ConvNet), 1,000 (AlexNet-w0.5), 80 (VGG11-w0.5).\n"
        "10 classes, images per class: 1; tested on 1,000 images of 32 px.\n"
        "Unseen: networks other than ConvNet, with which the images were distilled.\n"
        "Paired differences in points, mean ± standard error:\n"
        "  ld3m - random: ConvNet +45.0 ± 5.0, AlexNet-w0.5 +55.5 ± 4.5, VGG11-w0.5 +11.5 ± 2.5, "
        "unseen mean +33.5 ± 3.5"
    )


def test_table_of_a_single_repeat_and_length(report):
    protocol = {"name": "glad-hard", "recipes": {"AlexNet": {"epochs": 1000}, "ViT": {"epochs": 1000}}}
    single = replace(report, rows=[row("ld3m", "AlexNet", 61.25)], distilled_with=None, protocol=protocol)
    assert single.table().startswith(
        "      AlexNet  unseen mean\nld3m     61.2         61.2\n\n"
        "Test accuracy in percent, one training. Protocol glad-hard; epochs: 1,000.\n"
    )


def test_json_holds_every_number_and_comes_back_equal(report):
    content = json.loads(report.to_json())
    assert content["rows"][1]["accuracies"] == [60.0, 70.0]
    assert content["unseen"]["ld3m"][0] == 58.5
    assert content["protocol"]["deviations"] == ["short"]
    assert content["seed"] == 3
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"rows": [], "unseen": {}}', "3"])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(CheckpointError, match=r"not the JSON of an evaluation.*; evaluate again"):
        Report.from_json(text)


def test_saved_report_is_its_json(report, tmp_path):
    path = save_report(report, tmp_path)
    assert path == tmp_path / "evaluation.json"
    assert Report.from_json(path.read_text()) == report
