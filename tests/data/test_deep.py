"""Pictures of more than 8 bits: the range of the whole set, and the rule that makes bytes of it."""

import numpy as np
import pytest
from PIL import Image

from ld3m.data import load
from ld3m.errors import DataError


def _write(folder, levels, form="png", splits=("",)):
    """Write constant-free 16-bit grey pictures: left half at the first level, right half at the second."""
    for split in splits:
        for k, (low, high) in enumerate(levels):
            path = folder / split / "ab"[k % 2] / f"{k}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), low, np.uint16)
            pixels[:, 4:] = high
            Image.fromarray(pixels).save(path)
    return folder


def _halves(data):
    return [(int(image[0, 0, 0]), int(image[0, 0, -1])) for image in data.train.images]


@pytest.mark.parametrize("form", ["png", "tif"])
@pytest.mark.parametrize(
    ("top", "bits"), [(200, 8), (740, 10), (1023, 10), (1024, 12), (4000, 12), (9000, 14), (16384, 16), (65535, 16)]
)
def test_the_fewest_bits_that_hold_the_set_are_taken_and_said(tmp_path, caplog, form, top, bits):
    data = load(_write(tmp_path, [(0, top // 2), (top // 2, top)], form), resolution=8, holdout=0)
    divisor = 2 ** (bits - 8)
    assert _halves(data) == [(0, top // 2 // divisor), (top // 2 // divisor, top // divisor)]
    assert f"read as {bits} bits" in caplog.text


def test_one_bright_picture_in_either_split_decides_for_all(tmp_path):
    _write(tmp_path, [(0, 500), (0, 900)], splits=("train",))
    _write(tmp_path, [(0, 400), (0, 800)], splits=("test",))
    assert _halves(load(tmp_path, resolution=8)) == [(0, 125), (0, 225)]
    _write(tmp_path, [(0, 300), (0, 4000)], splits=("test",))
    assert _halves(load(tmp_path, resolution=8)) == [(0, 31), (0, 56)]


@pytest.mark.parametrize(
    ("rule", "expected"), [(16, (1, 2)), ("12", (18, 46)), (10, (75, 184)), ("minmax", (0, 255)), ("auto", (75, 184))]
)
def test_a_rule_may_be_named(tmp_path, rule, expected):
    data = load(_write(tmp_path, [(300, 739), (300, 739)]), resolution=8, holdout=0, bit_range=rule)
    assert _halves(data)[0] == expected


def _png16(path, pixels):
    """Write a PNG of 16 bits a channel, which Pillow cannot."""
    import struct
    import zlib

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("channels", [3, 4])
def test_color_of_16_bits_that_uses_12(tmp_path, channels):
    color = [4000, 2000, 400, 65535][:channels]
    for name in ("a/0.png", "b/0.png"):
        _png16(tmp_path / name, np.broadcast_to(np.array(color), (8, 8, channels)))
    data = load(tmp_path, resolution=8, holdout=0)
    assert data.train.images[0, :, 0, 0].tolist() == [250, 125, 25]


def test_floating_point_needs_a_rule(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.linspace(-2, 3, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / name / "0.tif")
    with pytest.raises(DataError, match=r"floating-point pixels, from -2 to 3, .*bit_range='minmax'"):
        load(tmp_path, resolution=8, holdout=0)
    data = load(tmp_path, resolution=8, holdout=0, bit_range="minmax")
    assert (data.train.images[0, 0, 0, 0], data.train.images[0, 0, -1, -1]) == (0, 255)


def test_levels_beyond_16_bits_need_a_rule(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.array([[0, 100000]] * 8, np.int32)).save(tmp_path / name / "0.tif")
    with pytest.raises(DataError, match="use the levels 0 to 100000, which is no range of up to 16 bits"):
        load(tmp_path, resolution=8, holdout=0)


def test_unknown_rules_and_rules_for_what_is_loaded_are_refused(tmp_path):
    data = load(_write(tmp_path, [(0, 9), (0, 9)]), resolution=8, holdout=0)
    with pytest.raises(DataError, match="bit_range is one of auto, 8, 10, 12, 14, 16, minmax, got '11'"):
        load(tmp_path, resolution=8, bit_range="11")
    with pytest.raises(DataError, match="bit_range=12 would have no effect"):
        load(data, resolution=8, bit_range=12)


def test_pictures_of_8_bits_are_as_they_were(tmp_path, caplog):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / name / "0.png")
    assert load(tmp_path, resolution=8, holdout=0).train.images.unique().tolist() == [9]
    assert "bits" not in caplog.text
