"""Copies across splits, and pictures that stand for missing ones."""

from io import BytesIO

import numpy as np
import pytest
import torch
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


def _picture(seed, side=32):
    return Image.open(BytesIO(encoded(seed, side=side))).convert("RGB")


def _again(picture):
    """The same picture saved again: nearly the same pixels."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return Image.open(BytesIO(buffer.getvalue())).convert("RGB")


def _splits(copied):
    """Pictures and labels of 12 for training, of which 2 are copies by `copied`, and 6 for testing."""
    test = [_picture(("test", k)) for k in range(6)]
    train = [_picture(("train", k)) for k in range(10)] + [copied(test[1]), copied(test[4])]
    return (train, [k % 2 for k in range(12)]), (test, [k % 2 for k in range(6)])


def _array(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


class Pairs:
    def __init__(self, pictures, labels):
        self.rows = list(zip(pictures, labels, strict=True))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return self.rows[k]


def _tensors(train, test, folder):
    return {
        name: (torch.from_numpy(_array(pictures)).permute(0, 3, 1, 2), torch.tensor(labels))
        for name, (pictures, labels) in (("train", train), ("test", test))
    }


def _datasets(train, test, folder):
    hub = pytest.importorskip("datasets")
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["a", "b"])})
    found = {}
    for name, (pictures, labels) in (("train", train), ("test", test)):
        cells = []
        for picture in pictures:
            picture.save(buffer := BytesIO(), "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        found[name] = hub.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    return found


def _parquet(train, test, folder):
    for name, rows in _datasets(train, test, folder).items():
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def _saved(train, test, folder):
    hub = pytest.importorskip("datasets")
    hub.DatasetDict(_datasets(train, test, folder)).save_to_disk(folder / "saved")
    return folder / "saved"


def _npz(train, test, folder):
    arrays = {"x_train": _array(train[0]), "y_train": train[1], "x_test": _array(test[0]), "y_test": test[1]}
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


KINDS = {
    "tensors": _tensors,
    "map-style": lambda train, test, folder: {"train": Pairs(*train), "test": Pairs(*test)},
    "datasets": _datasets,
    "parquet": _parquet,
    "save_to_disk": _saved,
    "npz": _npz,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("copied", [lambda picture: picture, _again], ids=["exact", "near"])
def test_copies_are_left_out_of_every_kind_of_source(kind, copied, tmp_path, caplog):
    data = load(kind(*_splits(copied), tmp_path), resolution=32)
    assert (len(data.train), len(data.test)) == (10, 6)
    kept = [torch.from_numpy(_array([_picture(("train", k))])[0]).permute(2, 0, 1) for k in range(10)]
    assert torch.equal(data.train.images, torch.stack(kept))
    assert "2 of 12 training images are copies of test images" in caplog.text


def test_copies_within_a_pair_that_is_split_here_are_left_out(caplog):
    images = torch.from_numpy(_array([_picture(k % 10) for k in range(20)])).permute(0, 3, 1, 2)
    data = load((images, torch.arange(20) // 2 % 2), resolution=32, holdout=0.2)
    held = {image.numpy().tobytes() for image in data.test.images}
    assert not held & {image.numpy().tobytes() for image in data.train.images}
    assert "training images are copies of test images" in caplog.text


def _digits(shift):
    """Grey drawings of one shape, a level apart."""
    base = torch.zeros(28, 28, dtype=torch.uint8)
    base[4:24, 12:16] = 200
    return torch.stack([(base + (base > 0) * (shift + k)).to(torch.uint8) for k in range(12)])


def test_of_grey_arrays_the_same_bytes_count_alone(caplog):
    """Digits are all alike: each "1" is nearly another's copy."""
    noise = torch.randint(0, 256, (12, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, train = torch.arange(12) % 2, torch.where((torch.arange(12) % 4 == 0)[:, None, None], _digits(0), noise)
    test = _digits(20)
    assert len(load({"train": (train, labels), "test": (test, labels)}, resolution=28).train) == 12
    test[3] = train[8]
    assert len(load({"train": (train, labels), "test": (test, labels)}, resolution=28).train) == 11
    assert "1 of 12 training images are copies of test images" in caplog.text
    colored = [images[:, None].repeat(1, 3, 1, 1) for images in (train, test)]
    colored[0][1, 0] += 1  # one picture with a color: photographs, of which near ones count
    data = load({"train": (colored[0], labels), "test": (colored[1], labels)}, resolution=28)
    assert len(data.train) == 9


def test_published_sets_are_taken_as_they_are(monkeypatch):
    monkeypatch.setattr("ld3m.data.sources.copies", None)
    assert len(load("builtin", resolution=16).train) == 6000
