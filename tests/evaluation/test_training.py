"""One training: what is learnt, averaged, drawn and tested."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ld3m.evaluation import training
from ld3m.evaluation.protocols import Recipe
from ld3m.evaluation.training import NormalizedImages, accuracy, train, train_and_test
from ld3m.matching import dsa
from ld3m.networks import build
from ld3m.runtime import seeds


@pytest.fixture
def first(toy):
    """The first image of each class."""
    positions = torch.cat([toy.train.of_class(k)[:1] for k in range(3)])
    return toy.train.batch(positions), toy.train.labels[positions]


def last(outcomes: list[list[float]]) -> float:
    """The accuracy after the last epoch of the only repeat."""
    ((accuracy,),) = outcomes
    return accuracy


class Scalar(nn.Module):
    """Logits (w, 0, 0) whatever the images are."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return torch.cat([self.w.expand(len(images), 1), torch.zeros(len(images), 2)], 1)


def test_a_separable_set_is_learnt(toy, brief, first):
    got = last(train_and_test("ConvNet-w0.06", first[:1], first[1], toy, brief, [seeds.generator(0)]))
    assert got > 90  # chance is 33


def test_a_set_of_bytes_is_normalised_batch_by_batch_and_stays_as_it_is(toy):
    bytes_of = NormalizedImages(toy.train.images, toy, "cpu")
    at = torch.tensor([7, 0, 31])
    assert bytes_of.images.data_ptr() == toy.train.images.data_ptr()
    assert torch.equal(bytes_of[at], toy.normalize(toy.train.batch(at)))
    floats = toy.train.batch(range(60)).bfloat16()
    assert torch.equal(NormalizedImages(floats, toy, "cpu")[at], toy.normalize(floats[at].float()))


def test_same_seed_same_weights_other_seed_others(toy, brief, first):
    def logits(seed: int) -> torch.Tensor:
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            nn.init.normal_(parameter, generator=generator)
        train([network], [toy.normalize(first[0])], first[1], brief, Recipe(0.01, 5, 0.8), [generator])
        return network(toy.test.batch(range(5))).detach()

    assert torch.equal(logits(3), logits(3))
    assert not torch.equal(logits(3), logits(4))


def test_global_random_state_is_left_alone(toy, brief, first):
    for name, data, images in (("ConvNet-w0.06", toy, first[0]), ("ViT-w0.02", _wide(toy), _enlarge(first[0]))):
        torch.manual_seed(5)
        state = torch.get_rng_state()
        results = [train_and_test(name, [images], first[1], data, brief, [seeds.generator(1)]) for _ in range(2)]
        assert results[0] == results[1]
        assert torch.equal(torch.get_rng_state(), state)


def _enlarge(images):
    return nn.functional.interpolate(images, size=(16, 16))


def _wide(data):
    """The toy data at 16 px, the least that ViT takes."""
    train_set, test_set = (replace(part, images=_enlarge(part.images)) for part in (data.train, data.test))
    return replace(data, train=train_set, test=test_set, resolution=16)


def test_tested_weights_are_the_average_of_the_recurrence(brief, monkeypatch):
    """SGD with momentum and weight decay by hand on one scalar, augmentation off."""
    monkeypatch.setattr(dsa, "augment", lambda images, generator: images)
    network, labels = Scalar(), torch.tensor([0, 1])
    train([network], [torch.zeros(2, 3, 8, 8)], labels, brief, Recipe(0.5, 4, 0.6), [torch.Generator()])

    w, momentum, average = 0.0, 0.0, 0.0
    for rate, decay in zip((0.5e-7, 0.25 + 0.25e-7, 0.5, 0.5), (0, 0.5, 0.6, 0.6), strict=True):
        p = torch.softmax(torch.tensor([w, 0, 0], dtype=torch.float64), 0)[0].item()
        momentum = 0.9 * momentum + (p - 0.5) + 5e-4 * w  # mean over a label 0 and a label 1
        w -= rate * momentum
        average = decay * average + (1 - decay) * w
    assert float(network.w.detach()) == pytest.approx(average, abs=1e-7)


@pytest.mark.parametrize(("batch", "sizes"), [(256, [5]), (2, [2, 2, 1])])
def test_an_epoch_sees_every_image_once(brief, monkeypatch, batch, sizes):
    seen = []
    monkeypatch.setattr(dsa, "augment", lambda images, generator: seen.append(images[:, 0, 0, 0]) or images)
    images = torch.arange(5.0)[:, None, None, None].expand(-1, 3, 8, 8)
    labels = torch.zeros(5, dtype=torch.int64)
    train([Scalar()], [images], labels, replace(brief, batch=batch), Recipe(0.1, 2, 0.6), [torch.Generator()])
    assert [len(part) for part in seen] == sizes * 2
    assert sorted(torch.cat(seen[: len(sizes)]).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pixels", [1, 7 * 64, 10**6])
def test_accuracy_does_not_depend_on_the_chunks(toy, monkeypatch, pixels):
    class Brightest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong = nn.Parameter(torch.tensor([0.0, 0.0, -9.0]))  # never says "blue"

        def forward(self, images):
            assert not self.training
            return images.mean((2, 3)) + self.wrong

    monkeypatch.setattr(training, "_CHUNK_PIXELS", pixels)
    assert accuracy(Brightest(), toy) == pytest.approx(100 * 2 / 3)


def test_a_diverged_training_is_no_result_and_ends_early(toy, brief, first):
    protocol, epochs = replace(brief, recipes={"ConvNet": Recipe(1e30, 30, 0.8)}), []
    options = {"each_epoch": lambda: epochs.append(1)}
    generators = [seeds.generator(0)]
    assert train_and_test("ConvNet-w0.06", first[:1], first[1], toy, protocol, generators, **options) == [None]
    assert len(epochs) < 30


def test_of_repeats_trained_at_once_only_those_that_diverge_are_no_results(toy, brief, first):
    """Images that hold one NaN make one of three repeats diverge; the others end as they would without it."""
    broken = first[0].clone()
    broken[0, 0, 0, 0] = torch.nan
    sets, generators = [first[0], broken, first[0]], lambda: [seeds.generator(k) for k in range(3)]
    found = train_and_test("ConvNet-w0.06", sets, first[1], toy, brief.with_epochs(4), generators())
    whole = train_and_test("ConvNet-w0.06", [first[0]] * 3, first[1], toy, brief.with_epochs(4), generators())
    assert found == [whole[0], None, whole[2]] and None not in whole


def test_a_loss_that_is_not_finite_once_makes_a_training_diverge(toy, brief, first, monkeypatch):
    """Weights and later losses are finite: these losses have no gradient."""
    losses, true_loss = iter([torch.inf, *[0.0] * 7]), training._loss  # of two repeats in four epochs
    monkeypatch.setattr(training, "_loss", lambda *arguments: true_loss(*arguments) * 0 + next(losses))
    protocol = replace(brief, recipes={"ConvNet": Recipe(0.01, 4, 0.8)})
    generators = [seeds.generator(k) for k in range(2)]
    found = train_and_test("ConvNet-w0.06", [first[0], first[0]], first[1], toy, protocol, generators)
    assert found[0] is None and found[1] is not None


@pytest.mark.parametrize("repeats", [1, 2])
def test_gradients_are_scaled_down_to_the_norm_of_the_recipe(toy, brief, first, repeats):
    """The first step at a rate r, without decay and momentum's past, moves the weights by r times the clipped norm."""
    plain = replace(brief, weight_decay=0.0, augmentation="none", schedule="half-cosine")

    def moved(limit):
        recipe = Recipe(0.5, 2, 0.0, limit)
        networks = [build("ConvNet-w0.06", num_classes=3, resolution=8, generator=seeds.generator(k)) for k in range(2)]
        before = [nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks]
        averages, images = [], toy.normalise(first[0])

        def test(averaged):
            averages.append([nn.utils.parameters_to_vector(n.parameters()).detach() for n in averaged])

        generators = [seeds.generator(k) for k in range(repeats)]
        train(networks[:repeats], [images] * repeats, first[1], replace(plain, tested=2), recipe, generators, test=test)
        return torch.stack([(after - start).norm() for start, after in zip(before, averages[0], strict=False)])

    free = moved(None)
    limit = float(free.max()) / 0.5 / 3  # a third of the largest gradient
    torch.testing.assert_close(moved(limit), torch.full((repeats,), 0.5 * limit), rtol=1e-4, atol=0)
    assert torch.equal(moved(1e6), free)
