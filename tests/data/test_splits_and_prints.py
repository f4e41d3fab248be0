"""Small splits, fingerprints, and large JPEGs that are decoded smaller."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.data import load
from ld3m.data.pixels import fit


@pytest.mark.parametrize("holdout", [0.01, 0.5, 0.9, 0.99])
def test_of_two_images_of_a_class_one_is_held_out_whatever_the_share(holdout):
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 8, 8) * 20
    data = load((images, torch.tensor([0, 0, 1, 1, 2, 2])), holdout=holdout, resolution=8)
    assert torch.bincount(data.train.labels).tolist() == torch.bincount(data.test.labels).tolist() == [1, 1, 1]
    both = torch.cat([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(both.tolist()) == [0, 20, 40, 60, 80, 100]


def test_a_fingerprint_tells_classes_pixels_labels_split_and_resolution_apart():
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 8, 8) * 20  # alike at any size
    labels = torch.arange(12) % 2

    def print_of(images=images, labels=labels, test=4, resolution=8) -> str:
        parts = {"train": (images, labels), "test": (images[:test], labels[:test])}
        return load(parts, resolution=resolution).fingerprint

    first = print_of()
    assert print_of() == first
    others = [print_of(resolution=16), print_of(test=6), print_of(images=images + 1), print_of(labels=labels.flip(0))]
    assert len({first, *others}) == 5


def jpeg(side: int) -> bytes:
    """A photograph-like file: waves of 1 to 40 periods."""
    at = np.linspace(0, 2 * np.pi, side)
    waves = sum(np.sin(k * at)[:, None] * np.cos((k + 1) * at)[None] / k for k in (1, 5, 11, 23, 40))
    pixels = np.stack([waves, waves.T, -waves], -1)
    pixels = (255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=98, subsampling=0)
    return file.getvalue()


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_a_large_jpeg_is_decoded_at_twice_the_side_and_looks_the_same(side):
    """A half, a quarter or an eighth, whichever comes down to 128."""
    image = Image.open(io.BytesIO(jpeg(side)))
    found = fit(image, 64)
    assert image.size == (128, 128)
    wanted = np.asarray(Image.open(io.BytesIO(jpeg(side))).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))
    assert np.abs(found.astype(float) - wanted.transpose(2, 0, 1)).mean() < 2
