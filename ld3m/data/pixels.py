"""From anything that holds a picture to 3 × resolution × resolution bytes.

Transparent pictures are composited over white, as a viewer shows them; of 16-bit ones the high byte is taken; EXIF
orientation is applied. The largest centred square is resampled with Pillow's Lanczos filter, which antialiases when
it shrinks: the same as resizing the shorter side and cropping the centre. The exception is the MNIST family: 28 × 28
grey pictures at resolution 32 get a black border of 2 pixels, whichever kind of source they come from.
"""

import shutil
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ld3m.errors import DataError

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MEMMAP_BYTES = 2**30  # larger sets live in a memory-mapped file
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS: Pillow starts Ghostscript for it
_SLACK = 1e-3  # a quarter of a grey level: what interpolation may leave outside of [0, 1]


def open_image(data: bytes) -> Image.Image:
    """Return the picture in an image file, not yet decoded. Raises whatever Pillow raises for a damaged file."""
    return Image.open(BytesIO(data), formats=_FORMATS)


def fit(image: Image.Image | np.ndarray, resolution: int) -> np.ndarray:
    """Return a Pillow image or uint8 (1 or 3, H, W) array as uint8 (1 or 3, resolution, resolution)."""
    if isinstance(image, np.ndarray):
        if image.shape[1:] == (resolution, resolution):
            return image
        image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    image.draft(None, (2 * resolution, 2 * resolution))  # decodes a large JPEG at 1/2, 1/4 or 1/8
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "L" and image.size == (28, 28) and resolution == 32:
        return np.asarray(ImageOps.expand(image, 2))[None]
    image = ImageOps.fit(_rgb(image), (resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("the file has floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
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
            "not normalised, or uint8 in 0…255"
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
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise DataError(f"the images cannot be kept in {folder} ({error}); name another folder in {where}") from error
