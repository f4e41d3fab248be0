"""Choice of real images: random draws and k-means."""

import pytest
import torch

from ld3m.data import ImageSet
from ld3m.data.coreset import kmeans_images, random_images


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_set(values: list[int], labels: list[int], side: int = 4) -> ImageSet:
    """Images of one grey value each."""
    images = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side).clone()
    return ImageSet(images, torch.tensor(labels), tuple(str(k) for k in range(max(labels) + 1)))


def test_random_images_are_distinct_and_of_their_class():
    train = image_set(list(range(60)), [k % 3 for k in range(60)])
    positions = random_images(train, [2, 5, 20], seeded(0))
    assert train.labels[positions].tolist() == [0] * 2 + [1] * 5 + [2] * 20
    assert len(set(positions.tolist())) == 27


def test_random_images_follow_the_generator():
    train = image_set(list(range(60)), [k % 3 for k in range(60)])
    first, again, other = (random_images(train, [4] * 3, seeded(s)).tolist() for s in (0, 0, 1))
    assert first == again != other


def test_random_images_reach_every_image():
    train = image_set(list(range(6)), [0, 1] * 3)
    drawn = {int(p) for s in range(40) for p in random_images(train, [1, 1], seeded(s))}
    assert drawn == set(range(6))


def test_single_image_is_the_one_nearest_to_the_class_mean():
    train = image_set([0, 100, 110, 250, 7, 9, 11], [0, 0, 0, 0, 1, 1, 1])  # means 115 and 9
    assert kmeans_images(train, [1, 1], seeded(0)).tolist() == [2, 5]


def test_images_near_each_planted_centre_are_chosen():
    train = image_set([0, 1, 2, 100, 101, 102, 200, 201, 202], [0] * 9)
    for seed in range(5):
        assert sorted(kmeans_images(train, [3], seeded(seed)).tolist()) == [1, 4, 7]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_chosen_images_are_distinct_even_where_pixels_are_equal(count):
    train = image_set([50] * 5, [0] * 5)
    assert len(set(kmeans_images(train, [count], seeded(0)).tolist())) == count


def test_large_images_are_compared_after_averaging():
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    images[0, :, ::2, ::2] = 200  # fine checks, which average to 50
    images[1] = 50
    images[2] = 255
    train = ImageSet(images, torch.zeros(3, dtype=torch.int64), ("a",))
    distances = torch.cdist(*(torch.nn.functional.avg_pool2d(train.batch([i]), 2).flatten(1) for i in (0, 1)))
    assert distances.item() < 1e-4  # the two are one image at 32 px
    assert sorted(kmeans_images(train, [2], seeded(0)).tolist()) == [0, 2]
