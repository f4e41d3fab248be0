"""Triton: guidance and the skip-injected update of `ld3m.ops.reverse_step`, and its vector-Jacobian product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # with 4 warps, 16 elements a thread: four 16-byte loads of each float32 operand in flight


@triton.jit
def reverse_step_fwd_kernel(
    state, predictions, injected, out, n, a, b, d, g, GUIDED: tl.constexpr, INJECTED: tl.constexpr, BLOCK: tl.constexpr
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    noise = tl.load(predictions + offsets, mask).to(tl.float32)
    if GUIDED:  # the conditional rows follow the null rows
        cond = tl.load(predictions + n + offsets, mask).to(tl.float32)
        noise = noise + g * (cond - noise)
    stepped = a * tl.load(state + offsets, mask) + b * noise
    if INJECTED:
        stepped += d * tl.load(injected + offsets, mask)
    tl.store(out + offsets, stepped, mask)


@triton.jit
def reverse_step_bwd_kernel(
    grad, to_state, to_predictions, to_injected, n, a, b, d, g, GUIDED: tl.constexpr, WANTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    cotangent = tl.load(grad + offsets, mask)
    if WANTED & 1:
        tl.store(to_state + offsets, a * cotangent, mask)
    if WANTED & 2:
        noise = b * cotangent
        dtype = to_predictions.dtype.element_ty
        if GUIDED:
            tl.store(to_predictions + offsets, ((1 - g) * noise).to(dtype), mask)
            tl.store(to_predictions + n + offsets, (g * noise).to(dtype), mask)
        else:
            tl.store(to_predictions + offsets, noise.to(dtype), mask)
    if WANTED & 4:
        tl.store(to_injected + offsets, d * cotangent, mask)


def reverse_step_fwd(
    state: Tensor,
    predictions: Tensor,
    injected: Tensor | None,
    out: Tensor,
    a: float,
    b: float,
    d: float,
    g: float,
    is_guided: bool,
) -> None:
    """Write the next state; all tensors share one dense order of memory."""
    if (n := out.numel()) == 0:
        return
    with torch.cuda.device_of(out):
        reverse_step_fwd_kernel[(triton.cdiv(n, BLOCK),)](
            state, predictions, injected, out, n, a, b, d, g, is_guided, injected is not None, BLOCK, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip


def reverse_step_bwd(
    grad: Tensor,
    to_state: Tensor | None,
    to_predictions: Tensor | None,
    to_injected: Tensor | None,
    a: float,
    b: float,
    d: float,
    g: float,
    is_guided: bool,
) -> None:
    """Write the cotangents that are not None."""
    outputs = (to_state, to_predictions, to_injected)
    wanted = sum(1 << k for k, t in enumerate(outputs) if t is not None)
    if (n := grad.numel()) == 0 or not wanted:
        return
    with torch.cuda.device_of(grad):
        reverse_step_bwd_kernel[(triton.cdiv(n, BLOCK),)](
            grad, *outputs, n, a, b, d, g, is_guided, wanted, BLOCK, num_warps=4, enable_fp_fusion=True
        )
