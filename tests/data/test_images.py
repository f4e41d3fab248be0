"""ImageSet and Dataset: what the other rooms call."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ld3m.data.images import Dataset, ImageSet, channel_statistics
from ld3m.errors import DataError
from ld3m.runtime.footprint import Ledger


@pytest.fixture
def images():
    return torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def image_set(images):
    return ImageSet(images, torch.tensor([0, 1, 1, 0, 1, 0, 1]), ("cat", "dog"))


def test_sizes_and_positions_of_a_class(image_set):
    assert len(image_set) == 7
    assert image_set.num_classes == 2
    assert image_set.of_class(1).tolist() == [1, 2, 4, 6]
    assert image_set.of_class(0).dtype == torch.int64


@pytest.mark.parametrize("indices", [[6, 0, 0], torch.tensor([6, 0, 0])])
def test_batch_scales_to_the_unit_interval_in_the_order_asked_for(image_set, images, indices):
    batch = image_set.batch(indices)
    assert batch.dtype == torch.float32
    assert torch.equal((batch * 255).round().to(torch.uint8), images[[6, 0, 0]])
    assert batch.max() <= 1


def test_batch_goes_to_a_device_as_bytes(image_set, images):
    with Ledger() as made:
        batch = image_set.batch([6, 0, 0], "meta")
    assert batch.is_meta and batch.dtype == torch.float32 and batch.shape == (3, 3, 4, 4)
    assert made.peak == 3 * 48 + 4 * 3 * 48  # bytes and floats there; floats in both places would be 8 * 3 * 48


def test_require_per_class_names_the_smallest_class(image_set):
    image_set.require_per_class(3, "--ipc")
    with pytest.raises(DataError, match="class 'cat' has 3 images, --ipc 4 asks for more; lower --ipc"):
        image_set.require_per_class(4, "--ipc")


def test_a_class_without_images_counts_as_the_smallest(images):
    empty = ImageSet(images[:2], torch.tensor([0, 0]), ("cat", "dog"))
    with pytest.raises(DataError, match="class 'dog' has 0 images"):
        empty.require_per_class(1, "ipc")


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))
def test_statistics_are_those_of_all_pixels(count, side, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    mean, std = channel_statistics(images, chunk)
    exact = images.double().div(255).transpose(0, 1).flatten(1)
    deviation = exact.std(1, unbiased=False)
    torch.testing.assert_close(mean, exact.mean(1).float())
    torch.testing.assert_close(std, torch.where(deviation > 1e-9, deviation, 1.0).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_normalise_keeps_the_dtype_and_standardises(image_set, dtype):
    mean, std = channel_statistics(image_set.images)
    data = Dataset("x", image_set, None, mean, std, image_set.class_names, (None, None), 4)
    normalised = data.normalize(image_set.batch(range(7)).to(dtype))
    assert normalised.dtype == dtype
    assert torch.equal(data.normalise(image_set.batch(range(7)).to(dtype)), normalised)  # its former name
    channels = normalised.double().transpose(0, 1).flatten(1)
    tolerance = 5e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(channels.mean(1), torch.zeros(3, dtype=torch.float64), atol=tolerance, rtol=0)
    torch.testing.assert_close(
        channels.std(1, unbiased=False), torch.ones(3, dtype=torch.float64), atol=tolerance, rtol=0
    )
