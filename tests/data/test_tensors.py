"""Tensor pairs, torch Datasets and Hugging Face datasets."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

from ld3m.data import load
from ld3m.errors import DataError

IMAGES = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2] * 4)


class Pictures:
    """A map-style data set of Pillow images with class names."""

    classes = ("red", "green", "blue")

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 12

    def __getitem__(self, position):
        if position in self.broken:
            raise OSError("image file is truncated")
        return Image.fromarray(IMAGES[position].permute(1, 2, 0).numpy()), int(LABELS[position])


@pytest.mark.parametrize(
    "images", [IMAGES, IMAGES / 255, (IMAGES / 255).double(), IMAGES.numpy()], ids=["uint8", "float", "double", "numpy"]
)
def test_a_pair_keeps_its_pixels(images):
    data = load((images, LABELS), resolution=8, holdout=0)
    assert torch.equal(data.train.images, IMAGES)
    assert torch.equal(data.train.labels, LABELS)
    assert data.class_names == ("0", "1", "2")
    assert data.name == "tensors"
    assert data.test is None


def test_flipped_arrays_are_read_as_they_look():
    flipped = (IMAGES.numpy()[..., ::-1], LABELS.numpy()[::-1])
    data = load(flipped, resolution=8, holdout=0)
    assert torch.equal(data.train.images, IMAGES.flip(-1))
    assert torch.equal(data.train.labels, LABELS.flip(0))


def test_grey_pairs_are_repeated_to_three_channels():
    for images in (IMAGES[:, 0], IMAGES[:, :1]):
        data = load((images, LABELS.to(torch.uint8)), resolution=8, holdout=0)
        assert torch.equal(data.train.images, IMAGES[:, :1].expand(-1, 3, -1, -1))


def test_a_pair_is_held_out_by_default_and_resampled_on_demand():
    data = load((IMAGES, LABELS), resolution=16)
    assert data.train.images.shape == (9, 3, 16, 16)
    assert torch.bincount(data.test.labels).tolist() == [1, 1, 1]


def test_a_mapping_gives_both_splits():
    others = IMAGES[:6].flip(2)
    data = load({"train": (IMAGES, LABELS), "test": (others, LABELS[:6])}, resolution=8)
    assert torch.equal(data.test.images, others)
    assert len(data.train) == 12
    assert load({"train": Pictures()}, resolution=8, holdout=0).class_names == Pictures.classes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            (IMAGES.permute(0, 2, 3, 1), LABELS),
            r"shape \(N, C, H, W\).*got \(12, 8, 8, 3\); move the channels: images.perm",
        ),
        ((IMAGES[0, 0], LABELS), r"got \(8, 8\)"),
        ((IMAGES, LABELS[:5]), r"train labels must have shape \(12,\), one for each image; got \(5,\)"),
        ((IMAGES, torch.eye(12)), r"got \(12, 12\); for one-hot rows pass labels.argmax\(1\)"),
        ((IMAGES, LABELS.float()), "train labels must be integers, got torch.float32; pass labels.long"),
        (
            (IMAGES, np.array(["ant", "bee", "cat"] * 4)),
            "train labels must be numbers that torch knows, got dtype <U3; number the classes: .*numpy.unique",
        ),
        ((IMAGES.numpy().astype(object), LABELS), "train images must be numbers .* got dtype object; convert them"),
        ((IMAGES, LABELS > 0), "train labels must be integers, got torch.bool"),
        (
            (IMAGES, LABELS + 1),
            r"labels must be 0…K-1, each of them in use; found 1, 2, 3; renumber.*return_inverse=True",
        ),
        ((IMAGES, LABELS * 2), "found 0, 2, 4; renumber"),
        ((IMAGES, LABELS - 1), "found -1, 0, 1; renumber"),
        ((IMAGES, torch.arange(12) + 5), "found 5, 6, 7, 8, 9, 10, 11, 12, …; renumber"),
        ((IMAGES, LABELS * 0), "expected at least two classes, found only '0'"),
        ((IMAGES[:0], LABELS[:0]), "the train split is empty"),
        ((IMAGES / 127, LABELS), r"train images\[0\] has values from 0.*; expected floating point in \[0, 1\]"),
        (
            (torch.where(LABELS[:, None, None, None] == 2, torch.nan, IMAGES / 255), LABELS),
            r"images\[2\] holds NaN or Inf",
        ),
        ((IMAGES.int(), LABELS), r"train images\[0\] has dtype int32; expected uint8"),
        ({"test": (IMAGES, LABELS)}, r"needs the key 'train', found \['test'\]"),
        (
            {"train": (IMAGES, LABELS), "test": (IMAGES[:2], LABELS[:2])},
            "the test split must have the classes of the training split, but lacks '2'",
        ),
        ((IMAGES, [0] * 12), "cannot read a tuple as the train split; expected 'builtin', the path"),
        (IMAGES, "cannot read a Tensor as the train split"),
        (None, "cannot read a NoneType"),
    ],
)
def test_what_is_no_pair_of_images_and_labels_says_why(source, message):
    with pytest.raises(DataError, match=message):
        load(source, resolution=8, holdout=None if isinstance(source, dict) else 0)


def test_a_torch_dataset_of_tensors_equals_the_pair():
    pair = load((IMAGES, LABELS), resolution=8, holdout=0)
    data = load(TensorDataset(IMAGES / 255, LABELS), resolution=8, holdout=0)
    assert torch.equal(data.train.images, pair.train.images)
    assert torch.equal(data.train.labels, pair.train.labels)
    assert data.name == "tensordataset"


def test_a_dataset_of_pictures_brings_its_class_names_also_through_a_subset():
    data = load(Pictures(), resolution=8, holdout=0)
    assert torch.equal(data.train.images, IMAGES)
    assert data.class_names == ("red", "green", "blue")
    first_two = Subset(Pictures(), [0, 1, 3, 4])
    assert load(first_two, resolution=8, holdout=0).class_names == ("red", "green")


def test_a_dataset_may_hold_damaged_items(caplog):
    data = load(Pictures(broken=(1, 5)), resolution=8, holdout=0)
    assert torch.equal(data.train.images, IMAGES[[0, 2, 3, 4, *range(6, 12)]])
    assert torch.bincount(data.train.labels).tolist() == [4, 3, 3]
    assert "skipped 2 of 12 train images that cannot be read, the first is train[1] (OSError: image file" in caplog.text
    with pytest.raises(DataError, match=r"train\[1\] cannot be read"):
        load(Pictures(broken=(1, 5)), resolution=8, strict=True)
    with pytest.raises(DataError, match="none of the 12 train images can be read"):
        load(Pictures(broken=range(12)), resolution=8)


@pytest.mark.parametrize("item", [{"image": 1}, 5, (IMAGES[0],), (IMAGES[0], 0.5), (IMAGES[0], "cat")])
def test_items_must_be_pairs_with_an_integer_label(item):
    with pytest.raises(DataError, match=r"train\[0\] must be a pair \(image, integer label\)"):
        load(type("Items", (), {"__len__": lambda _: 3, "__getitem__": lambda *_: item})(), resolution=8)


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __len__(self):
            return 3

        def __iter__(self):
            return iter(zip(IMAGES, LABELS, strict=True))

    with pytest.raises(DataError, match=r"cannot read a Stream.*not a stream"):
        load(Stream(), resolution=8)


@pytest.fixture
def hub():
    return pytest.importorskip("datasets")


def _columns(image="image", label="label", labels=None):
    labels = labels or LABELS.tolist()
    return {image: [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in IMAGES], label: labels}


def _features(hub, image="image", label="label"):
    return hub.Features({image: hub.Image(), label: hub.ClassLabel(names=["x", "y", "z"])})


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "labels"), ("img", "fine_label")])
def test_a_hugging_face_dataset_is_read_by_its_columns(hub, image, label):
    source = hub.Dataset.from_dict(_columns(image, label), features=_features(hub, image, label))
    for form in (None, "torch", "numpy"):
        data = load(source.with_format(form), resolution=8, holdout=0)
        assert torch.equal(data.train.images, IMAGES)
        assert torch.equal(data.train.labels, LABELS)
        assert data.class_names == ("x", "y", "z")


def test_string_labels_are_sorted_into_classes(hub):
    names = ["dog", "ant", "cat"] * 4
    source = hub.Dataset.from_dict(
        _columns(labels=names), features=hub.Features(image=hub.Image(), label=hub.Value("string"))
    )
    data = load(source, resolution=8, holdout=0)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.train.labels[:3].tolist() == [2, 0, 1]


def test_a_dataset_dict_brings_its_own_test_split(hub):
    source = hub.Dataset.from_dict(_columns(), features=_features(hub))
    data = load(hub.DatasetDict(train=source, validation=source.select(range(6))), resolution=8)
    assert torch.equal(data.test.images, IMAGES[:6])
    assert len(load(hub.DatasetDict(train=source), resolution=8).test) == 3
    with pytest.raises(DataError, match="but lacks 'z'"):
        load(hub.DatasetDict(train=source, test=source.select([0, 1])), resolution=8)


def test_a_test_split_without_labels_gives_way_to_one_with_them(hub):
    source = hub.Dataset.from_dict(_columns(), features=_features(hub))
    secret = hub.Dataset.from_dict(_columns(labels=[-1] * 12), features=_features(hub))
    data = load(hub.DatasetDict(train=source, test=secret, validation=source.select(range(6))), resolution=8)
    assert torch.equal(data.test.images, IMAGES[:6])
    with pytest.raises(DataError, match="test labels must be 0…K-1"):
        load(hub.DatasetDict(train=source, test=secret), resolution=8)


def test_hugging_face_columns_that_do_not_fit_say_why(hub):
    features = _features(hub, "picture", "kind")
    with pytest.raises(
        DataError, match=r"columns \['picture', 'kind'\]; expected one of \['image', 'img'\].*rename_column"
    ):
        load(hub.Dataset.from_dict(_columns("picture", "kind"), features=features), resolution=8)
    for labels in ([None] * 12, [[0, 1]] * 12, [[0], [1, 2]] * 6):
        with pytest.raises(DataError, match="column 'label' of the train split must hold one label an image"):
            load(hub.Dataset.from_dict({"image": [0] * 12, "label": labels}), resolution=8)
    with pytest.raises(DataError, match=r"train\[0\] is a list; expected a Pillow image"):
        load(hub.Dataset.from_dict({"image": [[1]] * 12, "label": LABELS.tolist()}), resolution=8)


def test_damaged_hugging_face_images_are_skipped(hub, caplog):
    columns = _columns()
    columns["image"][4] = {"bytes": b"no picture", "path": None}
    data = load(hub.Dataset.from_dict(columns, features=_features(hub)), resolution=8, holdout=0)
    assert len(data.train) == 11
    assert "the first is train[4]" in caplog.text


def test_a_hub_name_is_loaded_only_when_asked_for(monkeypatch):
    loaded = {"train": (IMAGES, LABELS)}
    monkeypatch.setitem(sys.modules, "datasets", type(sys)("datasets"))
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", {"owner/name": loaded}.__getitem__, raising=False)
    monkeypatch.setattr(sys.modules["datasets"], "Dataset", type("Dataset", (), {}), raising=False)
    assert torch.equal(load("hf:owner/name", resolution=8, holdout=0).train.images, IMAGES)
    with pytest.raises(DataError, match="there is no data 'owner/name'"):
        load("owner/name", resolution=8)

    def offline(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", offline)
    with pytest.raises(DataError, match="'hf:owner/name' cannot be loaded: offline"):
        load("hf:owner/name", resolution=8)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs Hugging Face datasets: pip install 'ld3m\[data\]'"):
        load("hf:owner/name", resolution=8)


def test_large_labels_of_numpy_are_accepted():
    data = load((IMAGES, LABELS.numpy().astype(np.int16)), resolution=8, holdout=0)
    assert data.train.labels.dtype == torch.int64
