"""Triton kernel of `ld3m.ops.gradient_distance`: a program takes a row of one of the layers.

The layers stay where they are: the kernel gets tuples of pointers, so that nothing is copied or concatenated and no
table travels to the GPU. The rows of the layers are counted through.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

LAYERS = 32  # of a launch; their pointers are arguments of the kernel, of which there may be 4 KB


@triton.jit
def gradient_distance_kernel(
    own, target, direction, losses,
    STARTS: tl.constexpr, WIDTHS: tl.constexpr, EPSILON: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Leave 1 - ⟨a, b⟩ / (|a| |b| + ε) of each row, and its derivative in a; layer i has rows from STARTS[i] on."""
    row = tl.program_id(0)
    a, b, d = own[0], target[0], direction[0]
    start, width = row * 0, row * 0 + WIDTHS[0]
    for i in tl.static_range(1, len(STARTS)):
        here = row >= STARTS[i]
        a, b, d = tl.where(here, own[i], a), tl.where(here, target[i], b), tl.where(here, direction[i], d)
        start, width = tl.where(here, STARTS[i], start), tl.where(here, WIDTHS[i], width)
    offset = (row - start).to(tl.int64) * width
    a, b, d = a + offset, b + offset, d + offset

    ab = tl.zeros([BLOCK], tl.float32)
    aa = tl.zeros([BLOCK], tl.float32)
    bb = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(a + columns, mask=columns < width, other=0.0).to(tl.float32)
        y = tl.load(b + columns, mask=columns < width, other=0.0).to(tl.float32)
        ab += x * y
        aa += x * x
        bb += y * y
    dot = tl.sum(ab, axis=0)
    length = tl.sqrt_rn(tl.sum(aa, axis=0))
    other = tl.sqrt_rn(tl.sum(bb, axis=0))
    product = length * other + EPSILON
    tl.store(losses + row, 1 - dot / product)
    along = dot * other / (product * product) / tl.where(length > 0, length, 1.0)  # dot is 0 where length is
    for first in range(0, width, BLOCK):  # a row of 8 KB is still in the cache
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(a + columns, mask=columns < width, other=0.0).to(tl.float32)
        y = tl.load(b + columns, mask=columns < width, other=0.0).to(tl.float32)
        tl.store(d + columns, (along * x - y / product).to(d.dtype.element_ty), mask=columns < width)


def gradient_distance_fwd(
    own: list[Tensor], target: list[Tensor], epsilon: float
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Return the losses of each layer's rows, and the derivative in `own`; all is contiguous."""
    direction = [torch.empty_like(a) for a in own]
    rows = sum(len(a) for a in own)
    losses = own[0].new_empty(rows, dtype=torch.float32)
    first = 0
    for part in range(0, len(own), LAYERS):
        these = slice(part, part + LAYERS)
        starts = (0, *itertools.accumulate(len(a) for a in own[these]))
        if starts[-1]:
            widths = [a[0].numel() if len(a) else 0 for a in own[these]]
            with torch.cuda.device_of(losses):
                gradient_distance_kernel[(starts[-1],)](
                    tuple(own[these]), tuple(target[these]), tuple(direction[these]), losses[first:],
                    STARTS=starts[:-1], WIDTHS=tuple(widths), EPSILON=epsilon,
                    BLOCK=min(max(triton.next_power_of_2(max(widths)), 32), 1024), num_warps=4, enable_fp_fusion=True,
                )  # fmt: skip
        first += starts[-1]
    return losses.split([len(a) for a in own]), direction
