"""ImageFolder layouts, as directories and as zip archives, whole and damaged."""

import logging
import os
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ld3m.data import load, pixels, would_read
from ld3m.errors import DataError


def _picture(path, seed, size=(12, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(array).convert(mode).save(path)
    return path


def _classes(folder, names=("a", "b"), count=4, seed=0):
    for name in names:
        for k in range(count):
            _picture(folder / name / f"{k}.png", (seed, ord(name[-1]), k))
    return folder


def _splits(folder, test="val"):
    _classes(folder / "train", count=4)
    _classes(folder / test, count=2, seed=1)
    return folder


def _zip(folder, path, wrapper=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, wrapper + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize(
    ("make", "folder", "expected"),
    [
        (_classes, "runs/a", True),
        (_classes, "a/b", True),
        (_classes, ".runs/a", False),
        (_classes, "../runs", False),
        (_splits, "runs/a", False),
        (_splits, "train/runs", True),
        (_splits, "Test/runs", True),
    ],
)
def test_what_is_written_among_the_classes_becomes_data(make, folder, expected, tmp_path, monkeypatch):
    data = make(tmp_path / "set")
    assert would_read(data, data / folder) is expected
    monkeypatch.chdir(data)
    assert would_read(".", Path(folder)) is expected


@pytest.mark.parametrize("test", ["val", "test", "testing", "validation"])
def test_splits_in_folders_are_read_in_sorted_order(tmp_path, test):
    data = load(_splits(tmp_path / "set", test), resolution=8)
    assert data.name == "set"
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.class_names == data.train.class_names == data.test.class_names == ("a", "b")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    first = pixels.fit(Image.open(tmp_path / "set/train/a/0.png"), 8)
    assert (data.train.images[0].numpy() == first).all()
    torch.testing.assert_close(data.mean, data.train.batch(range(8)).mean((0, 2, 3)))
    assert data.wnids == (None, None)
    assert data.resolution == 8


def test_test_wins_over_val_and_the_other_is_said_to_be_unused(tmp_path, caplog):
    _splits(tmp_path, "val")
    _classes(tmp_path / "test", count=3)
    data = load(tmp_path, resolution=8)
    assert len(data.test) == 6
    assert "beside train and test, val is not read" in caplog.text


def test_a_test_folder_without_classes_gives_way_to_one_with_them(tmp_path, caplog):
    _picture(_splits(tmp_path / "set") / "test/0.png", 0)
    assert len(load(tmp_path / "set", resolution=8).test) == 4
    assert "beside train and val, test is not read" in caplog.text


def test_capital_letters_and_a_folder_that_is_no_split(tmp_path, caplog):
    _classes(tmp_path / "Training", count=5)
    _classes(tmp_path / "notes")
    data = load(tmp_path, resolution=8, holdout=0)
    assert (len(data.train), data.test) == (10, None)
    assert "beside Training, notes is not read" in caplog.text
    _classes(tmp_path / "Testing", count=1, seed=1)
    data = load(tmp_path, resolution=8)
    assert (len(data.train), len(data.test)) == (10, 2)
    assert "beside Training and Testing, notes is not read" in caplog.text


@pytest.mark.parametrize("wrapper", ["", "wrapped/", "two/deep/"])
@pytest.mark.parametrize("make", [_splits, _classes])
def test_a_zip_reads_as_the_folder_it_was_made_from(tmp_path, make, wrapper):
    folder = make(tmp_path / "set")
    unpacked, zipped = load(folder, resolution=8), load(_zip(folder, tmp_path / "set.zip", wrapper), resolution=8)
    assert zipped.name == "set"
    for ours, theirs in ((zipped.train, unpacked.train), (zipped.test, unpacked.test)):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images.sum((1, 2, 3)).sort()[0], theirs.images.sum((1, 2, 3)).sort()[0])
    if make is _splits:
        assert torch.equal(zipped.train.images, unpacked.train.images)


def test_nothing_outside_of_an_archive_is_read_or_written(tmp_path):
    path = _zip(_classes(tmp_path / "set"), tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../up/0.png", "/root/0.png", "__MACOSX/a/0.png", ".hidden/0.png", "a/../../c/0.png"):
            archive.writestr(name, (tmp_path / "set/a/0.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    assert load(path, resolution=8).class_names == ("a", "b")
    assert sorted(tmp_path.rglob("*")) == before


def test_hidden_files_and_other_kinds_of_files_are_ignored(tmp_path, caplog):
    _classes(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / ".0.png").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").touch()
    data = load(tmp_path, resolution=8)
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.test) == 8
    assert not caplog.records


def test_class_folders_may_be_nested_linked_and_called_train(tmp_path):
    _classes(tmp_path / "set", ("train", "car"))
    _picture(tmp_path / "set/car/more/9.PNG", 1)
    _classes(tmp_path / "elsewhere", ("boat",))
    os.symlink(tmp_path / "elsewhere/boat", tmp_path / "set/boat")
    os.symlink(tmp_path / "set", tmp_path / "set/car/loop")
    data = load(tmp_path / "set", resolution=8, holdout=0)
    assert data.class_names == ("boat", "car", "train")
    assert torch.bincount(data.train.labels).tolist() == [4, 5, 4]


def test_wnid_folders_get_their_ilsvrc_names(tmp_path):
    data = load(_classes(tmp_path, ("n01440764", "n99999999", "zebra")), resolution=8)
    assert data.class_names == ("tench", "n99999999", "zebra")
    assert data.wnids == ("n01440764", "n99999999", None)


def test_classes_of_one_ilsvrc_name_keep_their_wnids(tmp_path):
    data = load(_classes(tmp_path, ("n02012849", "n03126707")), resolution=8)  # crane, the bird and the machine
    assert data.class_names == data.wnids == ("n02012849", "n03126707")


@settings(derandomize=True, deadline=None, max_examples=6)
@given(st.floats(0.01, 0.9), st.integers(0, 5))
def test_holdout_is_stratified_disjoint_and_repeatable(tmp_path_factory, holdout, seed):
    folder = _classes(tmp_path_factory.mktemp("set"), count=7)
    data, again = (load(folder, resolution=8, holdout=holdout, seed=seed) for _ in range(2))
    expected = min(max(1, round(7 * holdout)), 6)
    assert torch.bincount(data.test.labels).tolist() == [expected] * 2
    assert torch.bincount(data.train.labels).tolist() == [7 - expected] * 2
    rows = [image.numpy().tobytes() for image in (*data.train.images, *data.test.images)]
    assert len(set(rows)) == 14
    assert torch.equal(data.test.images, again.test.images)


def test_holdout_follows_the_seed_and_the_name_of_a_file(tmp_path):
    folder = _classes(tmp_path / "set", count=20)
    chosen = [load(folder, resolution=8, seed=seed).test.images for seed in (0, 1)]
    assert len(chosen[0]) == len(chosen[1]) == 4
    assert not torch.equal(*chosen)
    kept = load(folder, resolution=8, holdout=0)
    assert kept.test is None
    assert len(kept.train) == 40


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def _bomb(path):
    """Write a PNG of a few bytes that claims 20,000 × 20,000 pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


DAMAGES = {
    "truncated": _truncate,
    "zero-byte": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no picture"),
    "bomb": _bomb,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_images_are_skipped_with_one_warning_or_refused(tmp_path, caplog, damage, zipped):
    source = _splits(tmp_path / "set")
    for k in (1, 3):
        damage(source / f"train/b/{k}.png")
    if zipped:
        source = _zip(source, tmp_path / "set.zip")
    data = load(source, resolution=8)
    assert torch.bincount(data.train.labels).tolist() == [4, 2]
    assert len(data.test) == 4
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "skipped 2 of 8 train images that cannot be read, the first is train/b/1.png" in record.message
    with pytest.raises(DataError, match=r"train/b/1.png cannot be read .*repair or remove it"):
        load(source, resolution=8, strict=True)


def test_a_picture_just_above_pillows_limit_is_a_bomb(tmp_path, caplog, monkeypatch):
    _splits(tmp_path)
    _picture(tmp_path / "train/a/0.png", 0, size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # Pillow itself only warns up to twice the limit
    assert len(load(tmp_path, resolution=8).train) == 7
    assert "DecompressionBombWarning" in caplog.text


def test_oversized_and_broken_archive_members_are_skipped(tmp_path, caplog, monkeypatch):
    path = _zip(_splits(tmp_path / "set"), tmp_path / "set.zip")
    sizes = sorted(info.file_size for info in zipfile.ZipFile(path).infolist())
    _picture(tmp_path / "set/train/a/0.png", 0, size=(90, 90))
    path = _zip(tmp_path / "set", path)
    monkeypatch.setattr("ld3m.data.listing.MAX_FILE_BYTES", sizes[-1])
    assert len(load(path, resolution=8).train) == 7
    assert "the archive member unpacks to" in caplog.text


def test_the_memory_map_holds_the_same_images(tmp_path, monkeypatch):
    folder = _splits(tmp_path / "set")
    (folder / "train/a/1.png").write_bytes(b"")
    in_memory = load(folder, resolution=8)
    monkeypatch.setattr(pixels, "MEMMAP_BYTES", 100)
    mapped = load(folder, resolution=8, cache=tmp_path / "cache")
    assert torch.equal(mapped.train.images, in_memory.train.images)
    assert torch.equal(mapped.train.batch([3, 0]), in_memory.train.batch([3, 0]))
    assert torch.equal(mapped.std, in_memory.std)
    assert (tmp_path / "cache").is_dir()


def _lone_class(folder):
    _classes(folder / "train", ("a",))


def _empty_class(folder):
    _classes(folder)
    (folder / "c").mkdir()


def _unreadable_class(folder):
    _splits(folder)
    for k in range(4):
        (folder / f"train/b/{k}.png").write_bytes(b"")


def _nothing_readable(folder):
    _splits(folder)
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"")


def _other_test_classes(folder):
    _splits(folder)
    shutil.move(folder / "val/b", folder / "val/z")


ERRORS = {
    "empty": (lambda folder: None, "must hold a folder of images for each class, and holds nothing of the kind"),
    "flat": (lambda folder: _picture(folder / "0.png", 0), "holds images, but no folder around them"),
    "empty train": (lambda folder: (folder / "train").mkdir(), "class 'train' in .* holds no image file"),
    "one class": (_lone_class, "expected at least two classes, found only 'a'"),
    "one flat class": (lambda folder: _classes(folder, ("a",)), "expected at least two classes, found only 'a'"),
    "empty class": (_empty_class, r"class 'c' in .* holds no image file \(.bmp, .gif, .jpeg"),
    "unreadable class": (_unreadable_class, "class 'b' has no readable train image; train/b/0.png: Unidentified"),
    "nothing readable": (_nothing_readable, "none of the 8 train images can be read; train/a/0.png: Unidentified"),
    "other test classes": (_other_test_classes, "the test split must have .* but lacks 'b' and adds 'z'"),
    "no train": (lambda folder: _classes(folder / "val"), "holds val but no train; add a folder train/"),
    "single image": (lambda folder: _classes(folder, count=1), "class 'a' has a single image, and holdout=0.1"),
}


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS)
def test_a_folder_that_is_no_data_set_says_why(tmp_path, make, message):
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set", resolution=8)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_refused_of_classes_and_taken_of_files(tmp_path):
    folder = _classes(tmp_path / "set", count=6)
    named = load(folder, resolution=8)
    for name in ("a", "b"):
        os.rename(folder / name / "0.png", os.fsencode(folder / name) + b"/caf\xe9.png")
    renamed = load(folder, resolution=8)
    assert (len(renamed.train), len(renamed.test)) == (len(named.train), len(named.test)) == (10, 2)
    os.rename(folder / "b", os.fsencode(folder) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"class folder 'caf\\udce9' in .*set has a name that is not UTF-8; rename the"):
        load(folder, resolution=8)


def test_missing_unlisted_and_non_zip_paths_say_why(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no data 'nowhere'; expected 'builtin'"):
        load("nowhere", resolution=8)
    with pytest.raises(DataError, match=r"could not read .*File name too long"):
        load("x" * 5000, resolution=8)
    (tmp_path / "evil.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match=r"evil.zip is neither a folder nor a zip archive"):
        load(tmp_path / "evil.zip", resolution=8)
    _classes(tmp_path / "set")

    def denied(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", denied)  # chmod does not stop root
    with pytest.raises(DataError, match=r"set cannot be listed .Permission denied.; give read permission"):
        load(tmp_path / "set", resolution=8)
    monkeypatch.setattr(zipfile, "ZipFile", denied)
    with pytest.raises(DataError, match=r"evil.zip cannot be opened .Permission denied"):
        load(tmp_path / "evil.zip", resolution=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, "resolution must be a positive number of pixels, got 0"),
        ({"resolution": -8}, "got -8"),
        ({"resolution": 8.0}, "got 8.0"),
        ({"resolution": True}, "got True"),
        ({"resolution": 8, "holdout": 1.0}, r"holdout must be a fraction in \[0, 1\), got 1.0"),
        ({"resolution": 8, "holdout": -0.1}, "got -0.1"),
        ({"resolution": 8, "holdout": 0.2}, "holdout=0.2 has no use: 'set' has a test split of its own"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    folder = _splits(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        load(folder, **options)


def test_a_loaded_set_passes_through_at_its_own_resolution_only(tmp_path):
    data = load(_splits(tmp_path / "set"), resolution=8)
    assert load(data, resolution=8) is data
    with pytest.raises(DataError, match="'set' was loaded at resolution 8, asked for is 16"):
        load(data, resolution=16)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"holdout": 0.2}, "holdout=0.2"),
        ({"holdout": 0}, "holdout=0"),
        ({"strict": True}, "strict=True"),
        ({"holdout": 0.5, "strict": True}, "holdout=0.5 and strict=True"),
    ],
)
def test_a_loaded_set_takes_no_options_of_the_reading(tmp_path, options, given):
    data = load(_classes(tmp_path / "set"), resolution=8, holdout=0)
    with pytest.raises(DataError, match=f"^{given} would have no effect: data 'set' has been split and read already"):
        load(data, resolution=8, **options)


@pytest.mark.parametrize(
    ("file", "resolution", "counts", "name", "mean", "std"),
    [
        ("cifar10.zip", 32, (4750, 870), "airplane", (0.4940, 0.4844, 0.4479), (0.2481, 0.2444, 0.2620)),
        ("imagenette-128.zip", 128, (3000, 600), "tench", (0.4638, 0.4599, 0.4337), (0.2784, 0.2760, 0.2986)),
    ],
)
def test_real_sets_have_their_known_statistics(file, resolution, counts, name, mean, std):
    path = os.path.join(os.environ.get("LD3M_DATA", ""), file)
    if not os.path.isfile(path):
        pytest.skip(f"no {file} in the folder named by LD3M_DATA")
    data = load(path, resolution=resolution)
    assert (len(data.train), len(data.test)) == counts
    assert data.class_names[0] == name
    torch.testing.assert_close(data.mean, torch.tensor(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.std, torch.tensor(std), atol=1e-4, rtol=0)
