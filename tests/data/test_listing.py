"""What is listed in folders and archives, and what is passed over."""

import errno
import os
import tarfile
import unicodedata
import zipfile
from io import BytesIO

import pytest

from ld3m.data import folder as folder_module
from ld3m.data import load
from ld3m.data.listing import list_files
from ld3m.errors import DataError
from tests.data.pictures import encoded, grid, put

PETS = ("cat", "dog")


def _zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is, whatever the system
            archive.writestr(info, encoded(name))
    return path


@pytest.mark.parametrize(
    "foreign",
    [
        "@eaDir/0.png/SYNOPHOTO_THUMB_SM.jpg", "Thumbs/0.jpg", "_thumbnails/0.png", "thumbs_200x200/0.png",
        ".thumbnails/0.png",
        "#recycle/0.png", "$RECYCLE.BIN/0.png", ".AppleDouble/0.png", "lost+found/0.png", "__MACOSX/0.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "train/", "train/cat/"])
def test_pictures_of_the_system_are_no_data(tmp_path, foreign, below):
    if not below and "humb" in foreign and not foreign.startswith("."):
        pytest.skip("a set may be called so at its top")
    put(tmp_path, [*grid(("train", "val"), PETS), *[f"{below}{foreign}"] * 2])
    data = load(tmp_path, resolution=8)
    assert data.class_names == PETS
    assert len(data.train) == 6


def test_pictures_left_out_are_counted_by_folder(tmp_path, caplog):
    put(tmp_path, [*grid(PETS), "cat/@eaDir/0.png", "dog/@eaDir/1.png", "dog/Thumbs/1.png"])
    load(tmp_path, resolution=8, holdout=0)
    assert "left out: 2 in @eaDir, 1 in Thumbs" in caplog.text


@pytest.mark.parametrize("ending", ["jfif", "JPE", "jif", "pbm", "dib"])
def test_other_endings_of_known_formats_are_read(tmp_path, ending):
    form = {"pbm": "PPM", "dib": "DIB"}.get(ending, "JPEG")
    put(tmp_path, grid(PETS))
    put(tmp_path, [f"{name}/x{k}.{ending}" for name in PETS for k in range(3)], form)
    assert len(load(tmp_path, resolution=8, holdout=0).train) == 12


def test_pictures_without_an_ending_are_read(tmp_path):
    put(tmp_path, [f"{name}/{k}" for name in PETS for k in range(3)])
    (tmp_path / "cat/notes").write_text("no picture")
    assert len(load(tmp_path, resolution=8, holdout=0).train) == 6


@pytest.mark.parametrize("name", ["cat/x.heic", "cat/x.jxl", "dog/x.CR2", "cat/0.png.bak", "cat/0.jpg_large"])
def test_what_looks_like_a_picture_and_is_not_read_is_named_or_refused(tmp_path, caplog, name):
    put(tmp_path, [*grid(PETS), name])
    assert len(load(tmp_path, resolution=8, holdout=0).train) == 6
    assert f"passed over 1 files that look like pictures: {name}" in caplog.text
    with pytest.raises(DataError, match=r"1 files of .* look like pictures and are not read"):
        load(tmp_path, resolution=8, holdout=0, strict=True)


def test_pictures_beside_the_classes_are_named(tmp_path, caplog):
    put(tmp_path, [*grid(("train", "val"), PETS), "train/stray.png"])
    load(tmp_path, resolution=8)
    assert "train/stray.png (beside the folders of classes)" in caplog.text


def test_a_class_of_pictures_that_are_not_read_is_refused_not_lost(tmp_path):
    put(tmp_path, [*grid(PETS), "fox/0.heic", "fox/1.heic"])
    with pytest.raises(DataError, match=r"class 'fox' .* holds no image file .*2 files that are not read.*0.heic"):
        load(tmp_path, resolution=8)


def test_a_rare_kind_of_file_is_said(tmp_path, caplog):
    put(tmp_path, grid(PETS, count=6, ending="jpg"), "JPEG")
    put(tmp_path, ["cat/none.gif"], "GIF")
    load(tmp_path, resolution=8, holdout=0)
    assert "1 of 13 pictures end in .gif among .jpg, the first is cat/none.gif: placeholders?" in caplog.text


def test_composed_and_decomposed_names_are_one(tmp_path):
    names = ("café", "Ängström")
    put(tmp_path, grid(("train",), [unicodedata.normalize("NFD", name) for name in names]))
    put(tmp_path, grid(("val",), [unicodedata.normalize("NFC", name) for name in names]))
    data = load(tmp_path, resolution=8)
    assert sorted(data.class_names) == sorted(names)
    assert len(data.test) == 6


@pytest.mark.parametrize("name", ["train\\cat\\0.png", "train/cat\\0.png", "train\\cat/0.png"])
def test_zips_with_backslashes(tmp_path, name):
    members = [m.replace("0.png", f"{k}.png").replace("cat", c) for m in [name] for c in PETS for k in range(3)]
    data = load(_zip(tmp_path / "set.zip", members), resolution=8, holdout=0)
    assert data.class_names == PETS
    assert len(data.train) == 6


def _raw_names(path, names):
    """Write a zip whose member names are these bytes, without the flag for UTF-8."""
    stand_ins = [f"{'Q' * len(folder)}{k}/{i}.png" for k, folder in enumerate(names) for i in range(3)]
    _zip(path, stand_ins)
    data = path.read_bytes()
    for k, folder in enumerate(names):
        data = data.replace(b"Q" * len(folder) + str(k).encode(), folder + str(k).encode())
    path.write_bytes(data)


@pytest.mark.parametrize(("encoding", "warned"), [("utf-8", False), ("cp437", True), ("cp1252", True)])
def test_zips_with_names_in_other_code_pages(tmp_path, caplog, encoding, warned):
    _raw_names(tmp_path / "set.zip", ["café".encode(encoding), b"plain"])
    data = load(tmp_path / "set.zip", resolution=8, holdout=0)
    assert len(data.class_names) == 2
    if encoding != "cp1252":
        assert data.class_names == ("café0", "plain1")
    assert ("unknown code page" in caplog.text) is warned


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_tar_archives(tmp_path, ending):
    path = tmp_path / f"set.{ending}"
    with tarfile.open(path, f"w:{ending.rpartition('.')[2].replace('tar', '').replace('tgz', 'gz')}") as archive:
        for name in [*grid(("set",), ("train", "val"), PETS), "../up/0.png", "set/._x.png"]:
            info, data = tarfile.TarInfo(name), encoded(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    data = load(path, resolution=8)
    assert data.class_names == PETS
    assert (len(data.train), len(data.test)) == (6, 6)
    put(tmp_path / "set", grid(("set",), ("train", "val"), PETS))
    assert (load(tmp_path / "set", resolution=8).train.images == data.train.images).all()


def test_pipes_devices_and_broken_links_are_passed_over(tmp_path, caplog):
    put(tmp_path, grid(PETS))
    os.mkfifo(tmp_path / "cat/pipe.png")
    os.symlink("/dev/zero", tmp_path / "cat/zero.png")
    os.symlink("nowhere", tmp_path / "dog/lost.png")
    assert len(load(tmp_path, resolution=8, holdout=0).train) == 6
    assert "passed over 3 files" in caplog.text
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a device or a pipe"):
        load(tmp_path / "pipe", resolution=8)


def test_a_zip_of_endless_depth_costs_nothing(tmp_path):
    path = _zip(tmp_path / "set.zip", [*grid(PETS), "a/" * 30000 + "0.png"])
    listing = list_files(path)
    assert len(listing.folders) == 2
    assert len(listing.pictures) == 6
    assert "folders deep" in listing.passed[0][1]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE])
def test_errors_of_the_machine_are_no_damaged_images(tmp_path, monkeypatch, code):
    put(tmp_path, grid(PETS))

    def fail(data):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module, "open_image", fail)
    with pytest.raises(DataError, match=f"{os.strerror(code)}, which says nothing about the image"):
        load(tmp_path, resolution=8)


def test_large_files_are_read_one_at_a_time(tmp_path, monkeypatch):
    from ld3m.data import items

    put(tmp_path, grid(PETS))
    inside = []

    class Lock:
        def __enter__(self):
            inside.append(1)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(items, "_LARGE_BYTES", 10)
    monkeypatch.setattr(items, "_one_large", Lock())
    load(tmp_path, resolution=8, holdout=0)
    assert len(inside) == 6
