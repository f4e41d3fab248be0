"""Repeats trained at once end where they end alone."""

from dataclasses import replace

import pytest
import torch

from ld3m import networks
from ld3m.evaluation import comparison, evaluate
from ld3m.evaluation.protocols import Recipe, find
from ld3m.evaluation.runner import Training, jobs_of
from ld3m.evaluation.training import train
from ld3m.runtime import seeds

R = 3


def trained(name: str, protocol, groups: list[list[int]], answers=None) -> list[list[torch.Tensor]]:
    """Weights of each repeat after training in groups, in float64; every repeat has images of its own."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(R, 6, 3, 32, 32, generator=draw, dtype=torch.float64)
    labels, found = torch.tensor([0, 1, 2, 2, 1, 0]), [[]] * R
    for group in groups:
        generators = [seeds.generator(0, "repeat", repeat) for repeat in group]
        built = [networks.build(name, num_classes=3, resolution=32, generator=g).double() for g in generators]
        sets = [images[repeat] for repeat in group]
        train(built, sets, labels, protocol, Recipe(0.01, 3, 0.6), generators, answers=answers)
        for repeat, network in zip(group, built, strict=True):
            found[repeat] = [parameter.detach() for parameter in network.parameters()]
    return found


@pytest.mark.parametrize("name", ["ConvNet-w0.06", "AlexNet-w0.06", "VGG11-w0.06", "ResNet18-w0.06"])
def test_weights_are_those_of_separate_trainings(name):
    protocol = replace(find("quick"), batch=4)
    alone, at_once = trained(name, protocol, [[0], [1], [2]]), trained(name, protocol, [[0, 1, 2]])
    for separate, together in zip(alone, at_once, strict=True):
        torch.testing.assert_close(together, separate, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(at_once[0][0], at_once[1][0])


def test_so_are_they_under_d3hr_with_soft_labels():
    guide = torch.linspace(-1, 1, 3, dtype=torch.float64)

    def answers(images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None] * guide

    protocol = replace(find("d3hr"), batch=4)
    name = "ConvNet-w0.06"
    alone, at_once = trained(name, protocol, [[0], [1], [2]], answers), trained(name, protocol, [[0, 1, 2]], answers)
    for separate, together in zip(alone, at_once, strict=True):
        torch.testing.assert_close(together, separate, rtol=1e-7, atol=1e-9)


def test_an_evaluation_gives_the_same_accuracies_and_dropout_networks_train_alone(toy, brief, monkeypatch):
    jobs = []
    whole = comparison.share_out
    monkeypatch.setattr(comparison, "share_out", lambda todo, *more: jobs.extend(todo) or whole(todo, *more))
    images = torch.full((3, 3, 8, 8), 0.15)
    images[range(3), range(3)] = 0.75
    options = {"protocol": brief.with_epochs(4), "networks": ["ConvNet-w0.06"], "repeats": 3, "progress": False}
    alone = evaluate((images, torch.arange(3)), toy, **options)
    assert {len(job) for job in jobs} == {1}
    jobs.clear()
    at_once = evaluate((images, torch.arange(3)), toy, **options, together=True)
    assert [len(job) for job in jobs] == [3, 3, 3]
    assert [row["accuracies"] for row in at_once.rows] == [row["accuracies"] for row in alone.rows]

    jobs.clear()
    monkeypatch.setattr(comparison, "has_dropout", lambda network: True)
    evaluate((images, torch.arange(3)), toy, **options, together=True)
    assert [len(job) for job in jobs] == [1] * 9


def test_jobs_gather_repeats_and_keep_the_order():
    trainings = [Training(s, n, r) for r in range(3) for s in ("a", "b") for n in ("x", "y")]
    assert jobs_of(trainings, 1) == [(training,) for training in trainings]
    pairs = jobs_of(trainings[1:], 2)
    assert [[(t.set, t.network, t.repeat) for t in job] for job in pairs[:2]] == [
        [("a", "y", 0), ("a", "y", 1)],
        [("b", "x", 0), ("b", "x", 1)],
    ]
    assert max(map(len, pairs)) == 2 and sum(map(len, pairs)) == 11
    assert jobs_of([Training("a", "x", 0), Training("a", "x", 0, "hard")], 5) == [
        (Training("a", "x", 0),),
        (Training("a", "x", 0, "hard"),),
    ]
