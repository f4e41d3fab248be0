"""Triton: `ld3m.ops.instance_norm_relu_pool`. A program has one plane, or several small ones.

A plane is a row of windows: 2x2 pixels that are averaged, or single pixels without pooling. Tiles are (plane, window,
pixel of the window), so both variants are the same code.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # pixels at a time, 8 a thread; with 16, many small planes take 150 registers: one program an SM
WARPS = 8


@triton.jit
def _offsets(start, windows, width, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """The places of a block of windows' pixels in their plane, and whether each is inside."""
    window = (start + tl.arange(0, BLOCK))[:, None]
    pixel = tl.arange(0, WINDOW)[None, :]
    if WINDOW == 4:
        half = width // 2
        offsets = (window // half) * 2 * width + (window % half) * 2 + (pixel // 2) * width + pixel % 2
    else:
        offsets = window + pixel
    return offsets[None], (window < windows)[None]  # [1, BLOCK, WINDOW], [1, BLOCK, 1]


@triton.jit
def _sum(values):
    return tl.sum(tl.sum(values, 2), 1)[:, None, None]  # [PLANES, BLOCK, WINDOW] -> [PLANES, 1, 1]


@triton.jit
def instance_norm_relu_pool_fwd_kernel(
    x, weight, bias, out, mean_out, rstd_out, planes, channels, windows, width, eps,
    WINDOW: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = (tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES))[:, None, None]
    is_plane = plane < planes
    x += plane * windows * WINDOW
    mean = tl.zeros([PLANES, 1, 1], tl.float32)
    squares = tl.zeros([PLANES, 1, 1], tl.float32)
    for start in range(0, windows, BLOCK):  # Chan et al. 1983: moments of what came before and of this block
        offsets, inside = _offsets(start, windows, width, WINDOW, BLOCK)
        values = tl.load(x + offsets, is_plane & inside, 0).to(tl.float32)
        count = tl.minimum(windows - start, BLOCK) * WINDOW
        block_mean = _sum(values) / count
        centred = tl.where(inside, values - block_mean, 0)
        difference = block_mean - mean
        share = count / (start * WINDOW + count)
        squares += _sum(centred * centred) + difference * difference * (start * WINDOW * share)
        mean += difference * share
    rstd = 1 / tl.sqrt_rn(squares / (windows * WINDOW) + eps)
    tl.store(mean_out + plane, mean, is_plane)
    tl.store(rstd_out + plane, rstd, is_plane)

    scale = rstd * tl.load(weight + plane % channels, is_plane, 0).to(tl.float32)
    shift = tl.load(bias + plane % channels, is_plane, 0).to(tl.float32)
    for start in range(0, windows, BLOCK):
        offsets, inside = _offsets(start, windows, width, WINDOW, BLOCK)
        normed = (tl.load(x + offsets, is_plane & inside, 0).to(tl.float32) - mean) * scale + shift
        pooled = tl.sum(tl.where(normed < 0, 0, normed), 2, keep_dims=True) / WINDOW  # [PLANES, BLOCK, 1]; NaN stays
        window = start + tl.arange(0, BLOCK)[None, :, None]
        tl.store(out + plane * windows + window, pooled.to(out.dtype.element_ty), is_plane & inside)


@triton.jit
def _behind_relu(x, grad, offsets, window, mask, mean, scale, shift, WINDOW: tl.constexpr):
    """Centred pixels, and the cotangent of what enters the ReLU."""
    centred = tl.load(x + offsets, mask, 0).to(tl.float32) - mean
    cotangent = tl.load(grad + window, mask, 0).to(tl.float32) / WINDOW  # [PLANES, BLOCK, 1]
    return centred, tl.where(centred * scale + shift <= 0, 0, cotangent)


@triton.jit
def instance_norm_relu_pool_bwd_kernel(
    grad, x, weight, bias, mean_in, rstd_in, sums, grad_x, planes, channels, windows, width,
    WINDOW: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = (tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES))[:, None, None]
    is_plane = plane < planes
    x += plane * windows * WINDOW
    grad_x += plane * windows * WINDOW
    grad += plane * windows
    mean = tl.load(mean_in + plane, is_plane, 0)
    rstd = tl.load(rstd_in + plane, is_plane, 0)
    scale = rstd * tl.load(weight + plane % channels, is_plane, 0).to(tl.float32)
    shift = tl.load(bias + plane % channels, is_plane, 0).to(tl.float32)
    total = tl.zeros([PLANES, 1, 1], tl.float32)
    product = tl.zeros([PLANES, 1, 1], tl.float32)
    for start in range(0, windows, BLOCK):
        offsets, inside = _offsets(start, windows, width, WINDOW, BLOCK)
        window = start + tl.arange(0, BLOCK)[None, :, None]
        mask = is_plane & inside
        centred, cotangent = _behind_relu(x, grad, offsets, window, mask, mean, scale, shift, WINDOW)
        total += _sum(cotangent)
        product += _sum(cotangent * centred)
    product *= rstd
    tl.store(sums + plane, product, is_plane)
    tl.store(sums + planes + plane, total, is_plane)

    slope = rstd * product / (windows * WINDOW)
    average = total / (windows * WINDOW)
    for start in range(0, windows, BLOCK):
        offsets, inside = _offsets(start, windows, width, WINDOW, BLOCK)
        window = start + tl.arange(0, BLOCK)[None, :, None]
        mask = is_plane & inside
        centred, cotangent = _behind_relu(x, grad, offsets, window, mask, mean, scale, shift, WINDOW)
        result = scale * (cotangent - average - slope * centred)
        tl.store(grad_x + offsets, result.to(grad_x.dtype.element_ty), mask)


def instance_norm_relu_pool_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, mean: Tensor, rstd: Tensor, eps: float, pool: bool
) -> None:
    """Write out (B, C, H/2, W/2), or (B, C, H, W) without pooling, and mean and rstd (B, C)."""
    grid, sizes, blocks = _layout(x, pool)
    if x.numel():
        with torch.cuda.device_of(x):
            instance_norm_relu_pool_fwd_kernel[grid](
                x, weight, bias, out, mean, rstd, *sizes, eps, **blocks, num_warps=WARPS
            )


def instance_norm_relu_pool_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    grad_x: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    pool: bool,
) -> None:
    """Write grad_x, grad_weight and grad_bias; `sums` (2, B, C) is scratch."""
    grid, sizes, blocks = _layout(x, pool)
    if x.numel():
        with torch.cuda.device_of(x):
            instance_norm_relu_pool_bwd_kernel[grid](
                grad, x, weight, bias, mean, rstd, sums, grad_x, *sizes, **blocks, num_warps=WARPS
            )
    for summed, output in zip(sums.sum(1), (grad_weight, grad_bias), strict=True):  # (2, B, C) -> (2, C)
        output.copy_(summed)


def _layout(x: Tensor, pool: bool) -> tuple[tuple[int], tuple[int, int, int, int], dict[str, int]]:
    """Return the grid, the sizes and the block sizes: one plane a program, or as many as fill a tile."""
    B, C, H, W = x.shape
    pixels = 4 if pool else 1
    windows = H * W // pixels
    block = min(triton.next_power_of_2(windows), TILE // pixels)
    planes = min(TILE // pixels // block, triton.next_power_of_2(max(1, B * C)))
    blocks = {"WINDOW": pixels, "PLANES": planes, "BLOCK": block}
    return (triton.cdiv(B * C, planes),), (B * C, C, windows, W), blocks
