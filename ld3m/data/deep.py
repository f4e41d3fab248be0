"""Pictures of more than 8 bits, whose files do not say how many of their bits are in use.

X-ray, microscope and camera files keep 10, 12 or 14 bits in 16: the high byte alone would be black. The range is
looked at over the whole set, since one mapping must hold for all pictures, and a named rule makes bytes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ld3m.config.run import BIT_RANGES
from ld3m.errors import DataError

RULES = BIT_RANGES
_BITS = (8, 10, 12, 14, 16)
# How Pillow names what it drops the low byte of, and the mode of the same place that keeps it instead.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B"}


class Unranged(Exception):
    """There is a picture of more than 8 bits, and the set's range is not known yet."""


@dataclass(frozen=True)
class Levels:
    """The levels that become black and white; what lies beyond is clipped."""

    low: float
    high: float

    @property
    def is_bits(self) -> bool:
        return self.low == 0 and self.high + 1 in [2**bits for bits in _BITS]

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels as uint8: in steps of a whole number of levels where the range is one of bits."""
        if np.issubdtype(pixels.dtype, np.floating) and self.is_bits:
            raise ValueError("the file has floating-point pixels, whose range is not known")
        width = self.high - self.low
        if self.is_bits:
            return (pixels // (int(self.high + 1) // 256)).clip(0, 255).astype(np.uint8)
        return np.rint((pixels.astype(np.float64) - self.low) * (255 / max(width, 1e-12))).clip(0, 255).astype(np.uint8)


FULL = Levels(0, 2**16 - 1)


def deep_pixels(image: Image.Image) -> np.ndarray | None:
    """Return the pixels (H, W) or (H, W, C) of a picture of more than 8 bits, None for another."""
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode != "F":
            return pixels.astype(np.int64)
        if not np.isfinite(pixels).all():
            raise ValueError("the file has pixels that are NaN or infinite")
        return pixels
    return _deep_color(image)


def _deep_color(image: Image.Image) -> np.ndarray | None:
    """Read both bytes of a channel, of which Pillow keeps the high one: decode twice, once for each."""
    tiles = getattr(image, "tile", None)
    source = getattr(image, "fp", None)
    if not tiles or not isinstance(source, BytesIO) or image.mode not in ("RGB", "RGBA"):
        return None
    arguments = tiles[0][3]
    mode = arguments[0] if isinstance(arguments, tuple) else arguments
    name, _, place = mode.partition(";") if isinstance(mode, str) else ("", "", "")
    if name not in ("RGB", "RGBA", "RGBX") or place not in _OTHER_BYTE:
        return None
    low: Any = Image.open(BytesIO(source.getvalue()), formats=[image.format or ""])
    low.tile = [_with_mode(tile, f"{name};{_OTHER_BYTE[place]}") for tile in low.tile]
    image.load()
    low.load()
    pixels = np.asarray(image).astype(np.int64) * 256 + np.asarray(low)
    return pixels[..., :3] if pixels.shape[-1] == 4 and (pixels[..., 3] == 65535).all() else pixels


def _with_mode(tile: Any, mode: str) -> Any:
    arguments = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)  # by Pillow's age


def choose_levels(rule: str, extremes: Callable[[], tuple[float, float, bool]]) -> tuple[Levels, str]:
    """Return the levels by a rule, and how they were found.

    Args:
        rule: "auto" takes the fewest of 8, 10, 12, 14, 16 bits that hold every picture of the set; a number of bits;
            "minmax" spreads the set's own smallest and largest level.
        extremes: smallest and largest level in the set, and whether there are pictures of floating point.
    """
    if rule in map(str, _BITS):
        return Levels(0, 2 ** int(rule) - 1), f"read as {rule} bits, as asked"
    low, high, is_float = extremes()
    seen = f"use the levels {low:g} to {high:g}"
    if rule == "minmax":
        return Levels(low, high), f"{seen}, which become black and white (bit_range='minmax')"
    if is_float:
        raise DataError(
            f"the pictures have floating-point pixels, from {low:g} to {high:g}, whose range is not known; "
            "bit_range='minmax' makes these two black and white"
        )
    bits = next((bits for bits in _BITS if high < 2**bits), None)
    if bits is None or low < 0:
        raise DataError(
            f"the pictures {seen}, which is no range of up to 16 bits; bit_range='minmax' makes these black and white"
        )
    return Levels(0, 2**bits - 1), f"{seen}: read as {bits} bits (bit_range={bits} says so, or another of {RULES})"
