"""What images look like that are not in [0, 1], and how one says so."""

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
