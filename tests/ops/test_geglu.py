"""GEGLU against its reference, forward and gradient, in every backend."""

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import missing
from ld3m.ops.geglu import _geglu, _geglu_bwd, geglu, geglu_reference, supports

SHAPES = {
    "empty": (0, 8),
    "no width": (3, 0),
    "one": (2,),
    "odd": (3, 5, 2 * 7),
    "whole": (4, 2 * 64),
    "odd end": (2, 3, 90),
}


@pytest.fixture(params=["native", "eager"])
def backend(request, device) -> str:
    if reason := missing(request.param, torch.empty(0, device=device)):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def make(device):
    def inputs(shape=(3, 5, 14), dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)
        halves = 3 * torch.randn(*shape, generator=draw)
        cotangent = torch.randn(*shape[:-1], shape[-1] // 2, generator=draw)
        return halves.to(device, dtype).requires_grad_(), cotangent.to(device, dtype)

    return inputs


def both(function, halves, cotangent, **options):
    y = function(halves, **options)
    return y, torch.autograd.grad(y, halves, cotangent)[0]


def precise(halves, cotangent):
    return halves.detach().double().requires_grad_(), cotangent.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_eager(shape, dtype, backend, make, assert_as_good_as_eager):
    inputs = make(SHAPES[shape], dtype)
    if reason := supports(backend, inputs[0]):
        pytest.skip(reason)
    results = both(geglu, *inputs, backend=backend), both(geglu_reference, *inputs)
    for result in zip(*results, both(geglu_reference, *precise(*inputs)), strict=True):
        assert_as_good_as_eager(*result)


def test_over_the_whole_range(backend, make, assert_as_good_as_eager):
    """Where the gate saturates, and where its square would overflow the exponential."""
    gate = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([-1e6, -100.0, 0.0, 100.0, 1e6])])
    halves = torch.stack([torch.ones_like(gate), gate], 1).requires_grad_()
    inputs = halves, torch.ones(len(gate), 1)
    results = both(geglu, *inputs, backend=backend), both(geglu_reference, *inputs)
    for got, eager, exact in zip(*results, both(geglu_reference, *precise(*inputs)), strict=True):
        inner = gate.abs() < 13
        assert_as_good_as_eager(got[inner], eager[inner], exact[inner])
        torch.testing.assert_close(got, exact.float())


def test_nan_stays(backend, make):
    halves = torch.tensor([[1.0, float("nan")], [float("nan"), 1.0], [1.0, 1.0]], requires_grad=True)
    y, grad = both(geglu, halves, torch.ones(3, 1), backend=backend)
    assert y.isnan().flatten().tolist() == [True, True, False]
    assert grad.isnan().any(1).tolist() == [True, True, False]


@pytest.mark.parametrize("layout", ["transposed", "part", "offset", "expanded"])
def test_layouts(layout, backend, make):
    halves, cotangent = (t.detach() for t in make((6, 5, 14)))
    views = {
        "transposed": lambda t: t.transpose(0, 1),
        "part": lambda t: t[:, 1:, : t.shape[2] // 7 * 6],
        "offset": lambda t: t.flatten()[t.shape[2] :].view(-1, t.shape[2]),
        "expanded": lambda t: t[:1].expand(4, 5, t.shape[2]),
    }
    halves, cotangent = views[layout](halves), views[layout](cotangent)
    got = both(geglu, halves.requires_grad_(), cotangent, backend=backend)
    want = both(geglu_reference, halves.detach().clone().requires_grad_(), cotangent.clone())
    assert got[0].is_contiguous()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_threads_do_not_matter(make):
    inputs = make((37, 90))
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(both(geglu, *inputs, backend="native"))
    torch.set_num_threads(1)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_operators(backend, make):
    halves, cotangent = make()
    torch.library.opcheck(_geglu, (halves, backend))
    torch.library.opcheck(_geglu_bwd, (cotangent, halves.detach(), backend))


def test_gradient_in_float64(make):
    halves, _ = make((2, 6), torch.float64)
    torch.autograd.gradcheck(lambda halves: geglu(halves, backend="eager"), halves)


def test_compiles_whole(backend, make):
    halves, cotangent = make()
    compiled = torch.compile(lambda h: 2 * geglu(h, backend=backend), fullgraph=True, backend="aot_eager")
    got = both(compiled, halves, cotangent)
    want = both(geglu, halves, 2 * cotangent, backend=backend)
    torch.testing.assert_close(got, (2 * want[0], want[1]))


def test_refusals(make):
    halves, cotangent = make()
    for wrong in (torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64), torch.zeros(())):
        with pytest.raises(InputError, match=r"floating halves \(\.\.\., 2 D\)"):
            geglu(wrong)
    with pytest.raises(BackendError, match="no Triton kernel"):
        geglu(halves, backend="triton")
    with pytest.raises(BackendError, match=r"float32 and bfloat16 on cpu, got torch\.float64"):
        geglu(halves.double(), backend="native")
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.grad(lambda h: geglu(h).sum())(halves.detach())
    grad = torch.autograd.grad(geglu(halves), halves, cotangent, create_graph=True)[0]
    with pytest.raises(BackendError, match="no second derivative"):
        grad.sum().backward()
