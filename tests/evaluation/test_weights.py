"""Weights of images in the loss of a protocol, tiles that are shown one at a time, and baselines that are selected."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ld3m
from ld3m.errors import ConfigError, DataError
from ld3m.evaluation import evaluate
from ld3m.evaluation.augmentation import Mix, augmentation
from ld3m.evaluation.baselines import BASELINES, choose, judges_of
from ld3m.evaluation.protocols import PROTOCOLS, find
from ld3m.evaluation.storage import storage_bytes
from ld3m.evaluation.training import _loss, train_and_test
from ld3m.evaluation.weights import relative
from ld3m.selection import SELECTIONS, render

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0], [1.0, 1.0, -3.0], [0.3, 0.2, 0.1]])
LABELS, WEIGHTS = torch.tensor([0, 2, 1, 1]), torch.tensor([2.0, 0.5, 1.0, 0.0])


def test_weights_have_a_mean_of_one_over_a_class():
    found = relative(torch.tensor([1.0, 3.0, 0.2, 0.2, 0.2]), torch.tensor([0, 0, 1, 1, 1]))
    assert found.tolist() == [0.5, 1.5, 1, 1, 1]
    assert relative(torch.full((6,), 0.7), torch.tensor([0, 0, 0, 1, 1, 2])) is None
    assert relative(None, torch.tensor([0])) is None
    assert relative(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0, 1])).tolist() == [0, 0, 1]


def test_hard_losses_are_weighted():
    losses = -LOGITS.log_softmax(1)[range(4), LABELS]
    torch.testing.assert_close(_loss(LOGITS, LABELS, None, find("quick"), WEIGHTS), (WEIGHTS * losses).sum() / 4)


def test_a_mixed_image_has_the_weights_of_its_parts():
    mix = Mix(torch.tensor([1, 0, 3, 2]), 0.75)
    own = -LOGITS.log_softmax(1)[range(4), LABELS] * WEIGHTS
    others = -LOGITS.log_softmax(1)[range(4), LABELS[mix.partners]] * WEIGHTS[mix.partners]
    wanted = (0.75 * own + 0.25 * others).mean()
    torch.testing.assert_close(_loss(LOGITS, LABELS, mix, find("quick"), WEIGHTS), wanted)
    answers, rded = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), find("rded")
    divergences = F.kl_div((LOGITS / 20).log_softmax(1), (answers / 20).softmax(1), reduction="none").sum(1)
    mixed = 0.75 * WEIGHTS + 0.25 * WEIGHTS[mix.partners]
    torch.testing.assert_close(_loss(LOGITS, answers, mix, rded, WEIGHTS), (mixed * divergences).mean())
    torch.testing.assert_close(_loss(LOGITS, answers, None, rded, WEIGHTS), (WEIGHTS * divergences).mean())


HARD = [name for name in PROTOCOLS if PROTOCOLS[name].labels == "hard"]


@pytest.mark.parametrize(
    "protocol", [pytest.param(name, marks=pytest.mark.slow) if name == "minimax-hard" else name for name in HARD]
)
def test_uniform_weights_change_no_bit(protocol, toy, result):
    options = {"protocol": find(protocol).with_epochs(3), "networks": ["ConvNet-w0.06"], "repeats": 1}
    options |= {"baselines": (), "progress": False}
    plain, weighted, other = (
        evaluate(one, toy, **options)
        for one in (result, replace(result, weights=torch.full((3,), 0.3)), replace(result, weights=None))
    )
    assert plain.rows == weighted.rows == other.rows
    assert plain.about["key"] == weighted.about["key"]


def two_each(toy, result):
    """A right and a wrong image of each class."""
    images = result.images[[0, 1, 1, 2, 2, 0]]
    return replace(result, images=images, labels=torch.tensor([0, 0, 1, 1, 2, 2]), parameters={})


def test_an_image_without_weight_teaches_nothing(toy, result, brief):
    both, options = two_each(toy, result), {"protocol": brief, "repeats": 1, "baselines": (), "progress": False}
    options |= {"networks": ["ConvNet-w0.06"]}
    right = evaluate(replace(both, weights=torch.tensor([1.0, 0.0] * 3)), toy, **options).rows[0]["mean"]
    wrong = evaluate(replace(both, weights=torch.tensor([0.0, 1.0] * 3)), toy, **options).rows[0]["mean"]
    assert right > 90 and wrong < 10


def test_repeats_trained_together_are_weighted_alike(toy, result, brief):
    both = replace(two_each(toy, result), weights=torch.tensor([1.0, 0.4] * 3))
    options = {"protocol": brief.with_epochs(8), "networks": ["ConvNet-w0.06"], "repeats": 2, "baselines": ()}
    together, alone = (evaluate(both, toy, **options, together=flag, progress=False) for flag in (True, False))
    assert together.rows[0]["accuracies"] == pytest.approx(alone.rows[0]["accuracies"], abs=5)
    plain = evaluate(replace(both, weights=None), toy, **options, together=True, progress=False)
    assert plain.about["key"] != together.about["key"]


def test_tiles_are_cut_out_before_the_augmentation():
    sheet = torch.zeros(50, 3, 8, 8)
    sheet[:, :, :4, :4], sheet[:, :, 4:, 4:] = 1.0, 2.0
    shown, mix = augmentation("none", 2)(sheet, torch.Generator().manual_seed(0))
    assert mix is None and sorted({one.unique().item() for one in shown}) == [0, 1, 2]
    assert augmentation("none", 1)(sheet, torch.Generator())[0] is sheet


def test_networks_see_the_tiles_of_a_combined_set(toy, brief):
    """Each of its images shows all three classes: only one who sees a tile at a time can learn anything."""
    generator = [torch.Generator().manual_seed(0)]
    images = torch.cat([toy.train.images[toy.train.labels == k][:4][None] for k in range(3)])  # (3, 4, 3, 8, 8)
    sheet = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for k in range(4):
        y, x = 4 * (k // 2), 4 * (k % 2)
        sheet[:, :, y : y + 4, x : x + 4] = images[:, k, :, ::2, ::2]
    options = {"data": toy, "protocol": brief, "generators": generator}
    [accuracies] = train_and_test("ConvNet-w0.06", [sheet], torch.arange(3), **options, tiles=2)
    assert accuracies[-1] > 80


@pytest.fixture
def quickly(monkeypatch):
    """Networks that judge are trained in a moment."""
    monkeypatch.setattr("ld3m.evaluation.measuring.Judges._network", "ConvNet-w0.06")


def test_every_selector_can_be_a_baseline(toy, result, brief, quickly, monkeypatch):
    """The networks that judge are trained once for all of them: a teacher, and three early in training."""
    from ld3m.evaluation import measuring

    trained, train = [], measuring.train_network
    monkeypatch.setattr(measuring, "train_network", lambda *given: (trained.append(given[1].epochs), train(*given))[1])
    names = tuple(BASELINES)
    assert set(SELECTIONS) < set(names)
    options = {"protocol": brief.with_epochs(2), "networks": ["ConvNet-w0.06"], "repeats": 1, "progress": False}
    report = evaluate(result, toy, baselines=names, **options)
    assert [row["set"] for row in report.rows] == ["ld3m", *names]
    assert sorted(trained) == [2, 2, 2, 15]
    again = evaluate(result, toy, baselines=("easy",), **options)
    assert again.rows[1] == report.rows[1 + names.index("easy")]


def test_baselines_are_chosen_by_the_teacher_that_is_given(toy, result, brief, quickly):
    from ld3m.config import TeacherTraining
    from ld3m.evaluation.teacher_training import train_network

    training = TeacherTraining("ConvNet-w0.06", epochs=4, lr=0.05, batch_size=16, seed=3)
    teacher = train_network(toy, training, torch.device("cpu"), False)
    with torch.inference_mode():
        loss = F.cross_entropy(
            teacher.network(toy.normalize(toy.train.batch(range(60)))), toy.train.labels, reduction="none"
        )
    easiest = [int(toy.train.of_class(k)[loss[toy.train.labels == k].argmin()]) for k in range(3)]
    judges = judges_of(toy, 0, teacher, torch.device("cpu"), False)
    [choice] = choose("easy", [1] * 3, [torch.Generator()], judges)
    assert choice.positions.flatten().tolist() == easiest
    assert torch.equal(render(toy.train, choice), toy.train.images[easiest])
    evaluation = {"protocol": brief.with_epochs(2), "networks": ["ConvNet-w0.06"], "repeats": 1, "progress": False}
    report = evaluate(result, toy, teacher=teacher, baselines=("random", "easy"), **evaluation)
    assert "labels" not in report.rows[0]  # they stay hard
    with pytest.raises(ConfigError, match="a teacher has no use for hard labels"):
        evaluate(result, toy, teacher=teacher, **evaluation)


def test_kmeans_is_weighted_where_it_is_said(toy):
    judges = judges_of(toy, 0, None, torch.device("cpu"), False)
    [plain], [weighted] = (
        choose(name, [3] * 3, [torch.Generator().manual_seed(1)], judges) for name in ("kmeans", "kmeans-weighted")
    )
    assert torch.equal(plain.positions, weighted.positions) and plain.weights is None
    assert weighted.weights.view(3, 3).sum(1).tolist() == pytest.approx([3.0] * 3)


def test_bytes_are_counted(toy, result, brief):
    from ld3m.config import EvaluateConfig
    from ld3m.evaluation.comparison import Comparison

    config = EvaluateConfig(networks=("ConvNet-w0.06",), repeats=1, baselines=("random", "kmeans-weighted"))
    weighted = replace(two_each(toy, result), weights=torch.tensor([1.0, 2.0] * 3), parameters={})
    protocol = replace(brief, labels="soft")
    comparison = Comparison(weighted, toy, brief, config, torch.device("cpu"))
    own = storage_bytes(comparison)
    assert own["ld3m"] == {"images": 6 * 3 * 8 * 8 * 4, "labels": 6 * 8, "weights": 6 * 4}  # 0.15 is no level of 8 bits
    assert own["random"] == {"images": 6 * 3 * 8 * 8, "labels": 6 * 8}
    assert set(own["kmeans-weighted"]) == {"images", "labels", "weights"}
    comparison.result = replace(weighted, images=(weighted.images * 255).round() / 255)
    assert storage_bytes(comparison)["ld3m"]["images"] == 6 * 3 * 8 * 8
    comparison.protocol, comparison.teacher = protocol, object()
    assert storage_bytes(comparison)["random"]["soft_labels"] == 2 * 6 * 3 * 30  # half precision, classes, epochs


def test_the_table_and_the_page_show_the_sizes(toy, result, brief, tmp_path):
    folder = result.save(tmp_path / "run")
    options = {"protocol": brief.with_epochs(2), "networks": ["ConvNet-w0.06"], "repeats": 1, "progress": False}
    table = evaluate(folder, toy, baselines=("random",), **options).table().splitlines()
    assert table[0].split()[-1] == "size"
    assert table[1].endswith("2 KiB") and table[2].endswith("1 KiB")
    page = (folder / "report.html").read_text()
    assert "<th>size</th>" in page and "<td>2 KiB</td>" in page and "Accuracy per byte" in page


@pytest.mark.parametrize("format", ["imagefolder", "safetensors"])
def test_an_export_is_evaluated_with_its_weights(format, toy, result, brief, tmp_path):
    """Right images of all weight beside wrong ones of none: it is the same as without the wrong ones."""
    both = replace(two_each(toy, result), weights=torch.tensor([1.0, 0.0] * 3), config={"data": "toy"})
    to = ld3m.export(both.save(tmp_path / "run"), format, tmp_path / "to")
    given = to / "images.safetensors" if format == "safetensors" else to
    options = {"protocol": brief, "networks": ["ConvNet-w0.06"], "repeats": 1, "baselines": (), "progress": False}
    assert evaluate(given, toy, **options).rows[0]["mean"] > 90
    if format == "imagefolder":
        (to / "weights.csv").write_text("file,weight\nred/0.png,1\n")
        with pytest.raises(DataError, match=r"weights\.csv has no weight for some file"):
            evaluate(given, toy, **options)
        (to / "weights.csv").unlink()
        assert evaluate(given, toy, **options).rows[0]["mean"] < 90
