"""Guidance and the skip-injected update against their reference, forward and backward, in every backend."""

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import INTERPRET
from ld3m.ops.reverse_step import (
    _reverse_step,
    _reverse_step_bwd,
    reverse_step,
    reverse_step_reference,
    reverse_step_vjp,
    supports,
)

SCALARS = {"a": 1.07, "b": -0.31, "d": 0.23, "guidance_scale": 3.0}
SHAPES = {
    "empty": (0, 4, 8, 8),
    "no pixels": (3, 4, 0, 2),
    "one number": (1,),
    "odd": (3, 5, 7),
    "latents": (4, 4, 8, 8),
    "several blocks": (5, 3, 37, 41),
}
CHANNELS_LAST = torch.channels_last


@pytest.fixture
def make(device):
    """Make [state, predictions, injected] and a cotangent of the next state."""

    def inputs(shape=(3, 4, 5, 7), dtype=torch.float32, is_guided=True, is_injected=True, state_dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)
        state, injected, cotangent = torch.randn(3, *shape, generator=draw).to(device, state_dtype)
        predictions = torch.randn((1 + is_guided) * shape[0], *shape[1:], generator=draw).to(device, dtype)
        tensors = [state, predictions, *[injected] * is_injected]
        return [t.clone().requires_grad_() for t in tensors], cotangent

    return inputs


def reference(state, predictions, injected=None, **scalars):
    return reverse_step_reference(state, predictions, injected, **scalars)


def both(function, tensors, cotangent, **options):
    stepped = function(*tensors, **SCALARS, **options)
    return stepped, *torch.autograd.grad(stepped, tensors, cotangent)


def skip_unsupported(backend, tensors):
    if reason := supports(backend, *tensors[:2]):
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_guided", [True, False])
@pytest.mark.parametrize("is_injected", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_eager(shape, is_injected, is_guided, dtype, backend, make, assert_as_good_as_eager):
    tensors, cotangent = make(SHAPES[shape], dtype, is_guided, is_injected)
    skip_unsupported(backend, tensors)
    got = both(reverse_step, tensors, cotangent, backend=backend)
    eager = both(reference, tensors, cotangent)
    exact = both(reference, [t.detach().double().requires_grad_() for t in tensors], cotangent.double())
    floor = 2**-8 if INTERPRET and dtype == torch.bfloat16 else 1e-6  # the interpreter cuts bfloat16 off
    for result in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*result, floor)


def test_is_the_formula(backend, device):
    """Values by hand: 2·3 + 0.5·(1 + 4·(2 − 1)) − 1·7 = 1.5."""
    state, injected = (torch.full((2, 3), value, device=device) for value in (3.0, 7.0))
    predictions = torch.tensor([1.0, 1.0, 2.0, 2.0], device=device)[:, None].repeat(1, 3)
    got = reverse_step(state, predictions, injected, a=2, b=0.5, d=-1, guidance_scale=4, backend=backend)
    assert got.tolist() == [[1.5] * 3] * 2


def test_guidance_has_no_effect_on_single_predictions(backend, make):
    tensors, _ = make(is_guided=False)
    one, three = (reverse_step(*tensors, a=1.0, b=2.0, guidance_scale=g, backend=backend) for g in (1.0, 3.0))
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    "layout", ["transposed", "part of rows", "part of pixels", "expanded", "channels last", "mixed"]
)
def test_layouts(layout, backend, make):
    tensors, cotangent = make((4, 6, 5, 7))
    view = {
        "transposed": lambda t: t.transpose(2, 3),
        "part of rows": lambda t: t[len(t) // 2 :],
        "part of pixels": lambda t: t[:, :, 1:, 2:],
        "expanded": lambda t: t[:, :1, :, :1].expand(-1, 6, 5, 4),
        "channels last": lambda t: t.contiguous(memory_format=CHANNELS_LAST),
        "mixed": lambda t: t.contiguous(memory_format=CHANNELS_LAST) if len(t) == 8 else t,
    }[layout]
    views = [view(t.detach()).requires_grad_() for t in tensors]
    got = both(reverse_step, views, view(cotangent), backend=backend)
    want = both(reference, views, view(cotangent))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)
    if layout in ("channels last", "mixed"):
        assert got[0].is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_unaligned_addresses(offset, backend, make):
    tensors, cotangent = make((2, 4, 4, 4))
    flat = [torch.cat([t.new_zeros(offset), t.detach().flatten()])[offset:].view_as(t) for t in [*tensors, cotangent]]
    views = [t.requires_grad_() for t in flat[:3]]
    for x, y in zip(
        both(reverse_step, views, flat[3], backend=backend), both(reference, tensors, cotangent), strict=True
    ):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)], ids=str)
def test_only_the_wanted_cotangents(wanted, backend, make):
    tensors, cotangent = make()
    want = both(reference, tensors, cotangent)[1:]
    for t, is_wanted in zip(tensors, wanted, strict=True):
        t.requires_grad_(bool(is_wanted))
    stepped = reverse_step(*tensors, **SCALARS, backend=backend)
    asked = [k for k in range(3) if wanted[k]]
    for k, got in zip(asked, torch.autograd.grad(stepped, [tensors[k] for k in asked], cotangent), strict=True):
        torch.testing.assert_close(got, want[k])
    pulled = reverse_step_vjp(cotangent, **SCALARS, is_guided=True, wanted=tuple(map(bool, wanted)), backend=backend)
    assert [t is not None for t in pulled] == [bool(is_wanted) for is_wanted in wanted]
    for k in asked:
        torch.testing.assert_close(pulled[k], want[k])


def test_vjp_without_a_graph(backend, make):
    tensors, cotangent = make(dtype=torch.bfloat16)
    skip_unsupported(backend, tensors)
    got = reverse_step_vjp(cotangent, **SCALARS, is_guided=True, dtype=torch.bfloat16, backend=backend)
    want = both(reverse_step, tensors, cotangent, backend=backend)[1:]
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_keeps_no_tensor(backend, make):
    tensors, _ = make()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        reverse_step(*tensors, **SCALARS, backend=backend)
    assert kept == []


@pytest.mark.parametrize("function", [reference, reverse_step])
def test_gradient(function, make):
    tensors, _ = make((2, 3), torch.float64, state_dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: function(*tensors, **SCALARS), tensors)


def test_same_result_twice_and_with_more_threads(backend, make):
    tensors, cotangent = make((5, 4, 41, 43))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 3):
            torch.set_num_threads(threads)
            results.append(both(reverse_step, tensors, cotangent, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_opcheck(backend, make):
    for is_guided, is_injected in ((True, True), (False, False)):
        (state, predictions, *injected), cotangent = make((3, 2, 5), is_guided=is_guided, is_injected=is_injected)
        scalars = tuple(SCALARS.values())
        torch.library.opcheck(_reverse_step, (state, predictions, injected[0] if injected else None, *scalars, backend))
        wanted = [True, is_guided, is_injected]
        torch.library.opcheck(_reverse_step_bwd, (cotangent, *scalars, is_guided, torch.float32, wanted, backend))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, make, dynamic):
    tensors, cotangent = make()
    compiled = torch.compile(
        lambda *tensors: reverse_step(*tensors, **SCALARS, backend=backend) * 2,
        fullgraph=True,
        backend="aot_eager",
        dynamic=dynamic,
    )
    got = compiled(*tensors)
    stepped, *want = both(reverse_step, tensors, 2 * cotangent, backend=backend)
    torch.testing.assert_close(got, 2 * stepped)
    torch.testing.assert_close(torch.autograd.grad(got, tensors, cotangent), tuple(want))


def test_refuses_a_second_derivative(backend, make):
    tensors, cotangent = make()
    cotangent.requires_grad_()
    grads = torch.autograd.grad(
        reverse_step(*tensors, **SCALARS, backend=backend), tensors, cotangent, create_graph=True
    )
    with pytest.raises(BackendError, match="no second derivative; use reverse_step_reference"):
        grads[1].sum().backward()


def test_refuses_functorch(make):
    tensors, _ = make()
    rest = [t.detach() for t in tensors[1:]]
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.jvp(lambda z: reverse_step(z, *rest, **SCALARS), (rest[-1],), (rest[-1],))


def test_refuses_wrong_inputs(make):
    (state, predictions, injected), _ = make()
    with pytest.raises(InputError, match=r"float32 or float64, got \(3, 4, 5, 7\) torch.float16; keep the state in"):
        reverse_step(state.half(), predictions, **SCALARS)
    with pytest.raises(InputError, match=r"got \(\) torch.float32"):
        reverse_step(state.sum(), predictions, **SCALARS)
    for wrong in (predictions[:5], predictions[..., :1], predictions.flatten(1), predictions.int()):
        with pytest.raises(InputError, match="float predictions of 3 rows, or of 6 with the null rows first"):
            reverse_step(state, wrong, **SCALARS)
    for wrong in (injected[:1], injected.double()):
        with pytest.raises(InputError, match=r"injected like the state .* cast or expand it"):
            reverse_step(state, predictions, wrong, **SCALARS)
    with pytest.raises(InputError, match=r"on one device, got .*meta"):
        reverse_step(state, predictions.to("meta"), **SCALARS)
    with pytest.raises(InputError, match=r"reverse_step_vjp needs .* got .* torch.bfloat16"):
        reverse_step_vjp(state.bfloat16(), **SCALARS, is_guided=False)


def test_refuses_backends_by_name(make):
    tensors, _ = make(state_dtype=torch.float64, dtype=torch.float64)
    for backend in ("native", "triton"):
        assert supports(backend, *tensors[:2])
        with pytest.raises(BackendError, match=f"{backend} cannot take .*float64"):
            reverse_step(*tensors, **SCALARS, backend=backend)
    assert reverse_step(*tensors, **SCALARS).dtype == torch.float64


@pytest.mark.parametrize("predictions", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_compiles_to_machine_code(direction, predictions, machine_code):
    from ld3m.kernels import reverse_step as kernels

    kernel = getattr(kernels, f"reverse_step_{direction}_kernel")
    signature = {"n": "i32", "predictions": predictions, "to_predictions": predictions}
    signature = {**dict.fromkeys(kernel.arg_names, "*fp32"), **signature, **dict.fromkeys("abdg", "fp32")}
    for is_guided in (True, False):
        constants = {"GUIDED": is_guided, "BLOCK": kernels.BLOCK}
        constants |= {"INJECTED": is_guided} if direction == "fwd" else {"WANTED": 7}
        built = machine_code(kernel, signature, constants)
        assert built["cubin"]
        assert "global.v4" in built["ptx"]
