"""k-means."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ld3m.data.clustering import kmeans


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kmeans_finds_planted_centres():
    planted = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    noise = 0.1 * torch.randn(90, 2, dtype=torch.float64, generator=seeded(0))
    noise -= noise.view(30, 3, 2).mean(0).repeat(30, 1)  # so that the means are the planted points
    centres = kmeans(planted.repeat(30, 1) + noise, 3, seeded(1))
    assert torch.cdist(planted, centres).amin(1).max() < 1e-9


def test_one_centre_is_the_mean():
    points = torch.randn(50, 7, dtype=torch.float64, generator=seeded(0))
    assert torch.allclose(kmeans(points, 1, seeded(1))[0], points.mean(0))


def test_kmeans_of_equal_points_has_them_for_centres():
    assert kmeans(torch.ones(5, 2, dtype=torch.float64), 3, seeded(0)).tolist() == [[1.0, 1.0]] * 3


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_each_lloyd_step_lowers_the_cost(seed, count):
    points = torch.randn(30, 3, dtype=torch.float64, generator=seeded(seed))

    def cost(iterations: int) -> float:
        return float(
            torch.cdist(points, kmeans(points, count, seeded(seed), iterations=iterations)).amin(1).square().sum()
        )

    costs = [cost(iterations) for iterations in range(6)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(costs))
