"""What grows with the images and the classes: copies of pixels, and looks at labels."""

import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.data import ImageSet, items, load, pixels
from ld3m.data.images import by_class, closed_up


class Pictures:
    """A map-style data set, which may not be safe in threads."""

    def __init__(self, count=200):
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
        self.threads = set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        self.threads.add(threading.get_ident())
        return self.images[position], position % 4


def test_a_map_style_set_is_decoded_into_its_place(monkeypatch):
    """Its labels are known when its pictures are read: one room for all, out of which the test split is taken."""
    rooms, allocate = [], pixels.allocate
    monkeypatch.setattr(items, "allocate", lambda *a: (rooms.append(allocate(*a)), rooms[-1])[1])
    source = Pictures()
    data = load(source, resolution=8)
    assert len(rooms) == 1
    assert data.train.images.untyped_storage().data_ptr() == rooms[0].ctypes.data
    assert data.test.images.numel() == rooms[0].nbytes // 10
    assert source.threads == {threading.get_ident()}
    pair = load((source.images, torch.arange(200) % 4), resolution=8, holdout=0)
    everything = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert torch.equal(everything.unique(dim=0), pair.train.images.flatten(1).unique(dim=0))
    for one in (data.train, data.test):
        matches = (one.images[:, None] == source.images[None]).flatten(2).all(2)
        assert torch.equal(matches.int().argmax(1) % 4, one.labels)


def test_a_split_of_a_map_style_set_is_that_of_its_pictures():
    source = Pictures()

    class Named:
        def __len__(self):
            return 200

        def __getitem__(self, position):
            return Image.fromarray(source.images[position].permute(1, 2, 0).numpy()), position % 4

    one, other = load(source, resolution=8), load(Named(), resolution=8)
    assert torch.equal(one.train.images, other.train.images)
    assert one.fingerprint == other.fingerprint


def test_copies_of_test_images_leave_without_a_copy_of_the_others():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(40) % 4
    data = load({"train": (images, labels), "test": (images[4:8].clone(), labels[4:8])}, resolution=8)
    assert torch.equal(data.train.images, torch.cat([images[:4], images[8:]]))
    assert data.train.images.untyped_storage().nbytes() == images.numel()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_images_close_up_in_place(chunk):
    images = torch.arange(20).view(20, 1)
    for positions in (torch.arange(20), torch.tensor([0, 1, 5, 6, 7, 13, 19]), torch.tensor([], dtype=torch.int64)):
        own = images.clone()
        moved = closed_up(own, positions, chunk)
        assert torch.equal(moved, images[positions])
        assert moved.data_ptr() == own.data_ptr() or not len(positions)


@pytest.mark.parametrize("num_classes", [3, 2**16 + 5])
def test_labels_are_sorted_once(num_classes):
    labels = torch.randint(0, 3, (500,), generator=torch.Generator().manual_seed(0))
    labels[7] = num_classes - 1
    found = by_class(labels, num_classes)
    assert len(found) == num_classes
    for label in (0, 1, 2, num_classes - 1):
        assert torch.equal(found[label], (labels == label).nonzero().flatten())
    train = ImageSet(torch.zeros(500, 3, 1, 1), labels, tuple(map(str, range(num_classes))))
    assert train.of_class(1) is train.of_class(1)


def test_all_cores_decode_pictures(tmp_path, monkeypatch):
    for k in range(6):
        path = tmp_path / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * k, np.uint8)).save(path)
    asked, pool = [], items.ThreadPoolExecutor
    monkeypatch.setattr(items.os, "sched_getaffinity", lambda _: set(range(24)))
    monkeypatch.setattr(items, "ThreadPoolExecutor", lambda threads: (asked.append(threads), pool(threads))[1])
    load(tmp_path, resolution=4)
    assert set(asked) == {24}


def test_hugging_face_pictures_are_decoded_in_threads(monkeypatch):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (6, 6, 3), np.uint8)) for k in range(32)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    source = datasets.Dataset.from_dict({"image": images, "label": [k % 2 for k in range(32)]}, features=features)
    read, seen = sys.modules["ld3m.data.huggingface"].open_image, set()
    barrier = threading.Barrier(2, timeout=60)

    def note(content):
        if len(seen) < 2:
            seen.add(threading.get_ident())
            barrier.wait()  # two threads are in here at once
        return read(content)

    monkeypatch.setattr(items.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("ld3m.data.huggingface.open_image", note)
    data = load(source, resolution=6, holdout=0)
    assert torch.equal(data.train.images, torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]))
