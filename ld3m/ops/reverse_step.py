"""One step of the reverse chain in one pass over memory: guidance and the affine, skip-injected update.

    z' = a z + b (ε_u + g (ε_c − ε_u)) + d · injected

With λ the cotangent of z': that of z is a λ, of injected d λ, of ε_u (1−g) b λ and of ε_c g b λ. The scalars are those
of `ld3m.chain.schedule.ChainTable` and get no gradient.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from ld3m.errors import BackendError, InputError
from ld3m.ops.backends import choose, missing, native

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/reverse_step.cu


def reverse_step_reference(
    state: Tensor, predictions: Tensor, injected: Tensor | None, a: float, b: float, d: float, guidance_scale: float
) -> Tensor:
    """Eager definition that every backend is tested against."""
    noise = predictions.to(state.dtype)
    if len(predictions) != len(state):
        uncond, cond = noise.chunk(2)
        noise = uncond + guidance_scale * (cond - uncond)  # Ho & Salimans 2022, eq. 6
    stepped = a * state + b * noise
    return stepped if injected is None else stepped + d * injected


def supports(backend: str, state: Tensor, predictions: Tensor) -> str:
    """Say why `backend` cannot take these inputs; "" when it can."""
    if reason := missing(backend, state):
        return reason
    if backend == "native" and state.dtype != torch.float32:
        return f"native is for a float32 state, got {state.dtype}"
    if backend == "native" and state.is_cpu and predictions.dtype != torch.float32:
        return f"native is for float32 predictions on cpu, got {predictions.dtype}"
    if backend != "eager" and predictions.dtype not in _CODES:
        return f"{backend} is for float32, bfloat16 and float16 predictions, got {predictions.dtype}"
    return ""


def reverse_step(
    state: Tensor,
    predictions: Tensor,
    injected: Tensor | None = None,
    *,
    a: float,
    b: float,
    d: float = 0.0,
    guidance_scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Step z ← a z + b ε̂ + d · injected; differentiable once in its three tensors.

    Args:
        state: z (B, ...), float32 or float64.
        predictions: ε̂ (B, ...), or (2B, ...) with the rows [null, conditional] that are guided here; any float dtype.
        injected: like `state`; its term is left out when None.
        guidance_scale: g in ε̂ = ε_u + g (ε_c − ε_u); of no effect on B rows.
        backend: "auto", "native", "triton" or "eager".

    Returns:
        The next state, of shape and dtype of `state`.

    Raises:
        InputError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot take the inputs.
    """
    _check(state, predictions, injected)
    layout = _layout(predictions)
    state, predictions = state.contiguous(memory_format=layout), predictions.contiguous(memory_format=layout)
    if injected is not None:
        injected = injected.contiguous(memory_format=layout)
    chosen = choose(backend, supports, state, predictions)
    return _reverse_step(state, predictions, injected, a, b, d, guidance_scale, chosen)


def reverse_step_vjp(
    grad: Tensor,
    *,
    a: float,
    b: float,
    d: float = 0.0,
    guidance_scale: float = 1.0,
    is_guided: bool,
    dtype: torch.dtype | None = None,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    backend: str = "auto",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Pull the cotangent λ of a step's result back, where no graph was recorded; scalars as of the step.

    Args:
        grad: λ (B, ...), float32 or float64.
        is_guided: whether the predictions had 2B rows.
        dtype: of the predictions' cotangent; that of `grad` when None.
        wanted: which of the three to compute.

    Returns:
        Cotangents of (state, predictions, injected), None where not wanted.
    """
    if grad.dtype not in (torch.float32, torch.float64) or grad.ndim == 0:
        raise InputError(f"reverse_step_vjp needs (B, ...) in float32 or float64, got {tuple(grad.shape)} {grad.dtype}")
    grad, dtype = grad.contiguous(memory_format=_layout(grad)), dtype or grad.dtype
    chosen = choose(backend, supports, grad, grad.new_empty(0, dtype=dtype))
    pulled = iter(_reverse_step_bwd(grad, a, b, d, guidance_scale, is_guided, dtype, list(wanted), chosen))
    state, predictions, injected = (next(pulled) if is_wanted else None for is_wanted in wanted)
    return state, predictions, injected


@torch.library.custom_op("ld3m::reverse_step", mutates_args=())
def _reverse_step(
    state: Tensor,
    predictions: Tensor,
    injected: Tensor | None,
    a: float,
    b: float,
    d: float,
    guidance_scale: float,
    backend: str,
) -> Tensor:
    if backend == "eager":
        return reverse_step_reference(state, predictions, injected, a, b, d, guidance_scale)
    is_guided = len(predictions) != len(state)
    out = torch.empty_like(state)
    if backend == "triton":
        from ld3m.kernels.reverse_step import reverse_step_fwd  # Triton may be absent

        reverse_step_fwd(state, predictions, injected, out, a, b, d, guidance_scale, is_guided)
        return out
    tensors = [_pointer(t) for t in (state, predictions, injected, out)]
    if state.is_cuda:
        with torch.cuda.device(state.device):
            stream = torch.cuda.current_stream().cuda_stream
            code = _CODES[predictions.dtype]
            native.reverse_step_fwd_cuda(*tensors, out.numel(), a, b, d, guidance_scale, is_guided, code, stream)
    else:
        threads = torch.get_num_threads()
        native.reverse_step_fwd(*tensors, out.numel(), a, b, d, guidance_scale, is_guided, threads)
    return out


@_reverse_step.register_fake
def _(
    state: Tensor,
    predictions: Tensor,
    injected: Tensor | None,
    a: float,
    b: float,
    d: float,
    guidance_scale: float,
    backend: str,
) -> Tensor:
    return torch.empty_like(state)


@torch.library.custom_op("ld3m::reverse_step_bwd", mutates_args=())
def _reverse_step_bwd(
    grad: Tensor,
    a: float,
    b: float,
    d: float,
    guidance_scale: float,
    is_guided: bool,
    dtype: torch.dtype,
    wanted: list[bool],
    backend: str,
) -> list[Tensor]:
    """Return the wanted ones of the cotangents of (state, predictions, injected); predictions' are of `dtype`."""
    if backend == "eager":
        noise = b * grad
        rows = torch.cat([(1 - guidance_scale) * noise, guidance_scale * noise]) if is_guided else noise
        every = (a * grad, rows.to(dtype), d * grad)
        return [t for t, is_wanted in zip(every, wanted, strict=True) if is_wanted]
    outputs = _empty_cotangents(grad, is_guided, dtype, wanted)
    to_state, to_predictions, to_injected = outputs
    if backend == "triton":
        from ld3m.kernels.reverse_step import reverse_step_bwd  # Triton may be absent

        reverse_step_bwd(grad, to_state, to_predictions, to_injected, a, b, d, guidance_scale, is_guided)
        return [t for t in outputs if t is not None]
    tensors = [_pointer(t) for t in (grad, to_state, to_predictions, to_injected)]
    if grad.is_cuda:
        with torch.cuda.device(grad.device):
            stream = torch.cuda.current_stream().cuda_stream
            native.reverse_step_bwd_cuda(
                *tensors, grad.numel(), a, b, d, guidance_scale, is_guided, _CODES[dtype], stream
            )
    else:
        threads = torch.get_num_threads()
        native.reverse_step_bwd(*tensors, grad.numel(), a, b, d, guidance_scale, is_guided, threads)
    return [t for t in outputs if t is not None]


@_reverse_step_bwd.register_fake
def _(
    grad: Tensor,
    a: float,
    b: float,
    d: float,
    guidance_scale: float,
    is_guided: bool,
    dtype: torch.dtype,
    wanted: list[bool],
    backend: str,
) -> list[Tensor]:
    return [t for t in _empty_cotangents(grad, is_guided, dtype, wanted) if t is not None]


def _empty_cotangents(grad: Tensor, is_guided: bool, dtype: torch.dtype, wanted: list[bool]) -> list[Tensor | None]:
    shapes = grad.shape, (2 * len(grad) if is_guided else len(grad), *grad.shape[1:]), grad.shape
    dtypes = grad.dtype, dtype, grad.dtype
    layout = _layout(grad)
    return [
        torch.empty(shape, dtype=kind, device=grad.device, memory_format=layout) if is_wanted else None
        for shape, kind, is_wanted in zip(shapes, dtypes, wanted, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    state, predictions, _, *ctx.scalars, ctx.backend = inputs  # linear in the tensors: none is kept
    ctx.is_guided, ctx.dtype = len(predictions) != len(state), predictions.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grad = grad.contiguous(memory_format=_layout(grad))
    pulled = iter(_reverse_step_bwd(grad, *ctx.scalars, ctx.is_guided, ctx.dtype, wanted, ctx.backend))
    return *(next(pulled) if is_wanted else None for is_wanted in wanted), None, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise BackendError("reverse_step has no second derivative; use reverse_step_reference for one")


_reverse_step.register_autograd(_backward, setup_context=_setup_context)
_reverse_step_bwd.register_autograd(_no_second_derivative)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _layout(x: Tensor) -> torch.memory_format:
    """Return channels_last where x is in it already: the step is elementwise, any one order of memory serves."""
    is_nhwc = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_nhwc else torch.contiguous_format


def _check(state: Tensor, predictions: Tensor, injected: Tensor | None) -> None:
    if state.dtype not in (torch.float32, torch.float64) or state.ndim == 0:
        raise InputError(
            f"reverse_step needs a state (B, ...) in float32 or float64, got {tuple(state.shape)} {state.dtype}; "
            "keep the state in float32, only the predictions may be of lower precision"
        )
    rows = (len(state), 2 * len(state))
    fits = predictions.ndim == state.ndim and predictions.shape[1:] == state.shape[1:] and len(predictions) in rows
    if not fits or not predictions.is_floating_point():
        raise InputError(
            f"reverse_step needs float predictions of {rows[0]} rows, or of {rows[1]} with the null rows first, for a "
            f"state {tuple(state.shape)}; got {tuple(predictions.shape)} {predictions.dtype}"
        )
    if injected is not None and (injected.shape != state.shape or injected.dtype != state.dtype):
        raise InputError(
            f"reverse_step needs injected like the state {tuple(state.shape)} {state.dtype}, "
            f"got {tuple(injected.shape)} {injected.dtype}; cast or expand it before the call"
        )
    devices = {t.device for t in (state, predictions, injected) if t is not None}
    if len(devices) > 1:
        raise InputError(f"reverse_step needs its tensors on one device, got {', '.join(map(str, devices))}; move them")
