"""Features and codes of a generator, as parameters."""

import pytest
import torch
from torch.nn import functional as F

from ld3m.priors import load_stylegan
from ld3m.runtime.footprint import saved_bytes
from ld3m.spaces import GladSpace

LAYER, ROWS = 4, 5
BOTH = ("features", "codes")


@pytest.fixture(scope="module")
def generator():
    return load_stylegan("random:stylegan-32", dtype=torch.float64)


@pytest.fixture
def make(generator):
    def call(*, learn=BOTH, resolution=32, retain=1.0, micro_batch=ROWS, dtype=torch.float64):
        draw = torch.Generator().manual_seed(0)
        codes = generator.map(torch.randn(ROWS, 64, generator=draw))
        features = generator.features(codes, LAYER) + torch.randn(ROWS, 1, 1, 1, generator=draw)
        return GladSpace(
            generator, features.to(dtype), codes[:, 1 + LAYER :].to(dtype), layer=LAYER, learn=learn,
            resolution=resolution, retain=retain, micro_batch=micro_batch,
        )  # fmt: skip

    return call


def test_images_are_those_of_the_layers_left(make, generator):
    space, rows = make(), torch.tensor([3, 0])
    images = space.render(rows, (0,)).detach()
    made = generator.synthesize(space.parameters["features"][rows], space.parameters["codes"][rows], LAYER)
    assert torch.equal(images, ((made + 1) / 2).clamp(0, 1))
    assert torch.equal(images, space.render(rows, (1,)))  # nothing is random


@pytest.mark.parametrize("learn", [("features",), ("codes",), BOTH])
def test_only_what_is_learnt_gets_a_gradient(learn, make):
    space = make(learn=learn)
    space.render(torch.tensor([1, 2]), (0,)).square().sum().backward()
    assert list(space.parameters) == list(BOTH)
    for name, parameter in space.parameters.items():
        assert parameter.is_leaf
        assert parameter.requires_grad == (name in learn)
        if name in learn:
            assert (parameter.grad.flatten(1).norm(dim=1) > 0).tolist() == [False, True, True, False, False]
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("retain", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("micro_batch", [1, 2, 9])
def test_images_and_gradients_are_the_same_whatever_is_kept(retain, micro_batch, make):
    """Up to 1e-10: the modulation's norm is of a batch, and cancels but for the 1e-8 beside it."""
    found = []
    for space in (make(), make(retain=retain, micro_batch=micro_batch)):
        images = space.render(torch.arange(ROWS), (0,))
        images.mul(torch.linspace(-1, 1, images.numel()).view_as(images)).sum().backward()
        found.append((images.detach(), *(parameter.grad for parameter in space.parameters.values())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


def test_less_is_held_where_less_is_kept(make):
    rows = torch.arange(ROWS)
    held = [
        saved_bytes(space.generator, lambda space=space: space.render(rows, (0,)))
        for space in (make(retain=share, micro_batch=1) for share in (0.0, 0.4, 1.0))
    ]
    assert held[0] < 0.2 * held[2]
    assert 0.3 * held[2] < held[1] < 0.5 * held[2]


def test_images_of_another_size_are_resized_with_antialiasing(make, generator):
    space = make(resolution=12)
    made = generator.synthesize(space.parameters["features"], space.parameters["codes"], LAYER)
    smooth = F.interpolate(made, (12, 12), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(space.render(torch.arange(ROWS), ()), ((smooth + 1) / 2).clamp(0, 1))


def test_the_parameters_are_copies_in_their_own_precision(make):
    space = make(dtype=torch.float32)
    assert {parameter.dtype for parameter in space.parameters.values()} == {torch.float32}
    assert space.render(torch.arange(2), ()).dtype == torch.float32
    before = {name: parameter.detach().clone() for name, parameter in space.parameters.items()}
    space.project()
    assert all(torch.equal(before[name], parameter) for name, parameter in space.parameters.items())


@pytest.mark.parametrize("layer", [0, 4, 7])
def test_the_published_scheme_gives_the_same_gradients(layer, generator, published_glad, relative_error):
    draw = torch.Generator().manual_seed(layer)
    codes = generator.map(torch.randn(3, 64, generator=draw))
    features = generator.features(codes, layer)
    codes, cotangent = codes[:, 1 + layer :], torch.randn(3, 3, 32, 32, generator=draw).double()
    zero, one = (0.0,) * 3, (1.0,) * 3
    published = published_glad.iteration(
        generator, features, codes, layer, lambda images: cotangent, split=3, mean=zero, std=one
    )
    leaves = [tensor.clone().requires_grad_() for tensor in (features, codes)]
    images = (generator.synthesize(*leaves, layer) + 1) / 2
    for got, want in zip(torch.autograd.grad(images, leaves, cotangent), published, strict=True):
        assert relative_error(got, want) <= 1e-12
    split = published_glad.iteration(
        generator, features, codes, layer, lambda images: cotangent, split=2, mean=zero, std=one
    )
    for got, want in zip(split, published, strict=True):
        assert relative_error(got, want) <= 1e-8
