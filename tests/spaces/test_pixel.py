"""Pixels as parameters."""

import torch

from ld3m.spaces import PixelSpace

MEAN, STD = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.1, 0.2, 0.4])
IMAGES = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_the_start_renders_as_the_images():
    space = PixelSpace(IMAGES, MEAN, STD)
    torch.testing.assert_close(space.render(torch.tensor([2, 0]), (0,)), IMAGES[[2, 0]])
    assert set(space.parameters) == {"pixels"}


def test_parameters_are_in_normalised_units():
    space = PixelSpace(IMAGES, MEAN, STD)
    torch.testing.assert_close(space.parameters["pixels"][1, 2], (IMAGES[1, 2] - 0.8) / 0.4)
    cotangent = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    space.render(torch.arange(4), (0,)).backward(cotangent)
    torch.testing.assert_close(space.parameters["pixels"].grad, cotangent * STD.view(3, 1, 1))


def test_rows_that_are_not_rendered_get_no_gradient():
    space = PixelSpace(IMAGES, MEAN, STD)
    space.render(torch.tensor([3, 1]), (0,)).sum().backward()
    assert (space.parameters["pixels"].grad.flatten(1).norm(dim=1) > 0).tolist() == [False, True, False, True]


def test_projection_clamps_to_what_can_be_shown():
    space = PixelSpace(IMAGES, MEAN, STD)
    with torch.no_grad():
        space.parameters["pixels"][0], space.parameters["pixels"][1] = 100, -100
    space.project()
    shown = space.parameters["pixels"].detach() * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    torch.testing.assert_close(shown[0], torch.ones(3, 5, 5))
    torch.testing.assert_close(shown[1], torch.zeros(3, 5, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(shown[2:], IMAGES[2:])
    assert space.parameters["pixels"].is_leaf
    assert space.parameters["pixels"].requires_grad


def test_black_and_white_pixels_move_whatever_the_statistics():
    """Rounded outside of [0, 1], they would have no gradient for good."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        mean, std = torch.rand(3, generator=draw), torch.rand(3, generator=draw) / 2 + 1e-3
        for colour in (0.0, 1.0):
            space = PixelSpace(torch.full((1, 3, 1, 1), colour), mean, std)
            with torch.no_grad():
                space.parameters["pixels"].add_(20 * colour - 10)
            space.project()
            space.render(torch.tensor([0]), (0,)).sum().backward()
            assert (space.parameters["pixels"].grad.flatten() > 0).all()
