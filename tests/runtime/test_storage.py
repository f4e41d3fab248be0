"""Files that are whole or not there."""

import errno
import json
import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.errors import CheckpointError, Ld3mError
from ld3m.runtime import storage

ERRORS = {
    errno.ENOSPC: "the disk is full: free some space, then run again (--resume goes on with a run)",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EROFS: "that file system is read-only: choose another folder",
    errno.EIO: "the disk could not take it: look at the disk, or choose another folder",
    errno.EFBIG: "the file would be larger than allowed there",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EBUSY: "choose another folder",
}


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def failing(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_text_replaces_text_and_makes_folders(old, tmp_path):
    storage.write_text(old, "nëw\n")
    assert old.read_bytes() == "nëw\n".encode()
    storage.write_json(tmp_path / "a" / "b.json", {"x": [1, None]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file.txt"]


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(call, number, old, monkeypatch):
    monkeypatch.setattr(storage.os, call, failing(number))
    with pytest.raises(Ld3mError, match=f"could not write {old}: {os.strerror(number)}; {re.escape(ERRORS[number])}"):
        storage.write_text(old, "new")
    assert old.read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_no_system_error_passes_and_leaves_the_old_file(error, old):
    with pytest.raises(error), storage.replacing(old) as temporary:
        temporary.write_text("half")
        raise error
    assert old.read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_the_content_is_synced_before_it_takes_the_name(old, monkeypatch):
    seen, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(storage.os, "fsync", lambda fd: (seen.append(("sync", old.read_text())), fsync(fd)))
    monkeypatch.setattr(storage.os, "replace", lambda a, b: (seen.append(("rename", a.read_text())), replace(a, b)))
    storage.write_text(old, "new")
    assert seen == [("sync", "old"), ("rename", "new")]


def test_a_parent_that_is_a_file_is_an_error_that_names_the_path(old):
    with pytest.raises(Ld3mError, match=rf"could not write {old / 'x'}: .+; choose another folder"):
        storage.write_text(old / "x", "new")
    assert old.read_text() == "old"


@pytest.mark.parametrize("write", [lambda p: storage.write_text(p, ""), lambda p: storage.save_tensors(p, {})])
def test_permissions_follow_the_umask(write, tmp_path):
    os.umask(mask := os.umask(0))
    write(tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~mask


def test_temporary_names_are_known(tmp_path):
    with storage.replacing(tmp_path / "f.txt") as temporary:
        temporary.write_text("")
        assert temporary.parent == tmp_path
        assert storage.is_temporary(temporary)
    assert not storage.is_temporary(tmp_path / "f.txt")
    assert not storage.is_temporary(tmp_path / ".hidden")


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda name: name != "__metadata__")


@given(
    st.dictionaries(NAMES, st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=4),
    st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=9), max_size=4),
)
def test_tensors_and_metadata_come_back_and_the_bytes_are_the_same(tmp_path_factory, shapes, metadata):
    folder = tmp_path_factory.mktemp("tensors")
    kinds = [torch.float32, torch.float16, torch.int64]
    tensors = {name: torch.randn(*shape, 2).to(kinds[k % 3]).mT for k, (name, shape) in enumerate(shapes.items())}
    for path, about in ((folder / "a", metadata), (folder / "b", dict(reversed(metadata.items())))):
        storage.save_tensors(path, tensors, about)
    loaded, about = storage.load_tensors(folder / "a")
    assert about == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, loaded[name])
        assert tensor.dtype == loaded[name].dtype
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_a_folder_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch):
    storage.require_writable(tmp_path / "to" / "be" / "made", "")
    monkeypatch.setattr(storage.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(Ld3mError, match=r"could not write into .+made: no permission; keep it in memory"):
        storage.require_writable(tmp_path / "to" / "be" / "made", "keep it in memory")


def test_a_parameter_is_stored_without_its_graph(tmp_path):
    weight = torch.nn.Parameter(torch.arange(3.0))
    storage.save_tensors(tmp_path / "w", {"w": weight})
    assert torch.equal(storage.load_tensors(tmp_path / "w")[0]["w"], torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_under_safetensors_is_clear(number, tmp_path, monkeypatch):
    """Its writer wraps the system's error in a text of its own."""
    path = tmp_path / "t.safetensors"
    storage.save_tensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def fail(_tensors, filename, _about):
        filename.write_bytes(b"half")
        raise RuntimeError(f"Error while serializing: I/O error: something (os error {number})")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(Ld3mError, match=re.escape(f"could not write {path}: {os.strerror(number)}; {ERRORS[number]}")):
        storage.save_tensors(path, {"a": torch.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_fault_of_ours_is_not_taken_for_the_disks(tmp_path):
    with pytest.raises(AttributeError):
        storage.save_tensors(tmp_path / "t", {"a": "no tensor"})
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match=f"{path} is not there; check the path"):
        storage.load_tensors(path)
    storage.save_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{path} is not a whole safetensors file"):
        storage.load_tensors(path)


def test_metadata_of_a_foreign_file_is_read_as_it_is(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "t", {"format": "pt"})
    assert storage.load_tensors(tmp_path / "t")[1] == {"format": "pt"}
    save_file({"a": torch.zeros(1)}, tmp_path / "t")
    assert storage.load_tensors(tmp_path / "t")[1] == {}


def test_what_a_killed_process_left_goes_when_it_is_old_and_what_another_writes_stays(tmp_path):
    old, young, foreign = (tmp_path / name for name in (".a.json.1.tmp", ".a.json.2.tmp", ".b.json.1.tmp"))
    for path in (old, young, foreign):
        path.write_text("half")
    for path in (old, foreign):
        os.utime(path, (0, 0))

    storage.write_json(tmp_path / "a.json", [])

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.json", young.name, foreign.name])


def test_a_file_where_a_folder_should_be_is_seen_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Ld3mError, match=r"could not write into .*file/in: .*file is a file; choose another"):
        storage.require_writable(tmp_path / "file/in", "choose another")


def test_nothing_of_safetensors_own_is_left_beside_the_file(tmp_path, monkeypatch):
    """It writes by a name of its own, here before it is killed: within what is swept."""

    def killed(_tensors, filename, _about):
        (filename.parent / ".tmpaB3dE6").write_bytes(b"half")
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("safetensors.torch.save_file", killed)
        patch.setattr(storage.shutil, "rmtree", lambda *_args, **_more: None)
        storage.save_tensors(tmp_path / "t", {"a": torch.zeros(1)})
    (left,) = tmp_path.iterdir()
    assert storage.is_temporary(left)
    storage.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_writes_of_one_file_have_names_of_their_own(tmp_path):
    with storage.replacing(tmp_path / "a") as one, storage.replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_owned_goes_again_where_nothing_was_written(tmp_path):
    with storage.owning(tmp_path / "new"):
        assert (tmp_path / "new" / ".ld3m.lock").is_file()
    assert not (tmp_path / "new").exists()
    with storage.owning(tmp_path / "new"):
        storage.write_text(tmp_path / "new" / "a" / "b", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_needs_no_owner(number, tmp_path, monkeypatch):
    monkeypatch.setattr("ld3m.runtime.locks.os.open", failing(number))
    with storage.owning(tmp_path):
        assert not any(tmp_path.iterdir())


def test_the_folder_of_an_owned_file_is_not_made_anew(tmp_path):
    file = tmp_path / "teachers" / "a.safetensors"
    with (
        pytest.raises(Ld3mError, match=rf"{file} was removed while it was written"),
        storage.owning(file, is_file=True),
    ):
        assert (file.parent / ".a.safetensors.ld3m.lock").is_file()
        file.parent.joinpath(".a.safetensors.ld3m.lock").unlink()
        file.parent.rmdir()
        storage.save_tensors(file, {"a": torch.zeros(1)})
    assert not file.parent.exists()
