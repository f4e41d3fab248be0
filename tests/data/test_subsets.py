"""Classes and images that a data set is narrowed down to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.config import DistillConfig, SampleConfig
from ld3m.data import load
from ld3m.data.ilsvrc import classes as ilsvrc_classes
from ld3m.data.subsets import SUBSETS, parse, wnids_of
from ld3m.errors import ConfigError, DataError

WOOF = [  # as published
    "n02096294", "n02093754", "n02111889", "n02088364", "n02086240", "n02089973", "n02087394", "n02115641",
    "n02099601", "n02105641",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six wnids and a class of another name; images tell their class and number by their two first pixels."""
    names = [*sorted(WOOF[:5]), "n01440764", "own things"]
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(names):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.random.default_rng((label, k, count)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                pixels[0, 0], pixels[0, 1] = 20 * label, 20 * k
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{k}.png")
    return tmp_path / "data"


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 1] // 20).tolist()


def test_published_subsets_have_their_order():
    assert list(wnids_of("imagewoof")) == WOOF
    assert wnids_of("imagenette") == (
        "n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413",
        "n03445777", "n03888257",
    )  # fmt: skip
    assert wnids_of("imageidc") == wnids_of("imagenet-100")[:10] and wnids_of("imageidc")[0] == "n02869837"
    known = {wnid for wnid, _ in ilsvrc_classes()}
    for name in SUBSETS:
        found = wnids_of(name)
        assert len(set(found)) == len(found) == (100 if name == "imagenet-100" else 10) and set(found) <= known
    assert [dict(ilsvrc_classes())[wnid] for wnid in wnids_of("imagefruit")[:3]] == [
        "pineapple",
        "banana",
        "strawberry",
    ]
    assert wnids_of("birds") == wnids_of("imagesquawk")


def test_classes_stand_in_the_order_that_they_are_named(folder):
    wanted = ["own things", WOOF[2], "tench"]
    data = load(folder, resolution=8, classes=",".join(wanted))
    assert data.class_names == ("own things", "Samoyed", "tench")
    assert data.wnids == (None, WOOF[2], "n01440764")
    places = [
        [*sorted(WOOF[:5]), "n01440764", "own things"].index(name) for name in ("own things", WOOF[2], "n01440764")
    ]
    for split, count in ((data.train, 5), (data.test, 2)):
        assert split.labels.tolist() == [label for label in range(3) for _ in range(count)]
        assert (split.images[:, 0, 0, 0] // 20).tolist() == [place for place in places for _ in range(count)]


def test_a_file_names_classes_too(folder, tmp_path):
    listed = tmp_path / "classes.txt"
    listed.write_text(f"# two dogs\n{WOOF[3]} beagle\n\n{WOOF[0]}\n")
    assert parse(str(listed)) == (WOOF[3], WOOF[0])
    assert load(folder, resolution=8, classes=str(listed)).wnids == (WOOF[3], WOOF[0])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("imagewoof", r"'data' lacks 'n02089973', .* of the classes that 'imagewoof' names; it has 'n01440764'"),
        ("tench,tench", "names 'tench' twice"),
        ("imagewuff", "is no published subset"),
        ("tench", "no list of at least two classes"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes, message, folder):
    with pytest.raises(DataError, match=message):
        load(folder, resolution=8, classes=classes)


def test_images_per_class_are_the_first_or_drawn_by_the_seed(folder):
    first = load(folder, resolution=8, per_class=2)
    assert numbers(first.train.images) == [0, 1] * 7 and first.train.labels.tolist() == [
        k for k in range(7) for _ in "ab"
    ]
    assert len(first.test) == 14
    drawn, again, other = (load(folder, resolution=8, per_class=2, per_class_seed=seed) for seed in (3, 3, 4))
    assert torch.equal(drawn.train.images, again.train.images)
    assert not torch.equal(drawn.train.images, other.train.images) and numbers(drawn.train.images) != [0, 1] * 7
    assert not torch.equal(first.mean, load(folder, resolution=8).mean)
    with pytest.raises(DataError, match="per_class 6 asks for more"):
        load(folder, resolution=8, per_class=6)


def test_data_that_have_been_read_are_not_narrowed(folder):
    data = load(folder, resolution=8)
    with pytest.raises(DataError, match="classes='imagewoof' and per_class=1 would have no effect"):
        load(data, resolution=8, classes="imagewoof", per_class=1)


@pytest.mark.parametrize("kind", [DistillConfig, SampleConfig])
def test_runs_are_told_so_by_the_same_settings(kind):
    config = kind(classes="imagenette", per_class=5, per_class_seed=1)
    assert (config.classes, config.per_class, config.per_class_seed) == ("imagenette", 5, 1)
    with pytest.raises(ConfigError, match="per_class is a whole number, at least 1"):
        kind(per_class=0)
    with pytest.raises(ConfigError, match="give both"):
        kind(per_class_seed=0)
