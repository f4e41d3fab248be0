"""Images as files: grids of pictures and plain line charts, drawn with Pillow alone."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.runtime.storage import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_PIXELS = 1_100_000  # of all pictures of a page: 4.4 MB as text even of noise, which is 3 bytes a pixel
_INK, _RULE = (40, 40, 40), (222, 222, 222)
_COLORS = ((31, 119, 180), (214, 90, 20), (44, 140, 60), (150, 80, 170))


def to_pillow(image: Tensor) -> "Image":
    """Turn one image (3, H, W), float in [0, 1], into an 8-bit RGB picture."""
    from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def fitting(num_classes: int, per_class: int, side: int) -> tuple[int, int, int]:
    """Return how many classes and images of each to show, and at what side, so that a page of them stays small.

    At most 100 classes and 10 images of each; of large ones fewer, then smaller ones, until there are `_MOST_PIXELS`.
    """
    classes, count = min(num_classes, 100), min(per_class, 10)

    def left() -> int:
        return _MOST_PIXELS // (classes * side**2)

    if side > 64 and left() < count:
        count = max(min(count, 5), left())
    while left() < count and side > 32:
        side = max(32, side // 2)
    count = max(1, min(count, left()))
    return min(classes, max(1, _MOST_PIXELS // (count * side**2))), count, side


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return images (N, 3, H, W) at a side that is not larger, each pixel the mean of its area."""
    height, width = images.shape[-2:]
    if width <= side or not len(images):
        return images
    return F.interpolate(images.float(), (max(1, height * side // width), side), mode="area")


def save_numbered(folder: Path, images: Iterable[Tensor]) -> None:
    """Write images (3, H, W), float in [0, 1], as 0.png, 1.png, … into a folder."""
    for k, image in enumerate(images):
        save_png(folder / f"{k}.png", to_pillow(image))


def grid(images: Tensor, columns: int, *, min_side: int = 64, gap: int = 2) -> "Image":
    """Lay images (N, 3, H, W), float in [0, 1], out row by row; small ones are enlarged without smoothing."""
    from PIL import Image

    scale = max(1, math.ceil(min_side / images.shape[-1]))
    height, width = images.shape[-2] * scale, images.shape[-1] * scale
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for k, image in enumerate(images):
        row, column = divmod(k, columns)
        tile = to_pillow(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], title: str, *, log: bool = False) -> "Image":
    """Draw named series of (x, y) points into one panel of 640 × 360 pixels.

    Args:
        series: name → points; points that are not finite, or not positive on a logarithmic axis, are left out.
        title: printed above.
        log: logarithmic y axis.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height, left, right, top, bottom = 640, 360, 76, 16, 34, 40
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((left, 8), title, _INK, font=ImageFont.load_default(14))
    rise = math.log10 if log else float
    kept = {
        name: [(x, rise(y)) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    everything = [point for points in kept.values() for point in points]
    if not everything:
        draw.text((left, height // 2), "no finite values", _INK, font=font)
        return sheet
    (x0, x1), (y0, y1) = (_limits([point[axis] for point in everything]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (width - left - right),
            height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom),
        )

    for k in range(5):
        y = y0 + (y1 - y0) * k / 4
        draw.line([place(x0, y), place(x1, y)], _RULE)
        draw.text((6, place(x0, y)[1] - 7), f"{10**y if log else y:.3g}", _INK, font=font)
    for x in sorted({round(x0 + (x1 - x0) * k / 4) for k in range(5)}):  # steps and iterations are whole numbers
        draw.text((place(x, y0)[0] - 10, height - bottom + 8), f"{x:g}", _INK, font=font)
    for k, (name, points) in enumerate(kept.items()):
        color = _COLORS[k % len(_COLORS)]
        draw.line([place(*point) for point in points], color, width=2)
        if len(points) == 1:
            draw.circle(place(*points[0]), 3, color)
        draw.text((width - right - 150, top + 4 + 16 * k), name, color, font=font)
    return sheet


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def stack(pictures: Sequence["Image"]) -> "Image":
    """Put pictures below one another."""
    from PIL import Image

    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def png_bytes(picture: "Image") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: Path, picture: "Image") -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(picture))
