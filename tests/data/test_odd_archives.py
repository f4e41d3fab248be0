"""Archives that are damaged, encrypted, of a later version or another program's: one clear line each."""

import struct
import zipfile
from io import BytesIO

import numpy as np
import pytest

from ld3m.data import load
from ld3m.errors import DataError
from tests.data.pictures import encoded, grid

NAMES = grid(("train", "test"), ("cat", "dog"))
ENTRY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def _zip(extra=(), method=zipfile.ZIP_DEFLATED):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in NAMES:
            archive.writestr(name, encoded(name))
        for name, text in extra:
            archive.writestr(name, text)
    return bytearray(buffer.getvalue())


def _entries(data, sign=ENTRY):
    at = data.find(sign)
    while at >= 0:
        yield at
        at = data.find(sign, at + 4)


def _later_version(data, number=99):
    for at in _entries(data):
        data[at + 6] = number  # "version needed to extract"


def _flag_utf8(data, name=b"cat"):
    for at in _entries(data):
        data[at + 9] |= 8  # names are UTF-8, it says
        data[at + 46 : at + 46 + 60] = data[at + 46 : at + 46 + 60].replace(name, b"c\xe4t")


def _multi_disk(data):
    at = data.rfind(b"PK\x05\x06")
    data[at + 4 : at + 8] = struct.pack("<HH", 3, 3)


def _offset_beyond(data):
    at = data.rfind(b"PK\x05\x06")
    data[at + 16 : at + 20] = struct.pack("<I", 2**32 - 2)


ODD = {
    "a later version": (lambda data: _later_version(data), "zip file version 9.9"),
    "the latest that fits": (lambda data: _later_version(data, 255), "zip file version 25.5"),
    "names that are no UTF-8": (lambda data: _flag_utf8(data), "codec can't decode byte"),
    "other names that are no UTF-8": (lambda data: _flag_utf8(data, b"dog"), "codec can't decode byte"),
    "several disks": (_multi_disk, "zip"),
    "an offset beyond the end": (_offset_beyond, "lies elsewhere than it says"),
}


@pytest.mark.parametrize(("spoil", "said"), ODD.values(), ids=ODD)
def test_zips_that_cannot_be_listed(spoil, said, tmp_path):
    data = _zip()
    spoil(data)
    (tmp_path / "set.zip").write_bytes(data)
    try:
        found = load(tmp_path / "set.zip", resolution=8)
    except DataError as error:
        assert "set.zip" in str(error) and len(str(error)) < 400
        assert any(word in str(error) for word in said.split("|"))
    else:  # this Python reads it all the same
        assert spoil is _multi_disk and len(found.train) == 6


def _encrypted(data, at):
    data[at + 8] |= 1


def _method(number):
    def spoil(data, at):
        data[at + 10 : at + 12] = struct.pack("<H", number)

    return spoil


def _checksum(data, at):
    data[at + 16] ^= 255


MEMBERS = {"encrypted": _encrypted, "implode": _method(6), "zstd": _method(93), "damaged": _checksum}


@pytest.mark.parametrize("spoil", MEMBERS.values(), ids=MEMBERS)
def test_members_that_cannot_be_read_are_damaged_images(spoil, tmp_path, caplog):
    data = _zip()
    spoil(data, next(_entries(data)))
    (tmp_path / "set.zip").write_bytes(data)
    assert len(load(tmp_path / "set.zip", resolution=8).train) == 5
    assert "skipped 1 of 6 train images that cannot be read, the first is train/cat/0.png" in caplog.text


@pytest.mark.parametrize("spoil", MEMBERS.values(), ids=MEMBERS)
def test_a_table_that_cannot_be_read_is_named(spoil, tmp_path):
    data = _zip([("wnids.txt", "cat\ndog\n")])
    spoil(data, list(_entries(data))[-1])
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"wnids\.txt cannot be read .*repair or remove it"):
        load(tmp_path / "set.zip", resolution=8)


@pytest.mark.parametrize("spoil", [_later_version, lambda data: _method(93)(data, next(_entries(data)))])
def test_npz_are_zips_too(spoil, tmp_path):
    buffer = BytesIO()
    np.savez_compressed(buffer, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    data = bytearray(buffer.getvalue())
    spoil(data)
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"set\.npz cannot be read as arrays"):
        load(tmp_path / "set.npz", resolution=8)


@pytest.mark.parametrize(
    "metadata", [b"{", b'{"info": {"features": 3}}', b'{"info": {"features": {"image": {"dtype": "int44"}}}}']
)
def test_parquet_whose_metadata_is_damaged(metadata, tmp_path):
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [encoded(k) for k in range(4)], "label": [0, 1, 0, 1]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet \(.*fetch it again"):
        load(tmp_path / "a.parquet", resolution=8)
