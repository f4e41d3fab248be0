"""Safetensors files filled row by row."""

import pytest
import torch
from safetensors.torch import load_file

from ld3m.errors import Ld3mError
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
