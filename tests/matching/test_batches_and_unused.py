"""Gradient matching of networks that are not of a kind: batch norm in large batches, weights that take no part."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ld3m import networks
from ld3m.matching import dc_loss


def squared_distance(network, real, synthetic, label):
    found = []
    for images in (real, synthetic):
        loss = F.cross_entropy(network(images), torch.full((len(images),), label))
        found.append(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))
    return sum((a - b).square().sum() for a, b in zip(*found, strict=True) if a is not None)


def test_batch_norm_sees_the_real_batch_whole_however_large():
    draw = torch.Generator().manual_seed(0)
    options = {"num_classes": 2, "resolution": 32, "width": 128, "depth": 1, "norm": "batchnorm"}
    network = networks.build("ConvNet", **options, generator=draw)
    real, synthetic = torch.rand(2, 40, 3, 32, 32, generator=draw), torch.rand(2, 2, 3, 32, 32, generator=draw)
    real = real * torch.linspace(0.1, 1, 40)[None, :, None, None, None]  # parts of the batch differ from the whole
    found = dc_loss(network, real, synthetic, torch.tensor([0, 1]), metric="mse")
    wanted = torch.stack([squared_distance(network, real[k], synthetic[k], k) for k in range(2)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("metric", ["layerwise-cosine", "mse", "cosine"])
def test_weights_that_take_no_part_change_nothing(metric):
    draw = torch.Generator().manual_seed(0)
    network = networks.build("ConvNet", num_classes=3, resolution=8, width=4, depth=1, generator=draw)
    real, synthetic = torch.rand(2, 4, 3, 8, 8, generator=draw), torch.rand(2, 2, 3, 8, 8, generator=draw)
    labels = torch.tensor([2, 0])
    wanted = dc_loss(network, real, synthetic, labels, metric=metric)
    network.spare = nn.Linear(3, 5)
    found = dc_loss(network, real, synthetic.requires_grad_(), labels, metric=metric)
    rows = 5 if metric == "layerwise-cosine" else 0  # two zero rows count as at a right angle
    torch.testing.assert_close(found.detach(), wanted + rows, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert synthetic.grad.isfinite().all() and synthetic.grad.norm() > 0
