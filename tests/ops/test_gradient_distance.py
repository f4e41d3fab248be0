"""The layer-wise cosine distance against its reference and the law of matching/dc.py, in every backend."""

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.matching.dc import METRICS
from ld3m.matching.gradient import with_gradients
from ld3m.ops.backends import HAS_TRITON, INTERPRET, missing
from ld3m.ops.gradient_distance import (
    _gradient_distance,
    distances_and_directions,
    gradient_distance_reference,
    supports,
)

SHAPES = {
    "no rows": [(0, 5)],
    "no columns": [(3, 0), (2, 4)],
    "one": [(1, 1)],
    "odd": [(9, 41), (3, 1, 1, 1), (1, 341), (5, 3, 3, 3)],
    "an empty layer": [(4, 3), (0, 2, 3, 3), (2, 7)],
    "more than a block": [(2, 2500), (3, 128, 3, 3)],
    "more than a launch": [(1 + k % 2, 1 + k % 3) for k in range(40)],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["triton", "eager"])
def backend(request, device) -> str:
    if reason := missing(request.param, torch.empty(0, device=device)):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def make(device):
    """Make two lists of gradients that point in somewhat the same direction."""

    def inputs(shapes=SHAPES["odd"], dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)
        own = [torch.randn(shape, generator=draw) for shape in shapes]
        target = [a + torch.randn(a.shape, generator=draw) for a in own]
        return [a.to(device, dtype).requires_grad_() for a in own], [b.to(device, dtype) for b in target]

    return inputs


def gradient_distance(own, target, **options):
    """The distance of a single class, as the losses make a function of it."""
    distances, direction = distances_and_directions(stacked(own), stacked(target), **options)
    return with_gradients(distances[0], own, [d[0] for d in direction])


def both(function, own, target, **options):
    distance = function(own, target, **options)
    return distance, torch.autograd.grad(1.7 * distance, own)


def stacked(gradients):
    return [g.detach()[None] for g in gradients]


def precise(own, target):
    return [a.detach().double().requires_grad_() for a in own], [b.double() for b in target]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", SHAPES)
def test_as_good_as_eager(shapes, dtype, backend, make, assert_as_good_as_eager):
    own, target = make(SHAPES[shapes], dtype)
    distance, grads = both(gradient_distance, own, target, backend=backend)
    eager, eager_grads = both(gradient_distance_reference, own, target)
    exact, exact_grads = both(gradient_distance_reference, *precise(own, target))
    floor = 2**-8 if INTERPRET and dtype == torch.bfloat16 else 1e-6  # the interpreter cuts bfloat16 off
    assert_as_good_as_eager(distance.detach(), eager, exact, floor)
    for result in zip(grads, eager_grads, exact_grads, strict=True):
        assert_as_good_as_eager(*result, floor)


def test_law_of_matching(backend, make):
    own, target = make()
    own[0].data[2] = 0  # rows without a gradient, on one side, the other, and both
    target[0][3] = 0
    own[3].data[1], target[3][1] = 0, 0
    own, target = stacked(own), stacked(target)
    distance, direction = distances_and_directions(own, target, backend=backend)
    want, want_direction = METRICS["layerwise-cosine"](own, target)
    torch.testing.assert_close(distance, want)
    torch.testing.assert_close(direction, want_direction)
    assert not distance.requires_grad and not any(d.requires_grad for d in direction)


def test_classes_keep_apart(backend, make):
    classes = [make([(4, 6), (3, 2, 2, 2)]) for _ in range(3)]
    for k, (own, target) in enumerate(classes):
        own[0].data.mul_(1 - k), target[1].add_(k)
    distances, directions = distances_and_directions(
        *([torch.cat(layer) for layer in zip(*map(stacked, side), strict=True)] for side in zip(*classes, strict=True)),
        backend=backend,
    )
    for k, (own, target) in enumerate(classes):
        distance, grads = both(gradient_distance_reference, own, target)
        torch.testing.assert_close(distances[k], distance.detach())
        torch.testing.assert_close([1.7 * d[k] for d in directions], list(grads))


def test_values():
    own, target = [torch.tensor([[3.0, 4.0], [1.0, 0.0]])], [torch.tensor([[4.0, 3.0], [-2.0, 0.0]])]
    assert float(gradient_distance(own, target)) == pytest.approx(1 - 24 / 25 + 2, abs=1e-5)


@pytest.mark.parametrize("function", [gradient_distance_reference, gradient_distance])
def test_gradient(function, make):
    own, target = make([(2, 5), (3, 2, 2, 2)], torch.float64)
    assert torch.autograd.gradcheck(lambda *own: function(own, target), own)


def test_only_some_of_them_want_a_gradient(backend, make):
    own, target = make()
    own[1].requires_grad_(False)
    gradient_distance(own, target, backend=backend).backward()
    assert own[1].grad is None
    direction = distances_and_directions(stacked(own), stacked(target), backend=backend)[1]
    assert all(torch.equal(own[k].grad, direction[k][0]) for k in (0, 2, 3))


def test_layouts(backend, make):
    own, target = make([(4, 6, 3, 3), (8, 10)])
    views = [a.detach().to(memory_format=torch.channels_last) if a.ndim == 4 else a.detach().T[1:, 2:] for a in own]
    others = [b.transpose(2, 3) if b.ndim == 4 else b.T[1:, 2:] for b in target]
    got = distances_and_directions(stacked(views), stacked(others), backend=backend)
    want = distances_and_directions(*([g.contiguous()[None] for g in gs] for gs in (views, others)))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_same_result_twice(backend, make):
    first, second = (distances_and_directions(*map(stacked, make()), backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(*pair) for pair in zip(first[1], second[1], strict=True))


def test_opcheck(backend, make):
    own, target = make()
    torch.library.opcheck(_gradient_distance, ([a.detach() for a in own], target, 1, backend))


def test_compiles_whole(backend, make):
    own, target = map(stacked, make())
    compiled = torch.compile(
        lambda own, target: distances_and_directions(own, target, backend=backend), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(own, target), distances_and_directions(own, target, backend=backend))


def test_refuses_a_second_derivative(backend, make):
    own, target = make()
    cotangent = torch.ones((), device=own[0].device, requires_grad=True)
    grads = torch.autograd.grad(gradient_distance(own, target, backend=backend), own, cotangent, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


def test_refuses_functorch(make):
    own, target = make()
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.grad(lambda a: gradient_distance([a], target[:1]))(own[0].detach())


def test_refuses_wrong_inputs(make):
    own, target = make()
    with pytest.raises(InputError, match="equally long lists of tensors, got 4 and 3"):
        gradient_distance(own, target[:3])
    with pytest.raises(InputError, match="got 0 and 0"):
        gradient_distance([], [])
    with pytest.raises(InputError, match=r"got torch.float32 \(41,\) at 1; leave biases and norms out"):
        gradient_distance([own[0], own[0][0]], [target[0], target[0][0]])
    with pytest.raises(InputError, match=r"got at 1 \(3, 1, 1, 1\) .* and \(1, 341\)"):
        gradient_distance(own[:2], [target[0], target[2]])
    with pytest.raises(InputError, match=r"all torch.float32 on .* got at 0 .* torch.float64"):
        gradient_distance(own[:1], [target[0].double()])


def test_refuses_backends_by_name(make):
    own, target = make(dtype=torch.float64)
    with pytest.raises(BackendError, match="no native kernel"):
        gradient_distance(own, target, backend="native")
    assert supports("triton", *own, *target)
    assert supports("eager", *own, *target) == ""


@pytest.mark.skipif(not HAS_TRITON or INTERPRET, reason="compiled in the run without the interpreter")
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_to_machine_code(capability):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ld3m.kernels.gradient_distance import LAYERS, gradient_distance_kernel

    layers = ("*fp32",) * LAYERS
    constants = {
        "STARTS": tuple(range(0, 10 * LAYERS, 10)),
        "WIDTHS": (27, *(1152,) * (LAYERS - 1)),
        "EPSILON": 1e-6,
        "BLOCK": 1024,
    }
    signature = {"own": layers, "target": layers, "direction": layers, "losses": "*fp32"}
    source = ASTSource(gradient_distance_kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    assert compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm["cubin"]
