"""Instance norm with a residual and ReLU against its reference, forward and all gradients."""

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import missing
from ld3m.ops.instance_norm_add_relu import (
    instance_norm_add_relu,
    instance_norm_add_relu_reference,
    supports,
)

SHAPES = {
    "empty": (0, 3, 4, 4),
    "one pixel": (3, 2, 1, 1),
    "odd": (2, 5, 9, 7),
    "whole vectors": (3, 32, 4, 4),
    "odd end": (2, 37, 5, 3),
    "over a tile": (1, 18, 30, 31),
}
TAILS = {"residual": (True, True), "relu": (False, True), "nothing": (False, False)}  # has residual, has ReLU


@pytest.fixture(autouse=True)
def native():
    if reason := missing("native", torch.empty(0)):
        pytest.skip(reason)


def make(shape=(2, 5, 9, 7), dtype=torch.float32, has_residual=True):
    """Make (x, weight, bias, residual or None) and a cotangent, with means well away from 0."""
    draw = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(shape, generator=draw) + torch.linspace(-3, 3, shape[1])[:, None, None]
    weight, bias = torch.randn(2, shape[1], generator=draw)
    residual, cotangent = torch.randn(2, *shape, generator=draw)
    inputs = [t.to(dtype).requires_grad_() for t in (x, weight, bias, residual)]
    return (*inputs[:3], inputs[3] if has_residual else None), cotangent.to(dtype)


def all_results(function, inputs, cotangent, **options):
    y = function(*inputs, **options)
    return y, *torch.autograd.grad(y, [t for t in inputs if t is not None], cotangent)


def precise(inputs):
    return tuple(None if t is None else t.detach().double().requires_grad_() for t in inputs)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_eager(shape, dtype, tail, assert_as_good_as_eager):
    has_residual, relu = TAILS[tail]
    inputs, cotangent = make(SHAPES[shape], dtype, has_residual)
    got = all_results(instance_norm_add_relu, inputs, cotangent, relu=relu, backend="native")
    eager = all_results(instance_norm_add_relu_reference, inputs, cotangent, relu=relu)
    exact = all_results(instance_norm_add_relu_reference, precise(inputs), cotangent.double(), relu=relu)
    # One pixel deviates by nothing, which the scale 1 / sqrt(eps) makes 316 times as large as it should be.
    floor = 1e-4 if shape == "one pixel" else 1e-6
    for result in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*result, floor)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


def test_strided_inputs(assert_as_good_as_eager):
    (x, weight, bias, residual), cotangent = make((4, 6, 8, 8))
    wide = torch.stack([weight, bias], 1).detach()
    views = x.detach().mT[1:, :, 2:], wide[:, 0], wide[:, 1], residual.detach()[1:, :, 2:]
    inputs = [t.requires_grad_() for t in views]
    cotangent = cotangent.flatten()[0].expand(inputs[0].shape)
    got, eager = (all_results(f, inputs, cotangent) for f in (instance_norm_add_relu, instance_norm_add_relu_reference))
    exact = all_results(instance_norm_add_relu_reference, precise(inputs), cotangent.double())
    for result in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*result)


def test_float64_is_the_reference():
    inputs, cotangent = make(dtype=torch.float64)
    got, want = (all_results(f, inputs, cotangent) for f in (instance_norm_add_relu, instance_norm_add_relu_reference))
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
    assert "float32" in supports("native", *inputs)


def test_any_number_of_threads_gives_the_same(monkeypatch):
    inputs, cotangent = make((2, 37, 5, 3))
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(all_results(instance_norm_add_relu, inputs, cotangent))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_traced_code_takes_the_reference():
    inputs, _ = make()
    compiled = torch.compile(instance_norm_add_relu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), instance_norm_add_relu(*inputs), rtol=1e-5, atol=1e-5)


def test_no_second_derivative_without_a_word():
    inputs, _ = make()
    [grad] = torch.autograd.grad(instance_norm_add_relu(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.square().sum().backward()


@pytest.mark.parametrize("change", ["shape", "bias", "residual", "no relu"])
def test_what_does_not_fit_is_refused(change):
    (x, weight, bias, residual), _ = make()
    arguments = {
        "shape": ((x[0], weight, bias), "needs floating x"),
        "bias": ((x, weight, bias.double()), "needs bias"),
        "residual": ((x, weight, bias, residual[:, :, 1:]), "needs residual"),
        "no relu": ((x, weight, bias, residual), "before ReLU alone"),
    }
    given, message = arguments[change]
    with pytest.raises(InputError, match=message):
        instance_norm_add_relu(*given, relu=change != "no relu")


def test_a_forced_backend_that_cannot_is_an_error():
    with pytest.raises(BackendError, match="Triton"):
        instance_norm_add_relu(*make()[0], backend="triton")
