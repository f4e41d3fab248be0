"""Decoded images kept between commands: made once, by one, for the files as they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.data import cache, load, sources
from ld3m.data import folder as image_folder
from ld3m.data.cache import kept_in
from ld3m.errors import DataError


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((24, 24)).save(path)


@pytest.fixture
def data(tmp_path):
    """Three classes of eight pictures, one of them damaged, and no test split."""
    for k in range(24):
        picture(tmp_path / "data" / "abc"[k % 3] / f"{k}.png", k)
    (tmp_path / "data/b/7.png").write_bytes(b"\x89PNG\r\n")
    return tmp_path / "data"


@pytest.fixture
def opened(monkeypatch):
    """The files whose pictures were opened, by their bytes."""
    seen, open_image = [], image_folder.open_image
    monkeypatch.setattr(image_folder, "open_image", lambda content: (seen.append(content), open_image(content))[1])
    return seen


def same(one, other):
    splits = [(one.train, other.train), (one.test, other.test)]
    return one.fingerprint == other.fingerprint and all(torch.equal(a.images, b.images) for a, b in splits)


def test_a_second_load_reads_no_picture(data, tmp_path, opened, caplog):
    plain = load(data, resolution=8)
    first = load(data, resolution=8, cache=tmp_path / "kept")
    assert len(opened) == 2 * 24
    caplog.clear()
    with caplog.at_level("INFO", "ld3m"):
        again = load(data, resolution=8, cache=tmp_path / "kept")
    assert len(opened) == 2 * 24
    assert same(first, plain)
    assert same(again, plain)
    assert again.class_names == plain.class_names and again.wnids == plain.wnids and again.name == plain.name
    assert "skipped 1 of" in caplog.text  # warnings are said again
    assert str(tmp_path / "kept") in caplog.text


def test_other_ways_of_reading_have_places_of_their_own(data, tmp_path):
    for options in ({}, {"resolution": 16}, {"holdout": 0.25}, {"seed": 1}, {"classes": "a,c"}):
        kept = load(data, **{"resolution": 8, "cache": tmp_path / "kept"} | options)
        plain = load(data, **{"resolution": 8} | options)
        assert same(kept, plain)
    assert len(list((tmp_path / "kept").iterdir())) == 5


def test_a_class_file_is_read_each_time(data, tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    options = {"resolution": 8, "cache": tmp_path / "kept", "classes": str(tmp_path / "classes.txt")}
    assert load(data, **options).class_names == ("a", "b")
    (tmp_path / "classes.txt").write_text("a\nc\n")
    assert load(data, **options).class_names == ("a", "c")


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_data_that_changed_are_decoded_anew(change, data, tmp_path):
    before = load(data, resolution=8, cache=tmp_path / "kept")
    if change == "content":
        picture(data / "a/0.png", 99)
    elif change == "added":
        picture(data / "a/99.png", 99)
    elif change == "removed":
        (data / "a/0.png").unlink()
    else:
        (data / "a/0.png").rename(data / "a/other.png")
    after = load(data, resolution=8, cache=tmp_path / "kept")
    assert same(after, load(data, resolution=8))
    assert change == "renamed" or not same(after, before)
    assert len(list((tmp_path / "kept").iterdir())) == 1  # in place of what was there


def test_what_lies_beside_the_splits_is_no_change(tmp_path, opened):
    for k in range(8):
        picture(tmp_path / "data" / ("train" if k < 4 else "test") / "ab"[k % 2] / f"{k}.png", k)
    load(tmp_path / "data", resolution=8, cache=tmp_path / "kept")
    picture(tmp_path / "data" / "runs" / "one" / "0.png", 1)
    load(tmp_path / "data", resolution=8, cache=tmp_path / "kept")
    assert len(opened) == 8


def test_who_is_interrupted_goes_on(data, tmp_path, monkeypatch, opened):
    monkeypatch.setattr("ld3m.data.items._GROUP", 4)
    plain, open_image = load(data, resolution=8), image_folder.open_image
    opened.clear()

    def interrupted(content):
        if len(opened) >= 10:
            raise KeyboardInterrupt
        return open_image(content)

    monkeypatch.setattr("ld3m.data.items.os.sched_getaffinity", lambda _: {0})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_folder, "open_image", interrupted)
        load(data, resolution=8, cache=tmp_path / "kept")
    [partial] = (tmp_path / "kept").iterdir()
    assert partial.name.endswith(".partial")
    with open(partial / "train.done", "a") as file:
        file.write("[8, {")  # torn
    opened.clear()
    assert same(load(data, resolution=8, cache=tmp_path / "kept"), plain)
    assert len(opened) == 24 - 8
    assert [path.name.endswith(".partial") for path in (tmp_path / "kept").iterdir()] == [False]


def test_what_was_begun_of_other_files_is_not_gone_on_with(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache.Shelf, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        load(data, resolution=8, cache=tmp_path / "kept")
    picture(data / "a/0.png", 99)
    assert same(load(data, resolution=8, cache=tmp_path / "kept"), load(data, resolution=8))


def test_a_damaged_shelf_is_made_anew(data, tmp_path):
    plain = load(data, resolution=8)
    load(data, resolution=8, cache=tmp_path / "kept")
    for name in ("train.u8", "facts.safetensors"):
        [shelf] = (tmp_path / "kept").iterdir()
        (shelf / name).write_bytes((shelf / name).read_bytes()[:-1])
        assert same(load(data, resolution=8, cache=tmp_path / "kept"), plain)


_LOAD = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from ld3m.data import load
data = load(sys.argv[1], resolution=8, cache=sys.argv[2])
print("fingerprint", data.fingerprint)
"""


def test_several_processes_decode_once(data, tmp_path):
    command = [sys.executable, "-c", _LOAD, str(data), str(tmp_path / "kept")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert "".join(said).count("decoding into") == 1
    assert len({text.partition("fingerprint")[2] for text in said}) == 1
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_small_sets_are_kept_on_demand_alone(data, home, monkeypatch):
    load(data, resolution=8)
    assert not home.exists()
    monkeypatch.setattr(cache, "_LARGE_COUNT", 24)
    load(data, resolution=8, cache="off")
    with kept_in("off"):
        load(data, resolution=8)
    assert not home.exists()
    assert cache.describe().startswith("0 data sets, 0.0 GiB, in ")
    load(data, resolution=8)
    assert len(list((home / "ld3m/decoded").iterdir())) == 1
    assert cache.describe() == f"1 data sets, 0.0 GiB, in {home / 'ld3m/decoded'}"


def test_no_room_is_no_end_unless_a_folder_was_named(data, home, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache, "_LARGE_COUNT", 24)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    assert len(load(data, resolution=8).train) == 20
    assert "going on without" in caplog.text
    with pytest.raises(
        DataError, match=r"need 0\.0 GiB in .*kept, where 0\.0 GiB are free; name another folder by --c"
    ):
        load(data, resolution=8, cache=tmp_path / "kept")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be kept in .*--cache off"):
        load(data, resolution=8, cache=tmp_path / "file")


def test_the_pixels_are_shared_and_nobody_may_write_them(data, tmp_path):
    kept = load(data, resolution=8, cache=tmp_path / "kept")
    [shelf] = (tmp_path / "kept").iterdir()
    maps = Path("/proc/self/maps").read_text().splitlines()
    line = next(line for line in maps if str(shelf / "train.u8") in line)
    assert line.split()[1] == "r--s"
    assert kept.train.images.numel() == os.path.getsize(shelf / "train.u8")


def test_what_is_in_memory_is_not_kept(tmp_path):
    pair = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    with kept_in(tmp_path / "kept"):
        load(pair, resolution=8, holdout=0)
        load("builtin", resolution=8)
    assert not (tmp_path / "kept").exists()


def test_errors_of_the_data_stay_what_they_are(data, tmp_path):
    (data / "c").rename(tmp_path / "elsewhere")
    shutil.rmtree(data / "a")
    (data / "a").mkdir()
    with pytest.raises(DataError, match=r"class 'a' in .* holds no image file"):
        load(data, resolution=8, cache=tmp_path / "kept")
    with pytest.raises(DataError, match="there is no data"):
        load(tmp_path / "nothing", resolution=8, cache=tmp_path / "kept")


def test_deep_pictures_are_kept_as_they_are_read(tmp_path, opened):
    for k in range(12):
        path = tmp_path / "deep" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 3000, (8, 8)).astype(np.uint16)).save(path)
    plain = load(tmp_path / "deep", resolution=8)
    assert same(load(tmp_path / "deep", resolution=8, cache=tmp_path / "kept"), plain)
    opened.clear()
    assert same(load(tmp_path / "deep", resolution=8, cache=tmp_path / "kept"), plain)
    assert not opened


def test_a_bar_is_shown_unless_it_is_quiet(data, tmp_path, capsys):
    with kept_in(tmp_path / "quiet", show=False):
        load(data, resolution=8)
    assert "decoding" not in capsys.readouterr().err
    load(data, resolution=8, cache=tmp_path / "kept")
    assert "decoding train: 21 of 21" in capsys.readouterr().err


def test_the_shelf_of_a_source(data, tmp_path):
    assert sources._shelf(str(data), "off", 8, {}) is None
    assert sources._shelf("hf:mnist", tmp_path, 8, {}) is None
    assert sources._shelf(str(data), tmp_path, 8, {}).folder.parent == tmp_path
