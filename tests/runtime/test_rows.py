"""Safetensors files filled row by row."""

import pytest
import torch
from safetensors.torch import load_file

from ld3m.errors import CheckpointError, Ld3mError
from ld3m.runtime.rows import RowFile
from ld3m.runtime.storage import load_tensors

SHAPES = {
    "images": (torch.float32, (6, 2, 3)),
    "labels": (torch.int64, (6,)),
    "mean": (torch.float32, (3,)),
}
ABOUT = {"class_names": '["é", "b"]', "config": "{}"}


@pytest.fixture
def tensors():
    draw = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(6, 2, 3, generator=draw),
        "labels": torch.arange(6),
        "mean": torch.randn(3, generator=draw),
    }


def fill(path, tensors, order=(0, 2, 4)):
    rows = RowFile(path, SHAPES, ABOUT)
    rows.write("labels", tensors["labels"])
    rows.write("mean", tensors["mean"])
    for first in order:
        rows.write("images", tensors["images"][first : first + 2], first)
    return rows


def test_reads_back_as_safetensors(tensors, tmp_path):
    path = tmp_path / "new" / "set.safetensors"
    rows = fill(path, tensors)
    assert rows.is_new and not path.exists()
    rows.finish()
    loaded, about = load_tensors(path)
    assert about == ABOUT
    assert loaded.keys() == tensors.keys() == load_file(path).keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_order_of_writing_leaves_no_trace(tensors, tmp_path):
    for name, order in (("a", (0, 2, 4)), ("b", (4, 0, 0, 2))):
        fill(tmp_path / name, tensors, order).finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_goes_on_with_what_is_there(tensors, tmp_path):
    fill(tmp_path / "a", tensors).finish()
    fill(tmp_path / "b", tensors, order=(0, 2))
    rows = RowFile(tmp_path / "b", SHAPES, ABOUT)
    assert not rows.is_new
    rows.write("images", tensors["images"][4:], 4)
    rows.finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("left", [b"", b"\x10\x00", b"x" * 5000])
def test_what_is_not_its_own_counts_as_new(left, tensors, tmp_path):
    (tmp_path / "b.partial").write_bytes(left)
    assert RowFile(tmp_path / "b", SHAPES, ABOUT).is_new
    fill(tmp_path / "b", tensors).finish()
    fill(tmp_path / "a", tensors).finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_header_counts_as_new(tensors, tmp_path):
    fill(tmp_path / "b", tensors)
    assert RowFile(tmp_path / "b", SHAPES, ABOUT | {"config": "[]"}).is_new


def test_names_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Ld3mError, match=r"could not write .*file/set"):
        RowFile(tmp_path / "file" / "set", SHAPES, ABOUT)


def test_a_full_file_carries_its_digest(tensors, tmp_path):
    path = tmp_path / "set"
    fill(path, tensors).finish()
    whole = path.read_bytes()
    for at in (len(whole) - 1, len(whole) - 60, len(whole) - 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged|not a whole safetensors file"):
            load_tensors(path)


def test_a_full_file_can_be_reopened(tensors, tmp_path):
    path = tmp_path / "set"
    rows = fill(path, tensors)
    assert torch.equal(rows.read("images", 2, 3), tensors["images"][2:5])
    assert torch.equal(rows.read("labels"), tensors["labels"])
    parts = {rows.digest(first, 2, "images") for first in (0, 2, 4)}
    rows.finish()
    whole = path.read_bytes()
    RowFile.reopen(path)
    again = RowFile(path, SHAPES, ABOUT)
    assert not again.is_new
    assert {again.digest(first, 2, "images") for first in (0, 2, 4)} == parts and len(parts) == 3
    again.finish()
    assert path.read_bytes() == whole


def test_a_class_may_be_named_as_the_digest_before_it_is_known(tensors, tmp_path):
    rows = RowFile(tmp_path / "set", SHAPES, {"class_names": '["----------------"]', "config": "{}"})
    for name, tensor in tensors.items():
        rows.write(name, tensor)
    rows.finish()
    assert load_tensors(tmp_path / "set")[1]["class_names"] == '["----------------"]'
