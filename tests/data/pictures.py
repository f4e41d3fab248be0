"""Small pictures in files, by class, for tests of what is found in folders and archives."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(seed, form="PNG", side=16, **options):
    """Return the bytes of a picture like no other seed's: 8 × 8 cells of random color."""
    cells = np.random.default_rng([ord(c) for c in str(seed)]).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(buffer, form, **options)
    return buffer.getvalue()


def put(folder: Path, names, form="PNG", **options):
    """Write a picture under each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(name, form, **options))
    return folder


def grid(*levels, count=3, ending="png"):
    """Return the names of pictures in folders: grid(("train", "val"), ("cat", "dog"))."""
    paths = [""]
    for level in levels:
        paths = [f"{path}{name}/" for path in paths for name in level]
    return [f"{path}{k}.{ending}" for path in paths for k in range(count)]
