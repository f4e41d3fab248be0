"""npz, parquet and save_to_disk on the command line's way, and objects as libraries make them."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.data import load
from ld3m.errors import DataError
from tests.data.pictures import encoded

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 255, (6, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"


def _images(data):
    return data.train.images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "val_images", "val_labels"),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_npz_with_splits(tmp_path, names, column):
    labels = LABELS[:, None] if column else LABELS
    np.savez(tmp_path / "set.npz", **dict(zip(names, (PIXELS, labels, OTHERS, labels[:6]), strict=True)))
    data = load(tmp_path / "set.npz", resolution=8)
    assert (_images(data) == PIXELS).all()
    assert data.train.labels.tolist() == LABELS.tolist()
    assert len(data.test) == 6


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1"), ("data", "targets")])
def test_npz_without_splits(tmp_path, names):
    np.savez(tmp_path / "set.npz", **dict(zip(names, (PIXELS, LABELS), strict=True)))
    assert (_images(load(tmp_path / "set.npz", resolution=8, holdout=0)) == PIXELS).all()


def test_npz_that_are_not_clear_or_hold_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS)
    with pytest.raises(DataError, match="needs images and labels of the train split, holds images"):
        load(tmp_path / "a.npz", resolution=8)
    np.savez(tmp_path / "b.npz", images=np.array([print] * 3), labels=LABELS[:3])
    with pytest.raises(DataError, match="cannot be read as arrays"):
        load(tmp_path / "b.npz", resolution=8)


@pytest.fixture
def hub():
    return pytest.importorskip("datasets")


def _rows(hub, data=None, typed=True, first=0):
    cells = [{"bytes": encoded(first + k, side=8) if data is None else data, "path": None} for k in range(12)]
    kind = hub.Image() if typed else {"bytes": hub.Value("binary"), "path": hub.Value("string")}
    features = hub.Features({"image": kind, "label": hub.ClassLabel(names=["x", "y", "z"])})
    return hub.Dataset.from_dict({"image": cells, "label": LABELS.tolist()}, features=features)


@pytest.mark.parametrize("typed", [True, False])
def test_saved_and_parquet_files_equal_the_object(hub, tmp_path, typed):
    rows = _rows(hub, typed=typed)
    wanted = load(rows, resolution=8, holdout=0)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "many/data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "many/data/train-00000-of-00001.parquet")
    _rows(hub, typed=typed, first=12).select(range(6)).to_parquet(tmp_path / "many/data/test-00000-of-00001.parquet")
    for path in ("saved", "one.parquet"):
        found = load(tmp_path / path, resolution=8, holdout=0)
        assert torch.equal(found.train.images, wanted.train.images)
        assert found.class_names == ("x", "y", "z")
    both = load(tmp_path / "many", resolution=8)
    assert torch.equal(both.train.images, wanted.train.images)
    assert len(both.test) == 6


def test_parquet_files_of_other_columns_are_refused(hub, tmp_path):
    _rows(hub).to_parquet(tmp_path / "a.parquet")
    hub.Dataset.from_dict({"image": [1], "label": ["q"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="parquet files of different columns"):
        load(tmp_path, resolution=8)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        load(tmp_path / "a.parquet", resolution=8)


@pytest.mark.parametrize("typed", [True, False])
def test_formats_that_start_other_programs_are_not_reached_through_datasets(hub, monkeypatch, typed):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was asked for"))
    with pytest.raises(DataError, match="none of the 12 train images can be read"):
        load(_rows(hub, EPS, typed), resolution=8, holdout=0)


def test_columns_of_webdataset_and_raw_bytes(hub):
    rows = hub.Dataset.from_dict({"png": [encoded(k, side=8) for k in range(12)], "cls": LABELS.tolist()})
    assert torch.equal(
        load(rows, resolution=8, holdout=0).train.images, load(_rows(hub), resolution=8, holdout=0).train.images
    )


def test_classes_in_another_order_are_mapped_by_name(hub):
    train = _rows(hub)
    names = ["z", "x", "y"]
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=names)})
    cells = [{"bytes": encoded(k + 12, side=8), "path": None} for k in range(12)]
    test = hub.Dataset.from_dict({"image": cells, "label": [names.index("xyz"[k]) for k in LABELS]}, features=features)
    data = load({"train": train, "test": test}, resolution=8)
    assert data.test.labels.tolist() == LABELS.tolist()
    assert data.class_names == ("x", "y", "z")


class Pictures:
    def __init__(self, labels, classes=(), wnids=()):
        self.labels = labels
        if classes:
            self.classes = classes
        if wnids:
            self.wnids = wnids

    def __len__(self):
        return 12

    def __getitem__(self, position):
        return Image.fromarray(PIXELS[position]), self.labels[position]


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None], [[int(k)] for k in LABELS], torch.tensor(LABELS)[:, None], [np.array(k) for k in LABELS]],
)
def test_objects_with_labels_in_a_column(labels):
    assert load(Pictures(labels), resolution=8, holdout=0).train.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_pairs_with_labels_in_a_column(kind):
    data = load((PIXELS.transpose(0, 3, 1, 2), kind(LABELS[:, None])), resolution=8, holdout=0)
    assert data.train.labels.tolist() == LABELS.tolist()


def test_one_hot_labels_of_an_object_are_refused():
    with pytest.raises(DataError, match="holds 3 labels; for one-hot rows"):
        load(Pictures(np.eye(3)[LABELS]), resolution=8)


def test_imagenet_of_torchvision_brings_names_and_wnids():
    classes = [("tench", "Tinca tinca"), ("English springer", "English springer spaniel"), ("cassette player",)]
    wnids = ["n01440764", "n02102040", "n02979186"]
    data = load(Pictures(LABELS, classes, wnids), resolution=8, holdout=0)
    assert data.class_names == ("tench", "English springer", "cassette player")
    assert data.wnids == tuple(wnids)
    assert load(Pictures(LABELS, wnids), resolution=8, holdout=0).class_names == data.class_names
    twins = [("crane", "bird"), ("crane", "machine"), ("fox",)]
    assert load(Pictures(LABELS, twins), resolution=8, holdout=0).class_names == (
        "crane, bird",
        "crane, machine",
        "fox",
    )


def test_damaged_exif_data_do_not_matter_and_the_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    from ld3m.data.pixels import fit, open_image

    exif = Image.Exif()
    exif[0x0112] = 6
    for tail in (b"", b"\xff\x00\xff", b"\x00" * 9):
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=95, exif=exif.tobytes() + tail)
        found = fit(open_image(buffer.getvalue()), 16)
        assert (found[:, :, 9:] > 200).all()
        assert (found[:, :, :7] < 50).all()
    for broken in (
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05",
    ):
        buffer = BytesIO()
        image.save(buffer, "JPEG", exif=b"Exif\x00\x00" + broken)
        assert fit(open_image(buffer.getvalue()), 16).shape == (3, 16, 16)
