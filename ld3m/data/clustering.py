"""Clusters of points."""

import torch
from torch import Tensor


def kmeans(points: Tensor, count: int, generator: torch.Generator, *, iterations: int = 100) -> Tensor:
    """Return `count` centres of points (n, D): Lloyd's iteration, started by k-means++ (Arthur, Vassilvitskii 2007)."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    centres = points[first : first + 1]
    for _ in range(count - 1):
        squares = torch.cdist(points, centres).amin(1).square().clamp_min(1e-30)  # equal points: uniform
        centres = torch.cat([centres, points[torch.multinomial(squares, 1, generator=generator)]])
    nearest = None
    for _ in range(iterations):
        previous, nearest = nearest, torch.cdist(points, centres).argmin(1)
        if previous is not None and torch.equal(previous, nearest):
            break
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)  # a centre without points stays
    return centres


def gaussian_mixture(
    points: Tensor, count: int, generator: torch.Generator, *, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Fit a mixture of Gaussians with diagonal covariances to points (n, D), by EM from k-means centres on.

    Returns:
        Means (count, D) and masses (count,), of sum 1.
    """
    means = kmeans(points, count, generator)
    floor = 1e-6 * points.var(0, unbiased=False).mean().clamp_min(1e-12)  # a Gaussian on one point stays finite
    variances = points.var(0, unbiased=False).clamp_min(floor).expand_as(means)
    masses, before = means.new_full((count,), 1 / count), None
    for _ in range(iterations):
        inverse = 1 / variances
        squares = points.square() @ inverse.T - 2 * points @ (means * inverse).T + (means.square() * inverse).sum(1)
        logits = masses.log() - 0.5 * (squares + variances.log().sum(1))  # (n, count)
        likelihood = float(logits.logsumexp(1).mean())
        if before is not None and likelihood - before < 1e-6 * abs(before):
            break
        before, shares_of_points = likelihood, logits.softmax(1)
        sizes = shares_of_points.sum(0).clamp_min(1e-12)
        means = shares_of_points.T @ points / sizes[:, None]
        variances = (shares_of_points.T @ points.square() / sizes[:, None] - means.square()).clamp_min(floor)
        masses = sizes / sizes.sum()
    return means, masses


def cell_sizes(points: Tensor, centres: Tensor) -> Tensor:
    """Return how many points (n, D) lie nearest to each of the centres (K, D), (K,) int64."""
    return torch.bincount(torch.cdist(points, centres).argmin(1), minlength=len(centres))


def shares(sizes: Tensor) -> Tensor:
    """Return the weights of images that stand for cells of these sizes, (K,) float32, of mean 1.

    Shares of the points times K, so that cells of one size have weights of exactly 1.
    """
    return (sizes.double() * len(sizes) / sizes.sum()).float()
