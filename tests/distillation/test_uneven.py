"""Classes of unequal size: few groups, and the losses that each class has alone."""

import threading
import time

import pytest
import torch

from ld3m import networks
from ld3m.data import ImageSet
from ld3m.distillation.job import objective_of, prepare
from ld3m.distillation.objectives import ClassMatching, groups_of
from ld3m.errors import InputError
from ld3m.matching import dc_loss, dm_loss


def test_a_hundred_uneven_classes_make_few_groups():
    sizes = torch.randint(10, 61, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = groups_of(sizes, 16)
    assert len(groups) == 7
    assert torch.cat(groups).sort().values.tolist() == list(range(100))
    assert max(max(sizes[k] for k in group) - min(sizes[k] for k in group) for group in groups) <= 15


def test_even_classes_keep_their_groups():
    assert [group.tolist() for group in groups_of([8] * 5, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("loss", [dm_loss, dc_loss])
def test_a_loss_of_uneven_classes_is_that_of_each(loss, chunk):
    draw = torch.Generator().manual_seed(0)
    network = networks.build("ConvNet", num_classes=3, resolution=16, width=4, generator=draw).double()
    real = [torch.randn(count, 3, 16, 16, generator=draw).double() for count in (2, 7, 4)]
    synthetic = torch.randn(3, 2, 3, 16, 16, generator=draw).double().requires_grad_()
    labels = torch.arange(3)

    def losses(real, synthetic, labels):
        own = (labels,) if loss is dc_loss else ()
        return loss(network, real, synthetic, *own, real_chunk=chunk)

    got = losses(real, synthetic, labels)
    (gradient,) = torch.autograd.grad(got.sum(), synthetic)
    for k in range(3):
        one = synthetic[k : k + 1].detach().requires_grad_()
        want = losses(real[k][None], one, labels[k : k + 1])
        torch.testing.assert_close(got[k : k + 1], want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient[k : k + 1], *torch.autograd.grad(want.sum(), one), rtol=1e-10, atol=1e-12)
    with pytest.raises(InputError, match="same classes and size"):
        losses(real[:2], synthetic, labels)


@pytest.fixture
def uneven():
    counts, draw = [5, 9, 3, 12, 7], torch.Generator().manual_seed(0)
    images = (255 * torch.rand(sum(counts), 3, 16, 16, generator=draw)).byte()
    return images, torch.arange(5).repeat_interleave(torch.tensor(counts))


@pytest.mark.parametrize("algorithm", ["dm", "dc"])
def test_an_iteration_is_that_of_class_by_class(algorithm, uneven, relative_error):
    found = []
    for at_once in (1, 3):
        settings = {"space": "pixel", "algorithm": algorithm, "width": 4, "real_batch": 10, "resolution": 16, "ipc": 2}
        job = prepare(uneven, settings | {"evaluate": "none", "holdout": 0}, out=None, resume=False, overwrite=False)
        options = {"classes_in_flight": at_once, "device": torch.device("cpu")}
        objective = ClassMatching(job.space, job.dataset, job.config, **options)
        assert len(objective.groups) == -(-5 // at_once)
        found.append((objective.backward(3).item(), job.space.parameters["pixels"].grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert relative_error(found[1][1], found[0][1]) < 1e-5


def test_real_images_are_gathered_ahead(uneven, monkeypatch):
    """By a thread of their own, those of the next group while this one is matched."""
    settings = {"space": "pixel", "algorithm": "dm", "width": 4, "real_batch": 3, "resolution": 16}
    settings |= {"evaluate": "none", "holdout": 0}
    job = prepare(uneven, settings, out=None, resume=False, overwrite=False)
    objective, at, order = objective_of(job, False), ImageSet.at, []
    objective._stream(1, None)
    of_classes, matched = objective._loss, []

    def gather(self, positions):
        order.append(threading.current_thread().name)
        return at(self, positions)

    def match(*arguments):
        matched.append(arguments)
        end = time.monotonic() + 60
        while len(order) < min(len(matched) + 1, 5):
            assert time.monotonic() < end, "the next group's images are not on their way"
        return of_classes(*arguments)

    monkeypatch.setattr(ImageSet, "at", gather)
    monkeypatch.setattr(objective, "_loss", match)
    objective.backward(0)
    assert len(order) == 5
    assert all(name.startswith("real images") for name in order)
