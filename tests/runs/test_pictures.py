"""Pictures: grids, charts and PNG files."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.runs import pictures


def pixels(picture):
    return np.asarray(picture)


def test_an_image_is_rounded_and_clamped_to_8_bits():
    image = torch.tensor([-1.0, 0.0, 0.5 / 255, 0.6 / 255, 254.4 / 255, 1.0, 2.0]).expand(3, 1, 7).clone()
    image[1] = 1.0
    picture = pictures.to_pillow(image)
    assert picture.mode == "RGB"
    assert pixels(picture)[0, :, 0].tolist() == [0, 0, 0, 1, 254, 255, 255]
    assert (pixels(picture)[..., 1] == 255).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_image_of_another_dtype_or_with_a_graph_is_taken(dtype):
    image = torch.full((3, 2, 2), 1.0, dtype=dtype, requires_grad=True)
    assert (pixels(pictures.to_pillow(image)) == 255).all()


def test_a_grid_has_images_row_by_row_with_gaps():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 3) / 5
    sheet = pixels(pictures.grid(images, columns=3, min_side=6, gap=1))  # each pixel becomes 2 x 2
    assert sheet.shape == (2 * (4 + 1) + 1, 3 * (6 + 1) + 1, 3)
    for k in range(5):
        row, column = divmod(k, 3)
        tile = sheet[1 + 5 * row : 5 + 5 * row, 1 + 7 * column : 7 + 7 * column]
        assert (tile == round(51 * k)).all()
    assert (sheet[::5] == 255).all()  # gaps
    assert (sheet[6:, 15:] == 255).all()  # no sixth image


def test_large_images_of_a_grid_keep_their_pixels():
    image = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    sheet = pictures.grid(image, columns=1, gap=0)
    assert sheet.tobytes() == pictures.to_pillow(image[0]).tobytes()


def ink(chart, colour):
    """Return the (x, y) of the pixels of a colour, left of the legend."""
    rows, columns = np.nonzero((pixels(chart) == colour).all(-1))
    return [(int(x), int(y)) for x, y in zip(columns, rows, strict=True) if x < 470]


BLUE, ORANGE = (31, 119, 180), (214, 90, 20)


def test_a_rising_series_goes_up_from_the_lower_left():
    chart = pictures.line_chart({"a": [(0, 1.0), (1, 2.0), (2, 3.0)]}, "t")
    assert chart.size == (640, 360)
    points = sorted(ink(chart, BLUE))
    (left, low), (right, high) = points[0], points[-1]
    assert right - left > 350
    assert low - high > 200


def test_a_logarithmic_axis_makes_powers_a_line():
    chart = pictures.line_chart({"a": [(k, 10.0**k) for k in range(5)]}, "t", log=True)
    points = np.array(ink(chart, BLUE))
    slope, intercept = np.polyfit(points[:, 0], points[:, 1], 1)
    assert slope < -0.3
    assert np.abs(slope * points[:, 0] + intercept - points[:, 1]).max() < 4


def test_what_cannot_be_drawn_is_left_out():
    points = [(0, 1.0), (1, 2.0)]
    holes = [(0.5, math.nan), (0.6, math.inf), (0.7, -math.inf)]
    whole, holed = (pictures.line_chart({"a": p}, "t") for p in (points, points[:1] + holes + points[1:]))
    assert whole.tobytes() == holed.tobytes()
    logs = [pictures.line_chart({"a": p}, "t", log=True) for p in (points, [*points, (3, 0.0), (4, -1.0)])]
    assert logs[0].tobytes() == logs[1].tobytes()


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)]}])
def test_a_chart_of_nothing_says_so(series):
    charts = [pictures.line_chart(series, title).tobytes() for title in ("t", "t", "other")]
    assert charts[0] == charts[1] != charts[2]
    assert not ink(pictures.line_chart(series, "t"), BLUE)


def test_a_single_point_is_visible():
    assert ink(pictures.line_chart({"a": [(0, 1.0)]}, "t"), BLUE)


def test_each_series_has_a_colour_and_empty_ones_are_left_out():
    chart = pictures.line_chart({"a": [(0, 1.0), (1, 1.0)], "b": [(0, 2.0), (1, 3.0)]}, "t")
    assert ink(chart, BLUE)
    assert ink(chart, ORANGE)


def test_stacked_pictures_lie_below_one_another():
    wide, tall = Image.new("RGB", (5, 2), "red"), Image.new("RGB", (3, 4), "blue")
    sheet = pixels(pictures.stack([wide, tall]))
    assert sheet.shape == (6, 5, 3)
    assert (sheet[:2] == (255, 0, 0)).all()
    assert (sheet[2:, :3] == (0, 0, 255)).all()
    assert (sheet[2:, 3:] == 255).all()


def test_png_keeps_every_pixel(tmp_path):
    picture = pictures.to_pillow(torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)))
    pictures.save_png(tmp_path / "a" / "b.png", picture)
    content = (tmp_path / "a" / "b.png").read_bytes()
    assert content == pictures.png_bytes(picture)
    assert Image.open(io.BytesIO(content)).tobytes() == picture.tobytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


@pytest.mark.parametrize(
    ("num_classes", "per_class", "side", "shown"),
    [
        (10, 1, 256, (10, 1, 256)),
        (10, 10, 32, (10, 10, 32)),
        (10, 10, 128, (10, 6, 128)),
        (1000, 50, 32, (100, 10, 32)),
        (1000, 50, 64, (100, 10, 32)),
        (1000, 50, 256, (100, 5, 32)),
        (1, 1, 2048, (1, 1, 1024)),
    ],
)
def test_what_is_shown_is_bounded(num_classes, per_class, side, shown):
    assert pictures.fitting(num_classes, per_class, side) == shown
    classes, count, side = shown
    assert classes * count * side**2 <= 1_100_000


def test_shrinking_takes_means():
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(pictures.shrunk(images, 4)[:, :, 0, 0], images[:, :, :2, :2].mean((2, 3)))
    assert pictures.shrunk(images, 8) is images
