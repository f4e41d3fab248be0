"""Folders of IDX files, and the embedded set, which is part of one."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.data import load
from ld3m.data.builtin import FOLDER
from ld3m.data.idx import FASHION_NAMES
from ld3m.errors import DataError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # the Debian package dataset-fashion-mnist
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def _idx(array):
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _write(folder, prefix, images=PIXELS, labels=LABELS, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        suffix, pack = (".gz", gzip.compress) if zipped else ("", bytes)
        (folder / f"{prefix}-{name}-ubyte{suffix}").write_bytes(pack(_idx(array)))
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_padded_to_32(tmp_path, zipped):
    _write(tmp_path / "mnist", "train", zipped=zipped)
    data = load(_write(tmp_path / "mnist", "t10k", PIXELS[:10], LABELS[:10], zipped), resolution=32)
    assert data.name == "mnist"
    assert data.class_names == tuple("0123456789")
    assert data.train.images.shape == (20, 3, 32, 32)
    inner = data.train.images[:, :, 2:30, 2:30]
    assert torch.equal(inner, torch.from_numpy(PIXELS)[:, None].expand(-1, 3, -1, -1))
    assert data.train.images.sum() == inner.sum()
    assert data.test.labels.tolist() == list(range(10))


def test_other_resolutions_are_resampled_and_a_lone_split_is_held_out(tmp_path):
    data = load(_write(tmp_path, "train"), resolution=14)
    assert data.train.images.shape == (10, 3, 14, 14)
    assert sorted(data.test.labels.tolist()) == list(range(10))


@pytest.mark.parametrize("folder", ["fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_known_by_its_folder(tmp_path, folder):
    data = load(_write(tmp_path / folder, "train"), resolution=28, holdout=0)
    assert data.class_names == FASHION_NAMES
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(PIXELS))


def _replace(name, content):
    return lambda folder: (folder / f"train-{name}-ubyte.gz").write_bytes(content)


ERRORS = {
    "truncated": (_replace("images-idx3", gzip.compress(_idx(PIXELS))[:-99]), "train-images.* cannot be read"),
    "no gzip": (_replace("images-idx3", _idx(PIXELS)), "train-images.* cannot be read .Not a gzipped file"),
    "no idx": (_replace("images-idx3", gzip.compress(b"text of a file")), "is not an IDX file of 3-dimensional uint8"),
    "short head": (_replace("images-idx3", gzip.compress(_idx(PIXELS)[:9])), "is not an IDX file"),
    "short": (_replace("images-idx3", gzip.compress(_idx(PIXELS)[:-1])), "should hold 15680 bytes .* holds 15679"),
    "long": (_replace("images-idx3", gzip.compress(_idx(PIXELS) + bytes(2**26))), "should hold 15680 .* holds more"),
    "endless sizes": (
        _replace("images-idx3", gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3))), "holds 0; fetch",
    ),
    "empty": (_replace("labels-idx1", gzip.compress(_idx(LABELS[:0]))), r"labels must have shape \(20,\).*got \(0,\)"),
    "no labels": (lambda folder: (folder / "train-labels-idx1-ubyte.gz").unlink(), "has no train-labels-idx1-ubyte.gz"),
    "fewer labels": (_replace("labels-idx1", gzip.compress(_idx(LABELS[:9]))), r"train labels must have shape \(20,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), ERRORS.values(), ids=ERRORS)
def test_damaged_idx_files_say_what_is_wrong(tmp_path, damage, message):
    damage(_write(tmp_path, "train"))
    with pytest.raises(DataError, match=message):
        load(tmp_path, resolution=32)


@pytest.fixture(scope="module")
def builtin():
    return load("builtin", resolution=32)


def test_the_embedded_set_is_the_beginning_of_fashion_mnist(builtin):
    assert builtin.name == "builtin"
    assert builtin.class_names == FASHION_NAMES
    assert torch.bincount(builtin.train.labels).tolist() == [600] * 10
    assert torch.bincount(builtin.test.labels).tolist() == [100] * 10
    for images, first in ((builtin.train.images, "b7cbeaddc0ce869e"), (builtin.test.images, "960f452a098662f7")):
        assert hashlib.sha256(images[0].numpy().tobytes()).hexdigest()[:16] == first


def test_the_embedded_pixels_are_unchanged():
    for name, digest in (
        ("train", "5ba9464f710c787969ce8a5e7fb0063fa19d1041388e65ce1889c09c081da72e"),
        ("test", "9abe8761e19bd1265337197c7d152a70f8ae80838bd5eb2bc69961ba014a9eb7"),
    ):
        with Image.open(FOLDER / f"{name}.png") as sheet:
            assert hashlib.sha256(sheet.tobytes()).hexdigest() == digest


def test_the_embedded_statistics(builtin):
    torch.testing.assert_close(builtin.mean, torch.full((3,), 0.219669), atol=1e-6, rtol=0)
    torch.testing.assert_close(builtin.std, torch.full((3,), 0.332562), atol=1e-6, rtol=0)


def test_the_embedded_set_is_small_and_carries_its_licence():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 4 * 2**20
    assert "Copyright (c) 2017 Zalando SE" in (FOLDER / "LICENSE").read_text()


def test_the_embedded_set_at_another_resolution():
    data = load("builtin", resolution=16)
    assert data.test.images.shape == (1000, 3, 16, 16)
    assert torch.equal(data.test.images[:, 0], data.test.images[:, 2])
    assert 0.25 < data.mean[0] < 0.32  # without the border that 32 pixels have


@pytest.mark.skipif(not os.path.isdir(FASHION), reason="dataset-fashion-mnist is not installed")
def test_the_embedded_set_equals_its_source(builtin):
    whole = load(FASHION, resolution=32)
    assert (len(whole.train), len(whole.test)) == (60000, 10000)
    assert whole.class_names == builtin.class_names
    for ours, theirs, count in ((builtin.train, whole.train, 600), (builtin.test, whole.test, 100)):
        for label in range(10):
            assert torch.equal(ours.images[ours.of_class(label)], theirs.images[theirs.of_class(label)[:count]])
