"""Splits and classes told apart, by names and by what folders hold."""

import pytest
import torch

from ld3m.data import load, would_read
from ld3m.data.naming import hinted_role, named, role_of
from ld3m.errors import DataError
from tests.data.pictures import encoded, grid, put

PETS = ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set/training_set", "test_set/test_set"),
        ("trainset", "testset"),
        ("X_train", "X_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("images_train", "images_val"),
        ("train2017", "val2017"),
        ("Train", "Eval"),
        ("training", "dev"),
        ("train/images", "valid/images"),
        ("my-train-part", "my-test-part"),
        ("around/train", "around/validation"),
    ],
)
def test_splits_of_other_names_are_understood(tmp_path, train, test):
    put(tmp_path, grid((train, test), PETS))
    data = load(tmp_path, resolution=8)
    assert data.class_names == PETS
    assert (len(data.train), len(data.test)) == (9, 9)


@pytest.mark.parametrize(
    "levels",
    [
        (("fold1", "fold2"), PETS),
        (("day", "night"), PETS),
        (("labelled", "train_a", "train_b"), PETS),
        (("train", "training"), PETS),
        (("train",), ("north", "south"), PETS),
    ],
)
def test_what_may_be_splits_or_classes_is_refused_with_the_tree(tmp_path, levels):
    put(tmp_path, grid(*levels))
    with pytest.raises(DataError, match=r"are these splits or classes\? .*/\{cat, dog, fox\}"):
        load(tmp_path, resolution=8)


def test_splits_below_each_class_are_understood(tmp_path):
    put(tmp_path, grid(PETS, ("train", "test")))
    data = load(tmp_path, resolution=8)
    assert data.class_names == PETS
    assert (len(data.train), len(data.test)) == (9, 9)


def test_classes_with_one_inner_folder_of_one_name_stay_classes(tmp_path):
    put(tmp_path, grid(PETS, ("images",)))
    assert load(tmp_path, resolution=8, holdout=0).class_names == PETS


def test_folders_of_annotations_beside_the_images_are_looked_past(tmp_path):
    put(tmp_path, grid(("Images",), PETS))
    for name in PETS:
        (tmp_path / "Annotation" / name).mkdir(parents=True)
        (tmp_path / "Annotation" / name / "0.xml").write_text("<a/>")
    assert load(tmp_path, resolution=8, holdout=0).class_names == PETS


@pytest.mark.parametrize("unlabelled", ["test/0.png", "test/images/0.png", "test/unknown/0.png"])
def test_an_unlabelled_test_split_never_wins(tmp_path, caplog, unlabelled):
    put(tmp_path, [*grid(("train", "val"), PETS), unlabelled])
    data = load(tmp_path, resolution=8)
    assert len(data.test) == 9
    assert "beside train and val, test is not read" in caplog.text


def test_with_nothing_but_an_unlabelled_test_split_images_are_held_out(tmp_path, caplog):
    put(tmp_path, [*grid(("train",), PETS), "test/0.png"])
    assert len(load(tmp_path, resolution=8).test) == 3
    assert "test holds no folders of the training classes" in caplog.text


def test_splits_without_classes_are_no_classes(tmp_path):
    put(tmp_path, grid(("train", "test")))
    with pytest.raises(DataError, match="train must hold a folder of images for each class, and holds images, but no"):
        load(tmp_path, resolution=8)


def test_tiny_imagenet_as_it_comes(tmp_path):
    wnids = ("n01443537", "n01629819")
    put(
        tmp_path, [*grid(("train",), wnids, ("images",)), "val/images/v0.png", "val/images/v1.png", "test/images/t.png"]
    )
    (tmp_path / "val/val_annotations.txt").write_text(
        f"v0.png\t{wnids[1]}\t0\t0\t9\t9\nv1.png\t{wnids[0]}\t0\t0\t9\t9\n"
    )
    (tmp_path / "words.txt").write_text("n01443537\tgoldfish\n")
    data = load(tmp_path, resolution=16)
    assert data.wnids == wnids
    assert data.class_names == ("goldfish", "European fire salamander")
    (tmp_path / "wnids.txt").write_text("\n".join(reversed(wnids)))
    assert load(tmp_path, resolution=16).class_names == wnids  # as the set itself calls them
    assert data.test.labels.tolist() == [0, 1]
    first = put(tmp_path / "one", ["a/0.png", "b/0.png"])
    (first / "a/0.png").write_bytes(encoded("val/images/v1.png"))  # of class 0
    assert torch.equal(data.test.images[0], load(first, resolution=16, holdout=0).train.images[0])


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("X_train", "train"), ("trainset", "train"), ("TrainingData", "train"), ("ILSVRC2012_img_train", "train"),
        ("validation", "val"), ("dev", "val"), ("val2017", "val"), ("eval", "test"), ("test-images", "test"),
        ("trainer", None), ("bullet train", None), ("test tube", None), ("valley", None), ("images", None),
    ],
)  # fmt: skip
def test_roles_by_name(name, role):
    assert role_of(name) == role


def test_a_word_of_a_name_is_a_hint_and_long_names_take_no_time():
    assert [hinted_role(name) for name in ("seg_train", "myTest", "train_or_test", "cat")] == [
        "train",
        "test",
        None,
        None,
    ]
    assert role_of("datasetsetdata" * 20 + "?q") is None


def test_wnids_in_names_of_folders(tmp_path):
    folders = ("n02085620-Chihuahua", "n02086240_Shih-Tzu", "Persian_cat-n02123394", "n99999999-some_thing", "plain")
    names, wnids = named(folders)
    assert names == ("Chihuahua", "Shih-Tzu", "Persian cat", "some thing", "plain")
    assert wnids == ("n02085620", "n02086240", "n02123394", "n99999999", None)


@pytest.mark.parametrize(("folder", "expected"), [("runs", False), ("X_train/runs", True), ("test_set/x", True)])
def test_what_is_written_beside_splits_of_other_names_is_no_data(tmp_path, folder, expected):
    put(tmp_path, grid(("X_train", "X_test"), PETS))
    assert would_read(tmp_path, tmp_path / folder) is expected
