"""The implementations of attention against its definition, and which one is taken."""

import math
import sys
import types

import pytest
import torch
from torch import Tensor

from ld3m.priors.frozen import attention as room

SHAPES = [(1, 1, 1, 8), (2, 5, 1, 16), (2, 16, 4, 8), (1, 9, 1, 384), (3, 33, 2, 40)]


def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "bmm"])
def test_output_and_gradients_are_those_of_the_definition(relative_error, backend, shape):
    inputs = draw(shape)
    cotangent = torch.randn(shape, dtype=torch.float64)
    got, want = room.attention(backend)(*inputs), definition(*inputs)
    assert relative_error(got, want) <= 1e-13
    for one, other in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (got, want)), strict=True):
        assert relative_error(one, other) <= 1e-12


@pytest.mark.parametrize("backend", ["sdpa", "bmm"])
def test_half_precision_is_as_good_as_the_definitions(backend):
    inputs = draw((2, 64, 1, 64), torch.bfloat16)
    exact = definition(*(x.double() for x in inputs))
    errors = [(f(*inputs).double() - exact).abs().max() for f in (room.attention(backend), definition)]
    assert errors[0] <= 2 * errors[1]


class Query:
    """The shape and device of a query, which is all that the choice looks at."""

    def __init__(self, positions: int, width: int, is_cuda: bool = True) -> None:
        self.shape, self.is_cuda = (20, positions, 1, width), is_cuda


@pytest.mark.parametrize(
    ("positions", "width", "chosen"),
    # The levels of the ImageNet model at 128 and 256 px, the unconditional one, and a decoder's middle.
    [(256, 384, "bmm"), (64, 576, "bmm"), (16, 960, "bmm"), (1024, 384, "sdpa"), (256, 576, "bmm"), (64, 960, "bmm"),
     (256, 32, "sdpa"), (1024, 512, "sdpa")],
)  # fmt: skip
def test_wide_heads_with_few_positions_take_products_on_a_gpu(positions, width, chosen):
    assert room.choose(Query(positions, width)) == chosen
    assert room.choose(Query(positions, width, is_cuda=False)) == "sdpa"


def test_xformers_is_called_with_heads_third(monkeypatch):
    stub = types.ModuleType("xformers.ops")
    stub.memory_efficient_attention = definition
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", stub)
    room._xformers.cache_clear()
    inputs = draw((2, 5, 2, 8))
    assert torch.allclose(room.attention("xformers")(*inputs), room.attention("sdpa")(*inputs))
    room._xformers.cache_clear()
