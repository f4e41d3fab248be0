"""A few rows of a space at a time: the gradient of all, without a tensor of all for each few."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ld3m.spaces import PixelSpace, keep_rows, only_rows


class _Largest(TorchDispatchMode):
    """The most numbers that an operation returns in new memory."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        given = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.fixture
def space():
    images = torch.rand(1000, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return PixelSpace(images, torch.full((3,), 0.5), torch.full((3,), 0.25))


def loss_of(images):
    return (images.square().flatten(1).sum(1) * torch.arange(1, len(images) + 1)).sum()


def test_the_gradient_is_that_of_the_whole(space):
    groups = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).split(16)
    for rows in groups:
        loss_of(space.render(rows, ())).backward()
    want, space.parameters["pixels"].grad = space.parameters["pixels"].grad, None
    for rows in groups:
        with only_rows(space, rows) as few:
            loss_of(space.render(few, ())).backward()
    assert torch.equal(space.parameters["pixels"].grad, want)


def test_no_tensor_of_all_is_made_for_a_few(space):
    rows = torch.arange(100, 116)
    space.parameters["pixels"].grad = torch.zeros_like(space.parameters["pixels"])
    with _Largest() as largest, only_rows(space, rows) as few:
        loss_of(space.render(few, ())).backward()
    assert largest.numbers == 16 * 48


def test_an_error_leaves_the_space_whole(space):
    whole = dict(space.parameters)
    with pytest.raises(RuntimeError, match="halfway"), only_rows(space, torch.arange(3)):
        raise RuntimeError("halfway")
    assert space.parameters == whole
    assert space.parameters["pixels"].grad is None


def test_rows_of_a_part_are_named_as_in_the_whole(space):
    keep_rows(space, torch.arange(500, 600))
    with only_rows(space, torch.tensor([7, 3])) as few:
        assert few.tolist() == [0, 1]
        assert space.rows.tolist() == [507, 503]
    assert len(space.rows) == 100
