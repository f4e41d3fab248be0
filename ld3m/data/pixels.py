"""From anything that holds a picture to 3 × resolution × resolution bytes.

Transparent pictures are composited over white, as a viewer shows them; pictures of more than 8 bits are mapped by the
rule of the whole set (`deep.py`); EXIF orientation is applied. The largest centred square is resampled with Pillow's
Lanczos filter, which antialiases when it shrinks: the same as resizing the shorter side and cropping the centre. The
exception is the MNIST family: 28 × 28 grey pictures at resolution 32 get a black border of 2 pixels, whichever kind of
source they come from.
"""

import os
import shutil
import tempfile
import threading
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features
from torch import Tensor

from ld3m.data.deep import FULL, Levels, Unranged, deep_pixels
from ld3m.errors import DataError

_HAS_AVIF = features.check("avif") or False  # not every Pillow has it
EXTENSIONS = frozenset((
    ".apng", ".bmp", ".dib", ".gif", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    *[".avif"] * _HAS_AVIF,
))  # fmt: skip
MEMMAP_BYTES = 2**30  # larger sets live in a memory-mapped file
# Not EPS: Pillow starts Ghostscript for it.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *["AVIF"] * _HAS_AVIF)
_MAGIC = (b"BM", b"GIF8", b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\x00", b"MM\x00*")
_MOST_PIXELS = 2**26  # decoded: 256 MiB with transparency
_LARGE_PIXELS = 2**24  # pictures above are decoded one at a time, which bounds the memory
_TURNS = {  # EXIF orientation -> how the picture is turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_large = threading.Lock()
_SLACK = 1e-3  # a quarter of a grey level: what interpolation may leave outside of [0, 1]


def open_image(data: bytes) -> Image.Image:
    """Return the picture in an image file, not yet decoded. Raises whatever Pillow raises for a damaged file."""
    return Image.open(BytesIO(data), formats=_FORMATS)


def looks_like_picture(head: bytes) -> bool:
    """Whether a file's first bytes are those of a format that is read."""
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def fit(image: Image.Image | np.ndarray, resolution: int, levels: Levels | None = FULL) -> np.ndarray:
    """Return a Pillow image or uint8 (1 or 3, H, W) array as uint8 (1 or 3, resolution, resolution).

    Args:
        levels: which levels of pictures of more than 8 bits become black and white; None: not known yet.

    Raises:
        Unranged: there are more than 8 bits, and the levels are not known.
    """
    if isinstance(image, np.ndarray):
        if image.shape[1:] == (resolution, resolution):
            return image
        image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    image.draft(None, (2 * resolution, 2 * resolution))  # decodes a large JPEG at 1/2, 1/4 or 1/8
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"the picture has {image.width} × {image.height} pixels, more than {_MOST_PIXELS} at once")
    with _one_large if image.width * image.height > _LARGE_PIXELS else nullcontext():
        pixels = deep_pixels(image)  # before the EXIF data, with which Pillow decodes a PNG
        orientation = _orientation(image)
        if pixels is not None:
            if levels is None:
                raise Unranged
            image = Image.fromarray(levels.apply(pixels))
        coarser = min(image.size) // (4 * resolution)
        if image.width * image.height > _LARGE_PIXELS and coarser > 1 and image.mode in ("L", "RGB", "RGBA"):
            image = image.reduce(coarser)  # before there are copies of it; four times finer than what is wanted
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        if image.mode == "L" and image.size == (28, 28) and resolution == 32:
            return np.asarray(ImageOps.expand(image, 2))[None]
        image = ImageOps.fit(_rgb(image), (resolution, resolution), Image.Resampling.LANCZOS)
        return np.asarray(image).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; only this entry is looked at, since cameras write faulty ones beside it."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # Pillow raises SyntaxError, struct.error, KeyError … for damaged EXIF data; the picture is whole
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def quantise(image: Image.Image | np.ndarray | Tensor, where: str) -> Image.Image | np.ndarray:
    """Return one picture of a program as what `fit` takes.

    Args:
        image: Pillow image, tensor (C, H, W) or (H, W), or array (H, W, C) or (H, W); C 1 or 3; uint8, or floating
            point in [0, 1].
        where: what the picture is called in an error.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    elif isinstance(image, np.ndarray):
        array = image.transpose(2, 0, 1) if image.ndim == 3 else image  # (H, W, C) -> (C, H, W)
    else:
        raise DataError(f"{where} is a {type(image).__name__}; expected a Pillow image, a tensor or an array")
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or len(array) not in (1, 3) or 0 in array.shape:
        raise DataError(
            f"{where} has shape {tuple(image.shape)}; expected 1 or 3 channels, "
            "(C, H, W) in a tensor and (H, W, C) in an array"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{where} has dtype {array.dtype}; expected uint8, or floating point in [0, 1]")
    low, high = array.min(), array.max()
    if not np.isfinite(low + high):
        raise DataError(f"{where} holds NaN or Inf; remove it or repair the data")
    if low < -_SLACK or high > 1 + _SLACK:
        raise DataError(
            f"{where} has values from {low:.4g} to {high:.4g}; expected floating point in [0, 1], "
            "not normalized, or uint8 in 0…255"
        )
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)


def allocate(count: int, resolution: int, cache: str | Path | None) -> np.ndarray:
    """Return room for `count` images, uint8 (count, 3, resolution, resolution).

    Above MEMMAP_BYTES it is a memory map of an unnamed file in the folder `cache` (default: the system's temporary
    folder), which the system frees with the last reference, also when the process is killed.
    """
    shape = (count, 3, resolution, resolution)
    needed = 3 * count * resolution**2
    if needed <= MEMMAP_BYTES:
        return np.empty(shape, np.uint8)
    folder = Path(cache or tempfile.gettempdir())
    where = "cache=" if cache else "the environment variable TMPDIR"  # no command has an option for it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:  # a memory map on a full disk would kill the process
            raise DataError(
                f"the images need {needed / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free; "
                f"name a folder with more room in {where}"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would end in a signal
                os.posix_fallocate(file.fileno(), 0, needed)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(f"the images cannot be kept in {folder} ({error}); name another folder in {where}") from error
