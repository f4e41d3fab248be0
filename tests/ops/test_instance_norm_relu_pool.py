"""Instance norm, ReLU and pooling against their reference, forward and all three gradients, in every backend."""

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import HAS_TRITON, INTERPRET
from ld3m.ops.instance_norm_relu_pool import (
    _instance_norm_relu_pool,
    _instance_norm_relu_pool_bwd,
    instance_norm_relu_pool,
    instance_norm_relu_pool_reference,
    supports,
)

SHAPES = {
    "empty": (0, 3, 4, 4),
    "one window": (2, 1, 2, 2),
    "odd halves": (3, 5, 6, 10),
    "one row of windows": (1, 3, 2, 14),
    "one column of windows": (1, 3, 14, 2),
    "many small": (37, 9, 4, 4),
    "rows over blocks": (1, 3, 66, 70),
    "wide": (1, 1, 4, 1100),
    "large": (1, 1, 256, 256),
}
UNPOOLED = {**SHAPES, "odd": (2, 3, 9, 41), "one pixel": (3, 2, 1, 1)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def make(device):
    """Make (x, weight, bias, cotangent), with means well away from 0."""

    def inputs(shape=(3, 5, 6, 10), dtype=torch.float32, pool=True):
        B, C, H, W = shape
        draw = torch.Generator().manual_seed(1)
        x = 2 * torch.randn(shape, generator=draw) + torch.linspace(-3, 3, C)[:, None, None]
        weight, bias = torch.randn(2, C, generator=draw)
        cotangent = torch.randn(B, C, H // 2, W // 2, generator=draw) if pool else torch.randn(shape, generator=draw)
        x, weight, bias, cotangent = (t.to(device, dtype) for t in (x, weight, bias, cotangent))
        return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), cotangent

    return inputs


def all_results(function, x, weight, bias, cotangent, **options):
    y = function(x, weight, bias, **options)
    return y, *torch.autograd.grad(y, (x, weight, bias), cotangent)


def exact_results(x, weight, bias, cotangent, **options):
    x, weight, bias = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    return all_results(instance_norm_relu_pool_reference, x, weight, bias, cotangent.double(), **options)


@pytest.fixture
def compare(assert_as_good_as_eager):
    """Compare result and gradients of a backend, and that of eager, with those in float64."""

    def check(inputs, backend, pool=True):
        if reason := supports(backend, *inputs[:3]):
            pytest.skip(reason)
        got = all_results(instance_norm_relu_pool, *inputs, pool=pool, backend=backend)
        eager = all_results(instance_norm_relu_pool_reference, *inputs, pool=pool)
        floor = 2**-7 if INTERPRET and inputs[0].dtype == torch.bfloat16 else 1e-6  # the interpreter cuts bfloat16 off
        for result in zip(got, eager, exact_results(*inputs, pool=pool), strict=True):
            assert_as_good_as_eager(*result, floor)
        return got

    return check


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_eager(shape, dtype, backend, make, compare):
    results = compare(make(SHAPES[shape], dtype), backend)
    assert all(t.is_contiguous() for t in results)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_channels_last(shape, dtype, pool, make, compare):
    """The native kernels take that layout and keep it, forward and backward."""
    inputs = make(SHAPES[shape], dtype, pool=pool)
    x = inputs[0].detach().contiguous(memory_format=torch.channels_last)
    if not x.is_cpu or x.is_contiguous():
        pytest.skip("one layout")
    y, grad, *_ = compare((x.requires_grad_(), *inputs[1:]), "native", pool)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", UNPOOLED)
def test_without_pooling(shape, dtype, backend, make, compare):
    compare(make(UNPOOLED[shape], dtype, pool=False), backend, pool=False)


@pytest.mark.parametrize("shape", ["odd halves", "rows over blocks"])
def test_large_mean(shape, backend, make, compare):
    """Deviations from the mean must not drown in it."""
    x, *others = make(SHAPES[shape])
    compare(((x.detach() + 1000).requires_grad_(), *others), backend)


def test_constant_planes(backend, make, compare):
    """Where nothing deviates, the bias is left, and epsilon bounds the gradient."""
    x, weight, _, cotangent = make()
    bias = torch.tensor([1.0, -1.0, 0.5, -0.25, 2.0], device=x.device, requires_grad=True)
    y, *_ = compare((torch.full_like(x, 3.0).requires_grad_(), weight, bias, cotangent), backend)
    torch.testing.assert_close(y, bias.relu()[:, None, None].expand_as(y), atol=1e-4, rtol=0)


def test_epsilon(backend, make):
    inputs = make()
    for eps in (1e-6, 0.5):
        got = all_results(instance_norm_relu_pool, *inputs, eps=eps, backend=backend)
        want = all_results(instance_norm_relu_pool_reference, *inputs, eps=eps)
        torch.testing.assert_close(got, want, atol=5e-6, rtol=1e-5)


def test_nan_stays_in_its_plane(backend, make):
    x, weight, bias, _ = make()
    x.detach()[1, 2, 3, 4] = torch.nan
    is_nan = instance_norm_relu_pool(x, weight, bias, backend=backend).isnan()
    assert is_nan[1, 2].all()
    assert is_nan.sum() == is_nan[1, 2].numel()


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "part of images", "part of pixels", "odd offset"])
def test_layouts(layout, backend, make, compare):
    x, weight, bias, cotangent = make((4, 6, 8, 8))
    views = {
        "transposed": lambda t: t.transpose(2, 3),
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "part of images": lambda t: t[1:],
        "part of pixels": lambda t: t[:, :, 2:, 2:],
        "odd offset": lambda t: t.flatten()[3:-21].view(-1, 6, 2, 2),
    }
    x = views[layout](x.detach()).requires_grad_()
    wide = torch.stack([weight, bias], 1).detach().requires_grad_()
    weight, bias = wide[:, 0], wide[:, 1]  # strided
    cotangent = cotangent.flatten()[0].expand(x.shape[0], 6, x.shape[2] // 2, x.shape[3] // 2)
    compare((x, weight, bias, cotangent), backend)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("function", [instance_norm_relu_pool_reference, instance_norm_relu_pool])
def test_gradient(function, pool, make):
    inputs = make((2, 2, 4, 2), torch.float64)[:3]
    assert torch.autograd.gradcheck(lambda *inputs: function(*inputs, pool=pool), inputs)


def test_same_result_twice(backend, make):
    for shape in ("many small", "rows over blocks"):
        inputs = make(SHAPES[shape])
        first, second = (all_results(instance_norm_relu_pool, *inputs, backend=backend) for _ in range(2))
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_same_result_by_any_number_of_threads(backend, make, monkeypatch):
    inputs, results = make(SHAPES["many small"]), []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(all_results(instance_norm_relu_pool, *inputs, backend=backend))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_keeps_only_its_input_and_statistics(backend, make):
    x, weight, bias, _ = make()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        instance_norm_relu_pool(x, weight, bias, backend=backend)
    assert sorted(t.numel() for t in kept) == sorted([x.numel(), 5, 5, 15, 15])


@pytest.mark.parametrize("pool", [True, False])
def test_opcheck(pool, backend, make):
    for x, weight, bias, _ in (make(), make(SHAPES["empty"])):
        torch.library.opcheck(_instance_norm_relu_pool, (x, weight, bias, 1e-5, pool, backend))


def test_opcheck_of_the_gradient(backend, make):
    x, weight, bias, cotangent = (t.detach() for t in make())
    _, mean, rstd = _instance_norm_relu_pool(x, weight, bias, 1e-5, True, backend)
    arguments = (cotangent, x, weight, bias, mean, rstd, 1e-5, True, backend)
    torch.library.opcheck(_instance_norm_relu_pool_bwd, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, make, dynamic):
    *inputs, cotangent = make()
    compiled = torch.compile(
        lambda *inputs: instance_norm_relu_pool(*inputs, backend=backend) * 2,
        fullgraph=True,
        backend="aot_eager",
        dynamic=dynamic,
    )
    got = all_results(compiled, *inputs, cotangent)
    y, *grads = all_results(instance_norm_relu_pool, *inputs, 2 * cotangent, backend=backend)
    torch.testing.assert_close(got, (2 * y, *grads))


def test_gradients_of_some_inputs_only(backend, make):
    x, weight, bias, cotangent = make()
    want = all_results(instance_norm_relu_pool_reference, x, weight, bias, cotangent)[1:]
    for k, wanted in enumerate((x, weight, bias)):
        others = [t if t is wanted else t.detach() for t in (x, weight, bias)]
        y = instance_norm_relu_pool(*others, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(y, wanted, cotangent)[0], want[k], atol=5e-6, rtol=1e-5)


def test_refuses_a_second_derivative(backend, make):
    *inputs, cotangent = make()
    y = instance_norm_relu_pool(*inputs, backend=backend)
    grad = torch.autograd.grad(y, inputs[0], cotangent, create_graph=True)[0]
    with pytest.raises(BackendError, match="no second derivative; use instance_norm_relu_pool_reference"):
        grad.sum().backward()


def test_refuses_functorch(make):
    x, weight, bias, _ = (t.detach() for t in make())
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.grad(lambda x: instance_norm_relu_pool(x, weight, bias).sum())(x)


def test_refuses_wrong_inputs(make):
    x, weight, bias, _ = make()
    with pytest.raises(InputError, match=r"floating x \(B, C, H, W\) .* got torch.float32 \(3, 5, 6\)"):
        instance_norm_relu_pool(x[..., 0], weight, bias)
    with pytest.raises(InputError, match=r"H, W > 0, got torch.float32 \(3, 5, 0, 10\)"):
        instance_norm_relu_pool(x[:, :, :0], weight, bias)
    with pytest.raises(InputError, match="floating x"):
        instance_norm_relu_pool(x.int(), weight, bias)
    for odd in (x[:, :, 1:], x[..., 1:]):
        with pytest.raises(InputError, match=r"even map to pool, got .* pass pool=False"):
            instance_norm_relu_pool(odd, weight, bias)
        assert instance_norm_relu_pool(odd, weight, bias, pool=False).shape == odd.shape
    with pytest.raises(InputError, match=r"weight \(5,\) torch.float32 .* got \(4,\)"):
        instance_norm_relu_pool(x, weight[:4], bias)
    with pytest.raises(InputError, match=r"bias .* got \(5,\) torch.float64 .*; convert it"):
        instance_norm_relu_pool(x, weight, bias.double())


def test_refuses_backends_by_name(make):
    inputs = make(dtype=torch.float64)[:3]
    for backend in ("native", "triton"):
        with pytest.raises(BackendError, match=f"{backend} cannot take"):
            instance_norm_relu_pool(*inputs, backend=backend)
    assert supports("eager", *inputs) == ""


@pytest.mark.skipif(not HAS_TRITON or INTERPRET, reason="compiled in the run without the interpreter")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("window", "planes", "block"), [(4, 1, 512), (4, 8, 64), (1, 1, 2048), (1, 32, 64)])
def test_compiles_to_machine_code(window, planes, block, capability):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ld3m.kernels import instance_norm_relu_pool as kernels

    constants = {"WINDOW": window, "PLANES": planes, "BLOCK": block}
    assert window * planes * block == kernels.TILE
    kinds = {
        **dict.fromkeys(("planes", "channels", "windows", "width"), "i32"),
        **dict.fromkeys(("mean_out", "rstd_out", "mean_in", "rstd_in", "sums"), "*fp32"),
        **dict.fromkeys(constants, "constexpr"),
        "eps": "fp32",
    }
    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    assert len(names) == 2
    for name in names:
        kernel = getattr(kernels, name)
        signature = {key: kinds.get(key, "*bf16") for key in kernel.arg_names}
        aligned = [(k,) for k, kind in enumerate(signature.values()) if kind[0] in "*i"]
        source = ASTSource(kernel, signature, constants, {key: [["tt.divisibility", 16]] for key in aligned})
        built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": kernels.WARPS})
        assert built.asm["cubin"]
        assert ("ld.global.b32" if window == 4 else "ld.global.v4") in built.asm["ptx"], name  # pairs | runs of pixels
