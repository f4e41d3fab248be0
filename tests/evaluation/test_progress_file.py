"""The file of trainings that are done: what fits is taken, what does not is done again."""

import json

import pytest

from ld3m.evaluation.progress import Progress
from ld3m.evaluation.runner import Training


def test_a_training_that_diverged_at_a_halved_rate_comes_back(tmp_path):
    kept = {Training("a", "n", 0): None, Training("a", "n", 0, "own", 3): [1.0, 99.5]}
    progress = Progress(tmp_path, "key")
    for training, accuracies in kept.items():
        progress.record(training, accuracies)
    assert Progress(tmp_path, "key").accuracies == kept


def test_trainings_without_halvings_are_of_an_earlier_release(tmp_path):
    (tmp_path / "evaluation-progress.json").write_text('{"key": [[["a", "n", 0, "own"], [5.0]]]}')
    assert Progress(tmp_path, "key").accuracies == {Training("a", "n", 0): [5.0]}


@pytest.mark.parametrize(
    "row",
    [
        [["a", "n", 0, "own", 0], [101.0]],
        [["a", "n", 0, "own", 0], [None]],
        [["a", "n", 0, "own", 0], []],
        [["a", "n", 0, "own", 4], [1.0]],
        [["a", "n", "0", "own", 0], [1.0]],
        [["a", "n", 0, "own", 0, 0], [1.0]],
        [["a", "n", 0, "own", 0]],
        ["a", [1.0]],
        None,
    ],
)
def test_what_does_not_fit_is_run_again_and_said(row, tmp_path, caplog):
    (tmp_path / "evaluation-progress.json").write_text(json.dumps({"key": [row]}))
    assert Progress(tmp_path, "key").accuracies == {}
    assert "its trainings are run again" in caplog.text
