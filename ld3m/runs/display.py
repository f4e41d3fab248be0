"""What a result looks like: a grid of its images with the names of their classes, and HTML for notebooks."""

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ld3m.runs import pictures

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

_INK, _GAP, _MOST, _MIN_SIDE = (40, 40, 40), 2, 10, 64
_NAME_HEIGHT, _NAME_WIDTH, _LETTERS = 16, 150, 11  # pixels of a caption, and the size of its letters


def named_grid(classes: Sequence[tuple[str, Tensor]]) -> "Image":
    """Draw images (n, 3, H, W) of each class with its name: side by side where each has one, else a row per class.

    A row has at most ten images, of which small ones are enlarged without smoothing.
    """
    single = all(len(images) == 1 for _, images in classes)
    return (_draw_tiles if single else _draw_rows)(classes)


def _draw_tiles(classes: Sequence[tuple[str, Tensor]]) -> "Image":
    """One image of each class, its name below, at most ten beside each other."""
    rows = [classes[first : first + _MOST] for first in range(0, len(classes), _MOST)]
    sheets = []
    for row in rows:
        tiles = torch.cat([images for _, images in row])
        strip = pictures.grid(tiles, min(len(classes), _MOST), min_side=_MIN_SIDE, gap=_GAP)
        sheet, width = (
            _sheet(strip.width, strip.height + _NAME_HEIGHT),
            (strip.width - _GAP) // min(len(classes), _MOST),
        )
        sheet.paste(strip, (0, 0))
        for k, (name, _) in enumerate(row):
            _write(sheet, (k * width + _GAP, strip.height), name, width - _GAP)
        sheets.append(sheet)
    return pictures.stack(sheets)


def _draw_rows(classes: Sequence[tuple[str, Tensor]]) -> "Image":
    """The images of each class in a row behind its name."""
    columns = min(_MOST, max(len(images) for _, images in classes))
    width = min(_NAME_WIDTH, 12 + max(round(_font().getlength(name)) for name, _ in classes))
    sheets = []
    for name, images in classes:
        strip = pictures.grid(images[:columns], columns, min_side=_MIN_SIDE, gap=_GAP)
        sheet = _sheet(width + strip.width, strip.height)
        sheet.paste(strip, (width, 0))
        _write(sheet, (6, (strip.height - _LETTERS) // 2 - 2), name, width - 8)
        sheets.append(sheet)
    return pictures.stack(sheets)


def _sheet(width: int, height: int) -> "Image":
    from PIL import Image

    return Image.new("RGB", (width, height), "white")


def _font() -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(_LETTERS)


def _write(sheet: "Image", place: tuple[int, int], name: str, width: int) -> None:
    """Write a name into a width; what does not fit is cut and ends in an ellipsis."""
    from PIL import ImageDraw

    font, shown = _font(), " ".join(name.split())
    while len(shown) > 1 and font.getlength(shown) > width:
        shown = shown.rstrip("…")[:-1].rstrip() + "…"
    ImageDraw.Draw(sheet).text(place, shown, _INK, font=font)


def inline_picture(picture: "Image", description: str) -> str:
    """Return a picture as an HTML element that holds all of it."""
    content = base64.b64encode(pictures.png_bytes(picture)).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{content}">'
