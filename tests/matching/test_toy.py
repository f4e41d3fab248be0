"""A loss of one's own: one file, and one line in the table."""

import pytest
import torch
from torch import Tensor, nn

import ld3m
from ld3m.errors import ConfigError
from ld3m.matching import LOSSES, Line, Loss, LossCosts, Work


def mean_image_loss(
    network: nn.Module, real: Tensor, synthetic: Tensor, labels: Tensor, config: object, real_chunk: int | None
) -> Tensor:
    """Return the squared distance of the mean images, one for each class."""
    return (real.mean(1) - synthetic.mean(1)).square().flatten(1).sum(1)


def costs(network: nn.Module, work: Work) -> LossCosts:
    """The network is not called; a mean image is all that either side makes."""
    image = work.images(network, 1).nbytes
    return LossCosts(real=Line(image), synthetic=Line(0, image))


@pytest.mark.parametrize(("space", "lr"), [("pixel", 0.1), ("autoencoder", 0.003)])
def test_a_line_in_the_table_makes_a_loss(space, lr, monkeypatch):
    settings = {"space": space, "algorithm": "mean", "lr": lr, "iterations": 8, "width": 8, "real_batch": 16}
    settings |= {"augment": False, "init": "noise", "seed": 1, "progress": False}
    with pytest.raises(ConfigError, match=r"algorithm is one of dc, dm, mtt; got 'mean'"):
        ld3m.distill("builtin", **settings)
    monkeypatch.setitem(LOSSES, "mean", Loss(mean_image_loss, costs))
    data = ld3m.data.load("builtin", resolution=32)
    first, last = (
        ld3m.distill(data, **settings | {"iterations": iterations}).images.flatten(1) for iterations in (1, 8)
    )
    means = torch.stack([data.train.batch(data.train.of_class(k)).mean(0) for k in range(10)]).flatten(1)
    assert (last - means).norm() < 0.9 * (first - means).norm()


def test_the_memory_plan_asks_the_loss_for_its_costs(monkeypatch):
    prior = ld3m.load_prior("random:tiny")
    settings = {"resolution": 16, "steps": 2, "ipc": 1, "num_classes": 4, "budget": "1GB", "width": 4}
    dear = Loss(mean_image_loss, lambda network, work: LossCosts(Line(), Line(0, 10**7)))
    monkeypatch.setitem(LOSSES, "cheap", Loss(mean_image_loss, costs))
    monkeypatch.setitem(LOSSES, "dear", dear)
    monkeypatch.setitem(LOSSES, "whole", Loss(None, costs))
    cheap, more, whole = (ld3m.plan_memory(prior, algorithm=name, **settings) for name in ("cheap", "dear", "whole"))
    assert more.peak_bytes > cheap.peak_bytes + 3 * 10**7
    assert whole.smaller() is None or whole.smaller().classes_in_flight == 4  # cannot be streamed
    assert cheap.within(cheap.planner.smallest.peak_bytes).classes_in_flight == 1
