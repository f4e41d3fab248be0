"""Sets that ld3m did not make: how they are opened, matched, refused, and where their report goes."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import ld3m
from ld3m.data import load
from ld3m.data.normalizations import NORMALIZATIONS, moments
from ld3m.errors import ConfigError, DataError, InputError
from ld3m.evaluation import evaluate
from ld3m.evaluation.inputs import Reading, open_inputs
from ld3m.evaluation.protocols import Protocol, Recipe
from ld3m.runs.report import Report

NAMES = ("red", "green", "blue")
BRIEF = Protocol("own", ("ConvNet-w0.06",), {"ConvNet": Recipe(0.02, 4, 0.0)})
OPTIONS = {"protocol": BRIEF, "repeats": 2, "baselines": ("random",), "progress": False}


def colors(labels: list[int], side: int = 8) -> torch.Tensor:
    images = torch.full((len(labels), 3, side, side), 40, dtype=torch.uint8)
    images[torch.arange(len(labels)), torch.tensor(labels)] = 200
    return images


def write_folder(root: Path, names: dict[str, int], side: int = 8, count: int = 1) -> Path:
    for name, label in names.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(colors([label], side)[0].permute(1, 2, 0).numpy()).save(root / name / f"{k}.png")
    return root


@pytest.fixture
def data(tmp_path):
    """A folder of train and test images whose classes are named by color."""
    root = tmp_path / "data"
    for split in ("train", "test"):
        write_folder(root / split, dict(zip(NAMES, range(3), strict=True)), count=4)
        for k, path in enumerate(sorted((root / split).rglob("*.png"))):  # no two alike
            pixels = np.asarray(Image.open(path)).copy()
            pixels[k % 8, (k + (split == "test") * 3) % 8] = 255 - 7 * k
            Image.fromarray(pixels).save(path)
    return root


def opened(given, data, **reading):
    result, dataset, folder = open_inputs(given, load(data, resolution=8), reading=Reading(**reading))
    assert folder is None
    return result, dataset


def assert_is_colors(result, tolerance: float = 0.5 / 255):
    """The images of each class are bright in its channel, whatever the order of the source's labels."""
    assert result.class_names == ("blue", "green", "red")  # as the data's folders stand
    for image, label in zip(result.images, result.labels.tolist(), strict=True):
        channel = NAMES.index(result.class_names[label])
        assert image[channel].min() == pytest.approx(200 / 255, abs=tolerance), result.class_names[label]
    assert result.labels.tolist() == sorted(result.labels.tolist())


def test_a_folder_and_a_zip_are_matched_by_name(data, tmp_path):
    folder = write_folder(tmp_path / "set", {"Red": 0, "GREEN": 1, "blue": 2}, count=2)
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, path.relative_to(folder))
    for source in (folder, str(folder), archive):
        result, _ = opened(source, data)
        assert_is_colors(result)
        assert len(result.labels) == 6 and result.config["set"] == "set"


def test_wnids_match_names_and_readable_folders(tmp_path):
    wnids = {"n01440764": 0, "n02102040": 1}
    for split in ("train", "test"):
        write_folder(tmp_path / "data" / split, wnids, side=8 if split == "train" else 16, count=2)
    data = load(tmp_path / "data", resolution=8)
    given = write_folder(tmp_path / "set", {"English springer": 1, "tench": 0})
    result, *_ = open_inputs(given, data)
    assert result.class_names == ("tench", "English springer")
    assert [image.flatten(1).mean(1).argmax().item() for image in result.images] == [0, 1]


@pytest.mark.parametrize("kind", ["safetensors", "safetensors of floats", "pt", "pt pair", "npz", "dc"])
def test_files_of_tensors(kind, data, tmp_path):
    images, labels = colors([0, 1, 2]), torch.arange(3)
    order = {"match": "order"}
    if kind.startswith("safetensors"):
        path = tmp_path / "set.safetensors"
        save_file(
            {"images": images / 255 if "floats" in kind else images, "labels": labels},
            path,
            {"class_names": json.dumps(NAMES)},
        )
        order = {}
    elif kind == "npz":
        path = tmp_path / "set.npz"
        np.savez(path, images=images[[2, 1, 0]].permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    else:
        path = tmp_path / "set.pt"
        ordered = images[[2, 1, 0]]
        content = {"pt": {"images": ordered, "labels": labels}, "pt pair": (ordered, labels)}
        content["dc"] = {"data": [[images / 255, labels], [ordered / 255, labels]], "accs_all_exps": {"ConvNet": []}}
        torch.save(content[kind], path)
    result, _ = opened(path, data, **order)
    assert_is_colors(result)
    if order:
        with pytest.raises(DataError, match=r"numbers are no names: the set has 3: '0', '1', '2'; the data 3: 'blue'"):
            opened(path, data)


def test_normalized_tensors_are_undone_by_name_or_numbers(data, tmp_path):
    mean, std = moments("cifar10", "set_normalized")
    images = (colors([2, 1, 0]) / 255 - mean[:, None, None]) / std[:, None, None]
    path = tmp_path / "set.pt"
    torch.save({"images": images, "labels": torch.arange(3)}, path)
    result, _ = opened(path, data, match="order", normalization=(mean, std))
    assert_is_colors(result, 1e-5)
    with pytest.raises(InputError, match="images go from"):
        opened(path, data, match="order")
    with pytest.raises(InputError, match="normalized by something else"):
        opened(path, data, match="order", normalization=(mean * 30, std * 30))
    options = OPTIONS | {"match": "order"}
    by_name = evaluate(path, data, set_normalized="cifar10", **options)
    by_numbers = evaluate(path, data, set_mean=mean.tolist(), set_std=std.tolist(), **options)
    assert by_name.rows == by_numbers.rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"set_normalized": "cifar"}, "set_normalized is one of cifar10, .*did you mean 'cifar10'"),
        ({"set_mean": (0.5,)}, "set_mean and set_std belong together"),
        ({"set_mean": (0.5, 0.5), "set_std": (0.5,)}, "set_mean is one number or three, got 2"),
        ({"set_mean": (0.5,), "set_std": (0.0,)}, "set_std is a number above 0"),
        ({"set_normalized": "half", "set_std": (0.5,)}, "leave out set_mean and set_std"),
        ({"match": "guess"}, "match is one of name, order"),
        ({"resolution": 0}, "resolution is a whole number, at least 1"),
        ({"per_class_seed": 1}, "per_class_seed .* give both"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message, data):
    with pytest.raises(ConfigError, match=message):
        evaluate(data / "train", data, **OPTIONS | settings)


def test_pictures_are_not_normalized(data, tmp_path):
    with pytest.raises(InputError, match="holds pictures, which are not normalized"):
        opened(data / "train", data, normalization=moments("imagenet", "x"))


def test_a_pickle_with_code_is_not_executed(data, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "set.pt"
    torch.save({"images": colors([0, 1, 2]), "labels": Trap()}, path)
    with pytest.raises(DataError, match="might run code: it is not read"):
        opened(path, data)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"images": torch.zeros(3, 3, 8, 8), "labels": torch.tensor([0, 1, 3])},
            r"labels must be 0…K-1.* found 0, 1, 3",
        ),
        ({"images": torch.zeros(3, 3, 8, 8), "labels": torch.tensor([-1, 0, 1])}, r"labels must be 0…K-1"),
        ({"images": torch.zeros(3, 3, 8, 8)}, "needs tensors images and labels"),
        (
            {"images": torch.zeros(3, 3, 8, 8).int(), "labels": torch.arange(3)},
            "uint8 or floating point, got torch.int32",
        ),
        ({"images": torch.zeros(3, 3, 8, 6), "labels": torch.arange(3)}, "6 × 8; say resolution"),
        ({"images": torch.full((3, 3, 8, 8), torch.nan), "labels": torch.arange(3)}, "NaN or infinite"),
        ({"images": torch.full((3, 3, 8, 8), 7.0), "labels": torch.arange(3)}, "images go from 7 to 7, not unit"),
    ],
)
def test_tensors_that_are_no_set_are_refused(content, message, data, tmp_path):
    torch.save(content, tmp_path / "set.pt")
    with pytest.raises((DataError, InputError), match=message):
        open_inputs(tmp_path / "set.pt", data, reading=Reading(match="order"))


def test_classes_that_do_not_match_are_refused_with_both_lists(data, tmp_path):
    numbered = write_folder(tmp_path / "numbered", {"00000": 2, "00001": 1, "00002": 0})
    lists = r"the set has 3: '00000', '00001', '00002'; the data 3: 'blue', 'green', 'red'"
    with pytest.raises(DataError, match=lists):
        opened(numbered, data)
    assert_is_colors(opened(numbered, data, match="order")[0])
    few = write_folder(tmp_path / "few", {"red": 0, "green": 1})
    with pytest.raises(DataError, match=r"In the set alone: none; in the data alone: 'blue'; narrow the data"):
        opened(few, data)
    with pytest.raises(DataError, match="match 'order' pairs as many classes as there are"):
        opened(few, data, match="order")
    more = write_folder(tmp_path / "more", {"red": 0, "green": 1, "blue": 2, "grey": 0})
    with pytest.raises(DataError, match=r"In the set alone: 'grey'; in the data alone: none"):
        opened(more, data)
    result, dataset, _ = open_inputs(few, str(data), reading=Reading(classes="green,red"))
    assert dataset.class_names == result.class_names == ("green", "red")


def test_names_that_match_stay_together_in_order_mode(data, tmp_path):
    given = write_folder(tmp_path / "set", {"a": 1, "blue": 2, "red": 0})  # a is green
    assert_is_colors(opened(given, data, match="order")[0])


def test_other_sizes_are_resampled_by_the_named_rule(data, tmp_path):
    large = write_folder(tmp_path / "large", dict(zip(NAMES, range(3), strict=True)), side=20)
    result, dataset, _ = open_inputs(large, str(data), reading=Reading(resolution=8))
    assert_is_colors(result)
    assert dataset.resolution == 8 and result.config["resized"] == "centre-square to 8 px"
    assert open_inputs(large, str(data))[1].resolution == 20  # the set's own
    Image.fromarray(colors([0], 12)[0].permute(1, 2, 0).numpy()).save(large / "red" / "1.png")
    with pytest.raises(DataError, match=r"several sizes, 12 × 12, 20 × 20, and no rule: say resolution"):
        open_inputs(large, str(data))
    assert len(open_inputs(large, str(data), reading=Reading(resolution=8))[0].labels) == 4
    tensors = tmp_path / "set.pt"
    torch.save({"images": colors([2, 1, 0], 16) / 255, "labels": torch.arange(3)}, tensors)
    result, *_ = open_inputs(tensors, str(data), reading=Reading(resolution=8, match="order"))
    assert_is_colors(result)
    assert "bicubic" in result.config["resized"]


def test_a_gray_set_of_28_px_gets_the_border_of_the_mnist_family(tmp_path):
    images, labels = torch.rand(2, 1, 28, 28), torch.arange(2)
    torch.save((images, labels), tmp_path / "set.pt")
    splits = torch.randint(0, 255, (2, 4, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = {name: (part, torch.arange(4) % 2) for name, part in zip(("train", "test"), splits, strict=True)}
    result, dataset, _ = open_inputs(tmp_path / "set.pt", pairs)
    assert result.images.shape == (2, 3, 32, 32) and dataset.resolution == 32
    torch.testing.assert_close(result.images[:, 1, 2:-2, 2:-2], images[:, 0])
    assert not result.images[..., :2].any() and not result.images[..., -2:, :].any()


def test_objects_of_a_program(data):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in colors([2, 1, 0])]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "green", "red"])}
    )
    hugging_face = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}, features=features)

    class MapStyle:
        classes = ("red", "blue", "green")

        def __len__(self):
            return 3

        def __getitem__(self, k):
            return pictures[(2, 0, 1)[k]], k

    for source in (hugging_face, {"train": hugging_face}, MapStyle()):
        assert_is_colors(opened(source, data)[0])
    held = load(data, resolution=8)
    result, _ = opened(held, data)
    assert torch.equal(result.images, held.train.images / 255) and torch.equal(result.labels, held.train.labels)


def test_a_report_goes_where_it_is_asked_for_and_the_set_stays_as_it_was(data, tmp_path):
    given = write_folder(tmp_path / "set", dict(zip(NAMES, range(3), strict=True)))

    def state() -> dict[str, str]:
        files = (path for root in (given, data) for path in root.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    report = evaluate(given, str(data), **OPTIONS)
    assert state() == before and sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["data", "set"]
    out = tmp_path / "scored"
    kept = evaluate(given, str(data), out=out, **OPTIONS)
    assert state() == before and kept.rows == report.rows
    assert {row["set"] for row in kept.rows} == {"set", "random"}
    assert Report.from_json((out / "evaluation.json").read_text()) == kept
    page = (out / "report.html").read_text()
    assert "set scored on data" in page and "Accuracy by class" in page and "Paired" not in page.split("<h2>")[0]
    assert ld3m.load(out).class_names == ("blue", "green", "red")
    evaluate(given, str(data), out=out, seed=1, **OPTIONS)  # beside the first
    assert len(list((out / "evaluations").iterdir())) == 1


def test_folders_in_the_way_are_refused(data, tmp_path):
    given = write_folder(tmp_path / "set", dict(zip(NAMES, range(3), strict=True)))
    for out, message in (
        (given / "report", "lies in the set .*, which stays as it is"),
        (data / "train" / "report", "lies in the data"),
        (tmp_path, "holds other things than an evaluation"),
        (given / "red" / "0.png", "is a file; name a folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(given, str(data), out=out, **OPTIONS)


def test_a_set_without_test_images_to_judge_it_is_refused(data, tmp_path):
    given = write_folder(tmp_path / "set", dict(zip(NAMES, range(3), strict=True)))
    held = replace(load(data, resolution=8), test=None)
    with pytest.raises(DataError, match="no test split to evaluate on"):
        evaluate(given, held, **OPTIONS)


def test_a_protocol_whose_networks_do_not_fit_is_refused(data, tmp_path):
    with pytest.raises(
        ConfigError, match=r"protocol 'minimax-hard' trains ConvNet-6, which these images do not fit: .*"
    ):
        evaluate(data / "train", data, protocol="minimax-hard", baselines=(), progress=False)


def test_unequal_classes_are_scored_too(data, tmp_path):
    given = write_folder(tmp_path / "set", dict(zip(NAMES, range(3), strict=True)))
    Image.fromarray(colors([0])[0].permute(1, 2, 0).numpy()).save(given / "red" / "1.png")
    report = evaluate(given, str(data), out=tmp_path / "scored", **OPTIONS)
    assert report.about["data"]["images_per_class"] == "1 to 2"
    assert "scored on" in (tmp_path / "scored" / "report.html").read_text()


def test_networks_of_ones_own_are_trained_and_said(data, tmp_path):
    def mine(num_classes, resolution):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(3 * resolution**2, num_classes))

    options = {**OPTIONS, "protocol": replace(BRIEF, recipes={"ConvNet": Recipe(0.05, 30, 0.0)})}
    report = evaluate(data / "train", str(data), networks={"mine": mine, "ConvNet-w0.06": None}, **options)
    assert [row["network"] for row in report.rows] == ["mine", "ConvNet-w0.06"] * 2
    assert report.rows[0]["mean"] > 90
    assert "mine: no network of the protocol" in report.protocol["deviations"][-1]
    assert "test_networks_of_ones_own" in report.about["own_networks"]["mine"]
    again = evaluate(data / "train", str(data), networks={"mine": mine}, **options)
    assert [row["accuracies"] for row in again.rows] == [row["accuracies"] for row in report.rows[::2]]


def test_batch_norm_networks_are_trained_one_by_one_and_tested_with_their_statistics(data):
    protocol = replace(BRIEF, recipes={"ConvNet": Recipe(0.05, 40, 0.0)})
    options = {**OPTIONS, "protocol": protocol, "networks": ["ConvNetBN-w0.1"]}
    apart = evaluate(data / "train", str(data), together=False, **options)
    together = evaluate(data / "train", str(data), together=True, **options)
    assert apart.rows == together.rows and apart.rows[0]["mean"] > 90


def test_every_class_and_every_answer_is_counted(data):
    report = evaluate(data / "train", str(data), **OPTIONS)
    for row in report.rows:
        counts = torch.tensor(row["confusion"])
        assert counts.shape == (3, 3) and counts.sum(1).tolist() == [8, 8, 8]  # 4 test images, 2 repeats
        assert row["mean"] == pytest.approx(100 * counts.diagonal().sum().item() / 24)
        assert row["per_class"] == pytest.approx([100 * c / 8 for c in counts.diagonal().tolist()])
    assert report.about["data"]["class_names"] == ["blue", "green", "red"]


def test_last_and_best_of_n_tests_are_columns_apart(data):
    protocol = replace(BRIEF, tests="hundredths")
    report = evaluate(data / "train", str(data), **{**OPTIONS, "protocol": protocol})
    assert "ConvNet-w0.06 last" in report.table() and "ConvNet-w0.06 best of 4 tests" in report.table()
    for row in report.rows:
        assert row["tests"] == 4
        assert all(b >= a for a, b in zip(row["accuracies"], row["best_epoch"]["accuracies"], strict=True))


def test_every_normalization_has_three_channels():
    assert all(len(mean) == len(std) == 3 for mean, std in NORMALIZATIONS.values())


def test_a_set_on_the_hub_is_one_too(data, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in colors([0, 1, 2])]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    found = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or datasets.DatasetDict(train=found))
    assert_is_colors(opened("hf:someone/colors", data)[0])
    assert set(asked) == {"someone/colors"}


def test_a_run_on_some_classes_is_evaluated_on_these(data, tmp_path):
    images = colors([0, 1]) / 255
    about = {"space": "pixel", "classes": "red,green", "per_class": 2}
    whole = load(data, resolution=8)
    run = ld3m.Result(images, torch.arange(2), ("red", "green"), {}, about, whole.mean, whole.std).save(
        tmp_path / "run"
    )
    result, dataset, folder = open_inputs(run, str(data))
    assert folder == run and dataset.class_names == result.class_names == ("red", "green")
    assert len(dataset.train) == 4 and len(dataset.test) == 8


def test_test_images_are_cut_out_of_larger_ones_where_the_protocol_says_so(tmp_path):
    from ld3m.config import EvaluateConfig
    from ld3m.evaluation.views import zoomed

    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for label, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            turned = pixels[label] if split == "test" else pixels[label][::-1]
            Image.fromarray(turned).save(tmp_path / split / name / "0.png")
    data = load(tmp_path, resolution=14)  # 14 // 7 * 8 = 16
    seen = zoomed(data, tmp_path, replace(BRIEF, test_zoom=True), EvaluateConfig(), {})
    assert torch.equal(seen.test.images, torch.from_numpy(pixels).permute(0, 3, 1, 2)[..., 1:15, 1:15])
    assert seen.train is data.train
    assert zoomed(data, tmp_path, BRIEF, EvaluateConfig(), {}) is data
    assert zoomed(data, data, replace(BRIEF, test_zoom=True), EvaluateConfig(), {}) is data  # no larger ones are known


def test_a_grey_border_is_at_the_mean_for_dc():
    from ld3m.evaluation.protocols import find
    from ld3m.evaluation.views import framed

    pictures = torch.randint(1, 255, (6, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = {"train": (pictures, torch.arange(6) % 2), "test": (255 - pictures, torch.arange(6) % 2)}
    result, data, _ = open_inputs((torch.rand(2, 3, 32, 32), torch.arange(2)), pairs)
    shown, seen = framed(result, data, find("dc"))
    assert seen.normalize(shown.images)[..., :2].abs().max() < 0.01
    assert seen.normalize(seen.test.images / 255)[..., -2:, :].abs().max() < 0.01
    assert seen.mean[0].item() == pytest.approx(pictures.float().mean().item() / 255, abs=1e-4)
    assert torch.equal(shown.images[..., 2:-2, 2:-2], result.images[..., 2:-2, 2:-2])
    assert framed(result, data, find("quick")) == (result, data)


def test_published_accuracies_stand_beside_ours(data, monkeypatch):
    from ld3m.evaluation import published

    result, dataset = opened(data / "train", data)
    known = published.Published("own", "ConvNet", 70.5, 0.6, "a paper", digest=published.digest_of(result))
    monkeypatch.setattr(published, "PUBLISHED", (known,))
    protocol = replace(BRIEF, networks=("ConvNet",))
    report = evaluate(data / "train", data, **{**OPTIONS, "protocol": protocol})
    assert report.rows[0]["published"] == {"accuracy": 70.5, "std": 0.6, "column": "last", "source": "a paper"}
    assert "published" not in report.rows[1]
    assert "Published for train on ConvNet (last): 70.5 ± 0.6, a paper." in report.table()
    subset = replace(known, digest="", subset="imagewoof", images_per_class=4)
    monkeypatch.setattr(published, "PUBLISHED", (subset,))
    woof = replace(dataset, wnids=published.wnids_of("imagewoof"))
    find = published.published_for
    assert find("own", result, woof, "random", "ConvNet", is_own=False)["accuracy"] == 70.5
    assert find("own", result, dataset, "random", "ConvNet", is_own=False) is None
    assert find("own", result, woof, "random", "ConvNet-w0.5", is_own=False) is None


def test_counts_survive_an_interruption(data, tmp_path):
    from ld3m.evaluation.progress import Progress
    from ld3m.evaluation.runner import Training

    counts = torch.tensor([[3, 1], [0, 4]])
    first = Progress(tmp_path, "key")
    first.record(Training("own", "A", 0), [87.5], counts)
    first.record(Training("own", "A", 1), None, counts)
    again = Progress(tmp_path, "key")
    assert again.accuracies == first.accuracies and list(again.confusions) == [Training("own", "A", 0)]
    assert torch.equal(again.confusions[Training("own", "A", 0)], counts)


def test_labels_of_a_pair_are_checked_in_order_mode_too(data):
    with pytest.raises(InputError, match=r"labels must be 0…2; found \[0, 1, 3\]"):
        opened((colors([0, 1, 2]), torch.tensor([0, 1, 3])), data, match="order")


def test_many_classes_are_counted_without_their_square(tmp_path):
    from ld3m.evaluation.progress import MOST_CLASSES

    count = MOST_CLASSES + 1
    images = torch.randint(0, 256, (2 * count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count).repeat(2)
    data = load({"train": (images, labels), "test": (255 - images, labels)}, resolution=8)
    options = {**OPTIONS, "protocol": BRIEF.with_epochs(2), "repeats": 1, "baselines": ()}
    [row] = evaluate((images[:count], torch.arange(count)), data, **options).rows
    assert len(row["per_class"]) == count and "confusion" not in row
    assert sum(row["per_class"]) / count == pytest.approx(row["mean"], abs=1e-2)


def test_another_length_is_said_below_the_table(data):
    report = evaluate(data / "train", data, **{**OPTIONS, "epochs": 3})
    assert "Not the published length: 3 epochs instead of 4." in report.table()
    assert "Not the published length" not in evaluate(data / "train", data, **OPTIONS).table()
