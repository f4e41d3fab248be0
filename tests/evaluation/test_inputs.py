"""What images look like that are not in [0, 1], and how one says so."""

from dataclasses import replace

import pytest
import torch

from ld3m.data import load
from ld3m.errors import InputError
from ld3m.evaluation.inputs import open_inputs
from ld3m.runs.result import Result

IMAGES = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
RANGES = {
    "signed": lambda data, images: images * 2 - 1,
    "bytes": lambda data, images: images * 255,
    "normalized": lambda data, images: data.normalize(images),
}


@pytest.fixture
def data():
    return load((IMAGES, LABELS), resolution=8)


@pytest.mark.parametrize("name", RANGES)
def test_other_ranges_are_refused_and_read_when_said(data, name):
    images = IMAGES / 255
    given = RANGES[name](data, images)
    with pytest.raises(InputError, match=rf"images go from .*: they look like .*say so by image_range='{name}'"):
        open_inputs((given, LABELS), data)
    result, *_ = open_inputs((given, LABELS), data, name)
    torch.testing.assert_close(result.images, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [lambda x: x * 7 - 3, lambda x: x * 40 - 20, lambda x: x * 300])
def test_ranges_that_fit_nothing_are_refused(data, change):
    with pytest.raises(InputError, match=r"they look (like )?normalized"):
        open_inputs((change(IMAGES / 255), LABELS), data)


def test_a_range_that_is_said_must_fit(data):
    with pytest.raises(InputError, match="they look like 0…255"):
        open_inputs((IMAGES.float(), LABELS), data, "normalized")
    with pytest.raises(InputError, match="image_range is one of unit, signed, bytes, normalized, got 'raw'"):
        open_inputs((IMAGES / 255, LABELS), data, "raw")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: torch.full_like(x, torch.nan), "images hold NaN or infinite values"),
        (lambda x: torch.where(x == x.max(), torch.inf, x), "images hold NaN or infinite values"),
        (lambda x: x * 255, "images go from .* to 255, not unit: they look like 0…255; say so by image_range='bytes'"),
        (lambda x: x * 2 - 1, r"they look like images in \[-1, 1\]"),
        (lambda x: x * 1e9, "they look normalized, by other data"),
        (lambda x: x - 5, "they look normalized, by other data"),
        (lambda x: x + 0.01, "images go from .* to 1.01, not unit"),
    ],
)
def test_a_result_is_looked_at_like_a_pair(data, change, said):
    """A program may have made it, or put other images into one that was loaded."""
    whole = Result(IMAGES / 255, LABELS, data.class_names, {}, {}, data.mean, data.std)
    assert torch.equal(open_inputs(whole, data)[0].images, whole.images)
    with pytest.raises(InputError, match=said):
        open_inputs(replace(whole, images=change(whole.images)), data)


@pytest.mark.parametrize("name", RANGES)
def test_the_range_of_a_result_can_be_said(data, name):
    given = Result(RANGES[name](data, IMAGES / 255), LABELS, data.class_names, {}, {}, data.mean, data.std)
    torch.testing.assert_close(open_inputs(given, data, name)[0].images, IMAGES / 255, atol=1e-5, rtol=0)


def test_a_result_of_bytes_is_read_as_such(data):
    given = Result(IMAGES, LABELS[:, None], data.class_names, {}, {}, data.mean, data.std)
    found = open_inputs(given, data)[0]
    torch.testing.assert_close(found.images, IMAGES / 255)
    assert found.labels.tolist() == LABELS.tolist()


def test_bytes_and_rounding_beyond_the_range_are_taken(data):
    torch.testing.assert_close(open_inputs((IMAGES, LABELS[:, None]), data)[0].images, IMAGES / 255)
    open_inputs((IMAGES / 255 + 5e-4, LABELS), data)


def test_classes_in_another_order_are_mapped_by_name(data):
    names = ("2", "0", "1")
    shuffled = Result(IMAGES / 255, LABELS, names, {}, {}, data.mean, data.std)
    result, *_ = open_inputs(shuffled, data)
    assert result.class_names == data.class_names
    assert result.labels.tolist() == sorted(result.labels.tolist())
    for image, label in zip(result.images, result.labels, strict=True):
        position = int((image == IMAGES / 255).flatten(1).all(1).nonzero())
        assert names[int(LABELS[position])] == data.class_names[int(label)]
