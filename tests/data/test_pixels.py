"""Decoding, conversion to RGB, resampling, and where the bytes are kept."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ld3m.data import pixels
from ld3m.data.pixels import allocate, fit, open_image, quantise
from ld3m.errors import DataError


def _reopen(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return open_image(buffer.getvalue())


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 50), st.integers(1, 50), st.integers(1, 24), st.sampled_from(["RGB", "L", "P", "RGBA", "LA", "1"])
)
def test_every_size_and_mode_fits_and_a_uniform_picture_keeps_its_colour(width, height, resolution, mode):
    image = Image.new("RGB", (width, height), "white").convert(mode)
    result = fit(image, resolution)
    assert result.shape == (3, resolution, resolution)
    assert result.dtype == np.uint8
    assert (result == 255).all()


def test_the_centred_square_is_what_is_kept():
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, :8], stripes[:, 8:16], stripes[:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(stripes)
    resized = image.resize((12, 4), Image.Resampling.LANCZOS).crop((4, 0, 8, 4))
    assert (fit(image, 4) == np.asarray(resized).transpose(2, 0, 1)).all()
    assert (fit(image, 4).argmax(0) == 1).all()


def test_shrinking_antialiases():
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    result = fit(Image.fromarray(checkerboard), 16)
    assert np.abs(result.astype(int) - 127).max() <= 2


def test_a_picture_of_the_right_size_is_not_changed():
    array = np.random.default_rng(0).integers(0, 256, (3, 9, 9), np.uint8)
    assert (fit(Image.fromarray(array.transpose(1, 2, 0)), 9) == array).all()
    assert (fit(array, 9) == array).all()


def test_transparent_pixels_are_composited_over_white():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    result = fit(image, 4)
    assert result[:, 0, 0].tolist() == [10, 20, 30]
    assert result[:, 1, 1].tolist() == [255, 255, 255]
    half = fit(Image.new("LA", (4, 4), (0, 128)), 4)
    assert half[:, 0, 0].tolist() == [127, 127, 127]


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((2, 2), 1)
    result = fit(_reopen(image, "PNG", transparency=0), 4)
    assert result[:, 0, 0].tolist() == [255, 255, 255]
    assert result[:, 2, 2].tolist() == [0, 255, 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_high_byte_of_16_bits_is_taken(form):
    values = np.array([[0, 255, 256, 65535]] * 4, np.uint16)
    image = _reopen(Image.fromarray(values), form)
    assert image.mode.startswith("I")
    assert fit(image, 4)[:, 0].tolist() == [[0, 0, 1, 255]] * 3


def test_floating_point_files_are_refused():
    with pytest.raises(ValueError, match="floating-point pixels"):
        fit(_reopen(Image.new("F", (4, 4), 0.5), "TIFF"), 4)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise: the upper half comes to the right
    result = fit(_reopen(image, "PNG", exif=exif), 16)
    assert (result[:, :, 8:] == 255).all()
    assert (result[:, :, :8] == 0).all()


@pytest.mark.parametrize(("resolution", "decoded"), [(16, 64), (100, 256), (200, 512)])
def test_a_large_jpeg_looks_the_same_though_decoded_smaller(resolution, decoded):
    """Waves of three pixels of the result: decoded at less than twice the resolution, they would change."""
    wave = 128 + 100 * np.sin(2 * np.pi * np.arange(512) * resolution / (3 * 512))
    grey = np.add.outer(wave, wave) / 2
    image = Image.fromarray(np.stack([grey, grey.T, 255 - grey], -1).astype(np.uint8))
    opened = _reopen(image, "JPEG", quality=95, subsampling=0)
    small = fit(opened, resolution).astype(int)
    assert opened.size == (decoded, decoded)
    assert np.abs(small - fit(image, resolution)).max() <= 4


@pytest.mark.parametrize("as_array", [True, False])
def test_mnist_like_pictures_are_padded_at_32_and_resampled_elsewhere(as_array):
    grey = np.full((28, 28), 200, np.uint8)
    picture = grey[None] if as_array else Image.fromarray(grey)
    padded = fit(picture, 32)
    assert (padded[:, 2:30, 2:30] == 200).all()
    assert padded.sum(dtype=int) == 200 * 28 * 28 * len(padded)
    assert (fit(picture, 33) == 200).all()
    assert (fit(Image.fromarray(grey).convert("RGB"), 32) == 200).all()


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(0, 255))
def test_floats_are_rounded_to_the_nearest_level(dtype, level):
    value = torch.full((3, 2, 2), level / 255, dtype=dtype)
    assert (quantise(value, "x") == round(value[0, 0, 0].item() * 255)).all()


def test_tensors_have_channels_first_and_arrays_last():
    tensor = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4)
    assert (quantise(tensor, "x") == tensor.numpy()).all()
    assert (quantise(tensor.permute(1, 2, 0).numpy(), "x") == tensor.numpy()).all()
    assert quantise(tensor[0], "x").shape == (1, 2, 4)
    assert quantise(tensor[0].numpy(), "x").shape == (1, 2, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((3, 2, 2), float("nan")), "images.5. holds NaN or Inf"),
        (torch.full((3, 2, 2), -float("inf")), "images.5. holds NaN or Inf"),
        (torch.full((3, 2, 2), 1.5), r"images.5. has values from 1.5 to 1.5; expected floating point in \[0, 1\]"),
        (torch.full((3, 2, 2), -0.5), "images.5. has values from -0.5"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "images.5. has dtype int64; expected uint8"),
        (torch.zeros(4, 2, 2), r"images.5. has shape \(4, 2, 2\); expected 1 or 3 channels"),
        (torch.zeros(3, 0, 2), r"images.5. has shape \(3, 0, 2\)"),
        (torch.zeros(2), r"images.5. has shape \(2,\)"),
        ([[1, 2]], "images.5. is a list; expected a Pillow image"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(value, message):
    with pytest.raises(DataError, match=message):
        quantise(value, "images[5]")


def test_formats_that_start_other_programs_are_not_opened():
    with pytest.raises(Image.UnidentifiedImageError):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


def test_large_sets_are_mapped_into_the_cache_folder_and_leave_no_file(tmp_path, monkeypatch):
    assert type(allocate(2, 4, tmp_path)) is np.ndarray
    monkeypatch.setattr(pixels, "MEMMAP_BYTES", 95)
    storage = allocate(2, 4, tmp_path / "cache")
    assert isinstance(storage, np.memmap)
    assert storage.shape == (2, 3, 4, 4)
    storage[:] = 7
    assert storage.sum() == 7 * 96
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_room_and_no_folder_for_the_cache_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MEMMAP_BYTES", 0)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*name another folder in cache="):
        allocate(2, 4, tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(DataError, match=r"need 0.0 GiB in .* 0.0 GiB are free; name a folder with more room in cache="):
        allocate(2, 4, tmp_path)


def test_the_room_that_is_asked_for_is_that_of_the_images(tmp_path, monkeypatch):
    """2 images of 3 × 4 × 4 bytes: 96."""
    for limit, kind in ((96, np.ndarray), (95, np.memmap)):
        monkeypatch.setattr(pixels, "MEMMAP_BYTES", limit)
        assert type(allocate(2, 4, tmp_path / "several" / "folders" / str(limit))) is kind
    for free, is_enough in ((96, True), (95, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with nullcontext() if is_enough else pytest.raises(DataError, match="are free"):
            assert allocate(2, 4, tmp_path).nbytes == 96


_MAPPED = """
import resource, sys
from ld3m.data import pixels
pixels.MEMMAP_BYTES = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
assert pixels.allocate(1, 512, sys.argv[1]).sum() >= 0
try:
    pixels.allocate(2, 512, sys.argv[1])[:] = 1
except pixels.DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_map_that_there_is_no_room_for_is_an_error_and_no_signal(tmp_path):
    """A sparse file would end in SIGBUS when the pages are written, and the limit of a file stands for a full disk."""
    process = subprocess.run([sys.executable, "-c", _MAPPED, tmp_path], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert f"the images cannot be kept in {tmp_path} (" in process.stdout and "name another folder" in process.stdout


def test_the_map_is_reserved_before_it_is_filled(tmp_path, monkeypatch):
    reserved, memmap = [], np.memmap

    def watched(file, *arguments, **options):
        reserved.append(os.fstat(file.fileno()).st_blocks * 512)
        return memmap(file, *arguments, **options)

    monkeypatch.setattr(pixels, "MEMMAP_BYTES", 0)
    monkeypatch.setattr(np, "memmap", watched)
    allocate(5, 256, tmp_path)
    assert reserved[0] >= 5 * 3 * 256 * 256


def test_without_a_cache_the_folder_for_temporary_files_is_named_by_its_variable(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MEMMAP_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", None)  # what the module remembers of the variable
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert isinstance(allocate(2, 4, None), np.memmap)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    room = rf"in {tmp_path}, where 0.0 GiB are free; name a folder with more room in the environment variable TMPDIR"
    with pytest.raises(DataError, match=room):
        allocate(2, 4, None)


def test_pictures_too_large_to_decode_are_refused_by_their_size(monkeypatch):
    monkeypatch.setattr(pixels, "_MOST_PIXELS", 99)
    assert fit(Image.new("RGB", (9, 11)), 4).shape == (3, 4, 4)
    with pytest.raises(ValueError, match="the picture has 10 × 10 pixels, more than 99 at once"):
        fit(Image.new("RGB", (10, 10)), 4)


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    inside = []

    class Lock:
        def __enter__(self):
            inside.append(1)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(pixels, "_LARGE_PIXELS", 99)
    monkeypatch.setattr(pixels, "_one_large", Lock())
    for side in (9, 10):
        fit(Image.new("RGB", (side, side)), 4)
    assert len(inside) == 1
