"""Copies across splits, and pictures that stand for missing ones."""

from io import BytesIO

import pytest
from PIL import Image

from ld3m.data import load
from ld3m.errors import DataError
from tests.data.pictures import encoded, grid, put

PETS = ("cat", "dog")


def _changed(data, change, form="PNG", **options):
    buffer = BytesIO()
    change(Image.open(BytesIO(data))).save(buffer, form, **options)
    return buffer.getvalue()


COPIES = {
    "the same file": lambda data: data,
    "another format": lambda data: _changed(data, lambda image: image, "JPEG", quality=85),
    "a thumbnail": lambda data: _changed(data, lambda image: image.resize((48, 48)), "JPEG"),
    "a larger one": lambda data: _changed(data, lambda image: image.resize((130, 130), Image.Resampling.BICUBIC)),
    "brighter by a little": lambda data: _changed(data, lambda image: image.point(lambda v: min(255, v + 3))),
    "webp": lambda data: _changed(data, lambda image: image, "WEBP", quality=80),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_of_test_images_are_left_out_of_training(tmp_path, caplog, copy):
    put(tmp_path, grid(("train", "test"), PETS, count=6), side=96)
    for k in (0, 4):
        (tmp_path / f"train/dog/small{k}.png").write_bytes(copy((tmp_path / f"test/dog/{k}.png").read_bytes()))
    data = load(tmp_path, resolution=32)
    assert (len(data.train), len(data.test)) == (12, 12)
    assert "2 of 14 training images are copies of test images" in caplog.text


def test_two_pictures_of_one_kind_are_no_copies(tmp_path, caplog):
    put(tmp_path, grid(("train", "test"), PETS, count=6), side=32)
    assert len(load(tmp_path, resolution=32).train) == 12
    assert not caplog.records


def test_where_all_pictures_of_a_class_are_alike_near_ones_are_kept(tmp_path):
    for k, split in enumerate(("train",) * 4 + ("test",)):
        for name in PETS:
            path = tmp_path / split / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            brighter = _changed(encoded(name, side=32), lambda image, k=k: image.point(lambda v: min(255, v + k)))
            path.write_bytes(brighter)
    assert len(load(tmp_path, resolution=32).train) == 8


def test_a_class_that_is_all_copies_is_refused(tmp_path):
    put(tmp_path, grid(("train", "test"), PETS), side=32)
    for k in range(3):
        (tmp_path / f"train/cat/{k}.png").write_bytes((tmp_path / f"test/cat/{k}.png").read_bytes())
    with pytest.raises(DataError, match=r"every training image of class 'cat' of .* is a copy of a test image"):
        load(tmp_path, resolution=32)


def test_images_of_one_color_are_said_and_are_no_copies(tmp_path, caplog):
    put(tmp_path, grid(("train", "test"), PETS, count=6))
    for split in ("train", "test"):
        Image.new("RGB", (16, 16), "gray").save(tmp_path / split / "cat/none.png")
    assert len(load(tmp_path, resolution=16).train) == 13
    assert "1 of 13 train images are of one colour, the first of class 'cat': placeholders?" in caplog.text


def test_one_picture_in_several_classes_is_said(tmp_path, caplog):
    put(tmp_path, grid(PETS))
    for name in PETS:
        (tmp_path / name / "notfound.png").write_bytes(encoded("none"))
    load(tmp_path, resolution=16, holdout=0)
    assert "1 train images stand in several classes, the first in 'cat', 'dog'" in caplog.text
