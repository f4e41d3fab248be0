"""Group normalisation with SiLU against its reference, forward and input gradient, in every backend."""

import sys

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import HAS_TRITON, INTERPRET, missing
from ld3m.ops.group_norm_silu import _group_norm_silu, group_norm_silu, group_norm_silu_reference, supports

SHAPES = {  # (B, C, H, W), groups
    "empty": ((0, 8, 4, 4), 2),
    "no pixels": ((2, 8, 0, 3), 2),
    "one group": ((1, 2, 1, 1), 1),
    "one pixel": ((3, 12, 1, 1), 4),
    "odd": ((2, 6, 5, 7), 3),
    "odd blocks": ((2, 30, 3, 5), 5),
    "instance": ((2, 5, 9, 3), 5),
    "layer": ((2, 12, 6, 6), 1),
    "split": ((1, 8, 48, 41), 2),
    "split, odd blocks": ((1, 42, 37, 31), 7),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHANNELS_LAST = torch.channels_last


@pytest.fixture(params=["native", "triton", "eager"])
def backend(request, device) -> str:
    if reason := missing(request.param, torch.empty(0, device=device)):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def make(device):
    """Make (x, groups, weight, bias, cotangent), with means well away from 0."""

    def inputs(shape=(2, 6, 5, 7), groups=3, dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)
        x, cotangent = 2 * torch.randn(2, *shape, generator=draw)
        weight, bias = torch.randn(2, shape[1], generator=draw)
        offset = torch.linspace(-3, 3, shape[1])[:, None, None]
        x, cotangent = (t.to(device, dtype, memory_format=CHANNELS_LAST) for t in (x + offset, cotangent))
        return x.requires_grad_(), groups, weight.to(device, dtype), bias.to(device, dtype), cotangent

    return inputs


def both(function, x, groups, weight, bias, cotangent, **options):
    y = function(x, groups, weight, bias, **options)
    return y, torch.autograd.grad(y, x, cotangent)[0]


def precise(x, groups, weight, bias, cotangent):
    return x.detach().double().requires_grad_(), groups, weight.double(), bias.double(), cotangent.double()


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "alone"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_eager(shape, dtype, silu, backend, make, assert_as_good_as_eager):
    inputs = make(*SHAPES[shape], dtype)
    if reason := supports(backend, *inputs[:1], *inputs[2:4]):
        pytest.skip(reason)
    got = both(group_norm_silu, *inputs, silu=silu, backend=backend)
    eager = both(group_norm_silu_reference, *inputs, silu=silu)
    exact = both(group_norm_silu_reference, *precise(*inputs), silu=silu)
    floor = 2**-8 if INTERPRET and dtype == torch.bfloat16 else 1e-6  # the interpreter cuts bfloat16 off
    for result in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*result, floor)
        assert result[0].stride() == inputs[0].stride()


def test_large_mean(backend, make, assert_as_good_as_eager):
    """Deviations from the mean must not drown in it, be the group whole or split."""
    for case in ("odd", "split"):
        inputs = make(*SHAPES[case])
        inputs = ((inputs[0].detach() + 1000).requires_grad_(), *inputs[1:])
        results = [both(group_norm_silu, *inputs, backend=backend), both(group_norm_silu_reference, *inputs)]
        for result in zip(*results, both(group_norm_silu_reference, *precise(*inputs)), strict=True):
            assert_as_good_as_eager(*result)


def test_epsilon(backend, make):
    x, groups, weight, bias, _ = make()
    for eps in (1e-6, 0.5):
        got = group_norm_silu(x, groups, weight, bias, eps, backend=backend)
        torch.testing.assert_close(got, group_norm_silu_reference(x, groups, weight, bias, eps))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "part of samples", "part of pixels", "expanded"])
def test_layouts(layout, backend, make):
    x, groups, weight, bias, cotangent = make((4, 6, 5, 7))
    views = {
        "contiguous": lambda t: t.contiguous(),
        "transposed": lambda t: t.transpose(2, 3),
        "part of samples": lambda t: t[1:],
        "part of pixels": lambda t: t[:, :, 1:, 2:],
        "expanded": lambda t: t[:1, :, :, :1].expand(3, 6, 5, 4),
    }
    x, cotangent = views[layout](x.detach()), views[layout](cotangent)
    wide = torch.stack([weight, bias], 1)
    weight, bias = wide[:, 0], wide[:, 1]  # strided
    got = both(group_norm_silu, x.requires_grad_(), groups, weight, bias, cotangent, backend=backend)
    want = both(group_norm_silu, x.detach().clone().requires_grad_(), groups, weight, bias, cotangent.clone())
    assert got[0].is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_gives_channels_last_where_aten_takes_none(dtype, make, monkeypatch):
    """As on CUDA, where ATen's group normalisation refuses channels_last."""
    x, *rest = make(dtype=dtype)
    want = both(group_norm_silu, x, *rest, backend="eager")
    taken = []
    monkeypatch.setattr(
        sys.modules[group_norm_silu.__module__], "_as_aten_takes", lambda t: taken.append(t.contiguous()) or taken[-1]
    )
    got = both(group_norm_silu, x, *rest, backend="eager")
    assert len(taken) == 3  # forward, and both tensors of the backward pass
    torch.testing.assert_close(got, want)
    assert all(t.stride() == x.stride() for t in got)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("function", [group_norm_silu_reference, group_norm_silu])
def test_gradient(function, silu, make):
    x, groups, weight, bias, _ = make((2, 4, 3, 2), 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x: function(x, groups, weight, bias, silu=silu), x)


def test_same_result_twice(backend, make):
    for case in ("odd", "split"):
        inputs = make(*SHAPES[case])
        first, second = (both(group_norm_silu, *inputs, backend=backend) for _ in range(2))
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_keeps_only_its_input_and_statistics(backend, make):
    x, groups, weight, bias, _ = make((2, 6, 5, 7))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        group_norm_silu(x, groups, weight, bias, backend=backend)
    assert sorted(t.numel() for t in kept) == sorted([x.numel(), 6, 6, 2 * groups, 2 * groups])


@pytest.mark.parametrize("silu", [True, False])
def test_opcheck(silu, backend, make):
    for x, groups, weight, bias, _ in (make(), make((2, 6, 1, 1))):
        torch.library.opcheck(_group_norm_silu, (x, weight, bias, groups, 1e-5, silu, backend))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, make, dynamic):
    x, groups, weight, bias, cotangent = make()
    compiled = torch.compile(
        lambda *inputs: group_norm_silu(*inputs, backend=backend) * 2,
        fullgraph=True,
        backend="aot_eager",
        dynamic=dynamic,
    )
    y, dx = both(group_norm_silu, x, groups, weight, bias, 2 * cotangent, backend=backend)
    got = compiled(x, groups, weight, bias)
    torch.testing.assert_close(got, 2 * y)
    torch.testing.assert_close(torch.autograd.grad(got, x, cotangent)[0], dx)


def test_refuses_the_affine_gradient(make):
    x, groups, weight, bias, _ = make()
    with pytest.raises(InputError, match=r"no gradient in weight; call weight\.requires_grad_\(False\)"):
        group_norm_silu(x, groups, weight.requires_grad_(), bias)
    with pytest.raises(InputError, match="no gradient in bias"):
        group_norm_silu(x, groups, weight.detach(), bias.requires_grad_())
    with torch.no_grad():
        assert not group_norm_silu(x, groups, weight, bias).requires_grad


def test_refuses_a_second_derivative(backend, make):
    x, groups, weight, bias, cotangent = make()
    y = group_norm_silu(x, groups, weight, bias, backend=backend)
    grad = torch.autograd.grad(y, x, cotangent, create_graph=True)[0]
    with pytest.raises(BackendError, match="no second derivative"):
        grad.sum().backward()


def test_refuses_functorch(make):
    x, groups, weight, bias, _ = make()
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.grad(lambda x: group_norm_silu(x, groups, weight, bias).sum())(x.detach())


def test_refuses_wrong_inputs(make):
    x, groups, weight, bias, _ = make()
    with pytest.raises(InputError, match=r"floating x \(B, C, H, W\), got torch.float32 \(2, 6, 5\)"):
        group_norm_silu(x[..., 0], groups, weight, bias)
    with pytest.raises(InputError, match="floating x"):
        group_norm_silu(x.int(), groups, weight, bias)
    for wrong in (0, -3, 4, 7):
        with pytest.raises(InputError, match=f"divide x's 6 channels, got {wrong}"):
            group_norm_silu(x, wrong, weight, bias)
    with pytest.raises(InputError, match=r"weight \(6,\) torch.float32 .* got \(5,\)"):
        group_norm_silu(x, groups, weight[:5], bias)
    with pytest.raises(InputError, match=r"bias .* got \(6,\) torch.float64 .*; cast it once"):
        group_norm_silu(x, groups, weight, bias.double())


def test_refuses_backends_by_name(make):
    x, groups, weight, bias, _ = make(dtype=torch.float64)
    with pytest.raises(BackendError, match=r"float32 and bfloat16 on cpu, got torch\.float64"):
        group_norm_silu(x, groups, weight, bias, backend="native")
    assert supports("triton", x, weight, bias)
    assert supports("eager", x, weight, bias) == ""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("samples", "channels", "side", "is_split"),
    [(20, 192, 32, False), (1, 192, 32, True), (20, 192, 64, True), (20, 960, 16, False), (1, 960, 16, True),
     (20, 1920, 8, False), (1, 1920, 8, False), (20, 128, 256, True), (1, 42, 1, False)],
)  # fmt: skip
def test_plan(samples, channels, side, is_split):
    """Groups are split where they are large or few; either way each position has its program."""
    from ld3m.kernels.group_norm_silu import ENOUGH_PROGRAMS, FEW_PROGRAMS, WHOLE_FORWARD, plan

    groups = 32 if channels % 32 == 0 else 7
    x = torch.empty(samples, channels, side, side, device="meta", dtype=torch.bfloat16)
    split, grid, sizes, constants = plan(x, groups, WHOLE_FORWARD)
    assert split == is_split
    assert grid[0] == samples * -(-groups // constants["GROUPS"])
    assert constants["BLOCK_C"] >= constants["GROUPS"] * constants["CG"]
    if split:
        chunk = sizes[2]
        assert (grid[1] - 1) * chunk < side * side <= grid[1] * chunk
        assert chunk % constants["BLOCK_P"] == 0
        assert FEW_PROGRAMS <= grid[0] * grid[1] <= 2 * ENOUGH_PROGRAMS
    else:
        assert constants["BLOCK_P"] >= side * side


@pytest.mark.skipif(not HAS_TRITON or INTERPRET, reason="compiled in the run without the interpreter")
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_to_machine_code(capability, silu):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ld3m.kernels import group_norm_silu as kernels

    sizes = {"CG": 8, "GROUPS": 2, "BLOCK_P": 256, "BLOCK_C": 16}
    found = 0
    for name in [name for name in vars(kernels) if name.endswith("_kernel")]:
        kernel, found = getattr(kernels, name), found + 1
        constants = {
            key: value for key, value in {**sizes, "CHUNKS": 16, "SILU": silu}.items() if key in kernel.arg_names
        }
        halves, integers = {"x", "weight", "bias", "y", "grad", "dx"}, {"P": "i32", "C": "i32", "chunk": "i32"}
        kinds = {**dict.fromkeys(halves, "*bf16"), **integers, "eps": "fp32", **dict.fromkeys(constants, "constexpr")}
        signature = {key: kinds.get(key, "*fp32") for key in kernel.arg_names}
        aligned = [(k,) for k, kind in enumerate(signature.values()) if kind[0] in "*i"]
        source = ASTSource(kernel, signature, constants, {key: [["tt.divisibility", 16]] for key in aligned})
        built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        assert built.asm["cubin"]
        assert "ld.global.v4" in built.asm["ptx"] or "ld.global.L1::evict_last.v4" in built.asm["ptx"], name
    assert found == 6
