"""How results, reports and priors show themselves: in a line, and in a notebook."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import ld3m
from ld3m.runs import display, pictures
from ld3m.runs.report import Report
from ld3m.runs.result import Result

ROWS = [
    {"set": name, "network": "VGG11", "accuracies": [40.0, 50.0], "mean": 45.0, "std": 7.1}
    for name in ("a<b", "random")
]
DATA = {"classes": 3, "images_per_class": 1, "test_images": 12, "resolution": 16}


@pytest.fixture
def result():
    return shown(5, 1)


def shown(num_classes, ipc, side=16, names=None):
    images = torch.linspace(0, 1, num_classes * ipc)[:, None, None, None].expand(-1, 3, side, side)
    labels = torch.arange(num_classes).repeat_interleave(ipc)
    names = names or tuple(f"class {k}" for k in range(num_classes))
    return Result(
        images, labels, names, {}, {"algorithm": "dm", "space": "pixel"}, torch.full((3,), 0.5), torch.full((3,), 0.25)
    )


def test_a_result_is_a_line(result, tmp_path):
    assert repr(result) == "Result(5 images of 5 classes, 16 × 16 px, dm-pixel)"
    assert len(result) == 5
    result.save(tmp_path / "run")
    assert repr(ld3m.load(tmp_path / "run")) == f"{repr(result)[:-1]}, {tmp_path / 'run'})"


def test_a_notebook_shows_the_grid(result):
    page = result._repr_html_()
    assert page.startswith("<p>Result(5 images")
    (content,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(content))).tobytes() == result.grid().tobytes()
    assert len(page) < 20_000


@pytest.mark.parametrize(("count", "columns", "rows"), [(5, 5, 1), (10, 10, 1), (13, 10, 2)])
def test_single_images_stand_side_by_side_over_their_names(count, columns, rows):
    grid = shown(count, 1, 64).grid()
    assert grid.size == (columns * 66 + 2, rows * (68 + 16))
    pixels = np.asarray(grid).astype(int)
    for k in range(count):
        row, column = divmod(k, columns)
        top, left = row * 84 + 2, column * 66 + 2
        assert (pixels[top : top + 64, left : left + 64] == round(255 * k / (count - 1))).all()
        assert (pixels[top + 66 : top + 80, left : left + 64] < 128).any()  # the name


def test_several_images_are_a_row_behind_the_name():
    result = shown(3, 4, 64)
    pixels = np.asarray(result.grid()).astype(int)
    left = pixels.shape[1] - (4 * 66 + 2)
    assert left > 30 and len(pixels) == 3 * 68
    for label in range(3):
        for k in range(4):
            tile = pixels[68 * label + 2 : 68 * label + 66, left + 2 + 66 * k : left + 66 + 66 * k]
            assert (tile == round(255 * (4 * label + k) / 11)).all()
        assert (pixels[68 * label : 68 * label + 68, :left] < 128).any()


def test_long_names_are_cut():
    name = "coffee mug, with a handle and a very long description behind it " * 4
    assert shown(2, 1, 64, (name, "b")).grid().width == 2 * 66 + 2
    assert shown(2, 2, 64, (name, "b")).grid().width == display._NAME_WIDTH + 2 * 66 + 2
    sheets = [pictures.png_bytes(shown(2, 1, 64, (text, "b")).grid()) for text in (name, name + "more", "other")]
    assert sheets[0] == sheets[1] != sheets[2]


def test_a_result_is_a_torch_dataset_of_normalized_images(result):
    images, labels = next(iter(DataLoader(result.dataset(), batch_size=5)))
    torch.testing.assert_close(images, (result.images - 0.5) / 0.25)
    assert labels.tolist() == [0, 1, 2, 3, 4] and labels.dtype == torch.int64


def test_a_report_is_a_line_and_a_table():
    report = Report(ROWS, {"name": "quick"}, None, {"data": DATA})
    assert repr(report) == "Report(quick: a<b 45.0 %, random 45.0 %)"
    page = report._repr_html_()
    assert "<table" in page and "a&lt;b" in page and "a<b" not in page


def test_a_prior_says_what_it_is():
    prior = ld3m.load_prior("builtin")
    line = repr(prior)
    assert re.fullmatch(
        r"Prior\('fashion-mnist', 10 classes, 32 px, latents 3 × 8 × 8, \d\.\d M parameters, float32 on cpu\)", line
    )
    assert "Ankle boot" in prior._repr_html_() and line.replace("'", "&#x27;") in prior._repr_html_()
    assert "unconditional" in repr(ld3m.load_prior("random:ffhq256", device="meta"))
