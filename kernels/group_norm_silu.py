"""Triton kernels of `ld3m.ops.group_norm_silu`: (B, C, H, W) in channels_last is a matrix of P = H * W rows a sample.

A program takes a block of neighbouring groups, so that it reads whole sectors, and either all P positions (one launch,
the tile stays in registers) or a chunk of them: then one launch leaves partial sums of each chunk, and a second one
adds them up, always in the same order, and applies the result. Sums over a group are sums over positions by channel,
then over the channels of the group by a small mask.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE_FORWARD, WHOLE_BACKWARD = 32768, 16384  # elements that one program holds: 64 fp32 a thread, and two tiles of 32
TILE, SMALL_TILE = 8192, 1024  # elements of a tile where a group is split, and where programs are few
FEW_PROGRAMS, ENOUGH_PROGRAMS = 64, 512  # about half of, and four times the processors of a large GPU
SMALL = 4096  # elements of a group that are not worth a second launch
MAX_CHUNKS = 64


@triton.jit
def _by_group(values, GROUPS: tl.constexpr, CG: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum (BLOCK_C,) values over the CG channels of each group, to (GROUPS,)."""
    member = tl.arange(0, GROUPS)[:, None] == (tl.arange(0, BLOCK_C) // CG)[None, :]
    return tl.sum(tl.where(member, values[None, :], 0.0), axis=1)


@triton.jit
def _by_channel(values, GROUPS: tl.constexpr, CG: tl.constexpr, BLOCK_C: tl.constexpr):
    """Give each channel its group's value, (GROUPS,) to (BLOCK_C,)."""
    member = tl.arange(0, GROUPS)[:, None] == (tl.arange(0, BLOCK_C) // CG)[None, :]
    return tl.sum(tl.where(member, values[:, None], 0.0), axis=0)


@triton.jit
def _columns(C, CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the sample and first group of this program, its channels (BLOCK_C,) and which of them are there."""
    blocks = tl.cdiv(C // CG, GROUPS)
    sample = tl.program_id(0) // blocks
    group = (tl.program_id(0) % blocks) * GROUPS
    channels = group * CG + tl.arange(0, BLOCK_C)
    return sample, group, channels, (tl.arange(0, BLOCK_C) < GROUPS * CG) & (channels < C)


@triton.jit
def _tile(sample, first, last, channels, present, P, C, BLOCK_P: tl.constexpr):
    """Return the start, the offsets and the mask (BLOCK_P, BLOCK_C) of positions first, first + 1, … below last."""
    rows = tl.arange(0, BLOCK_P)
    base = (sample.to(tl.int64) * P + first) * C
    return base, rows[:, None] * C + channels[None, :], (first + rows < last)[:, None] & present[None, :]


@triton.jit
def _activated(u, SILU: tl.constexpr):
    if SILU:
        u = u * tl.sigmoid(u)
    return u


@triton.jit
def _silu_slope(u):
    s = tl.sigmoid(u)
    return s * (1 + u * (1 - s))


@triton.jit
def _statistics(mean, rstd, sample, group, C, CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Load the saved mean and 1/std of each channel, (BLOCK_C,)."""
    groups = group + tl.arange(0, GROUPS)
    where = sample.to(tl.int64) * (C // CG) + groups
    m = tl.load(mean + where, mask=groups < C // CG, other=0.0)
    r = tl.load(rstd + where, mask=groups < C // CG, other=0.0)
    return _by_channel(m, GROUPS, CG, BLOCK_C), _by_channel(r, GROUPS, CG, BLOCK_C)


@triton.jit
def group_norm_silu_fwd_kernel(
    x, weight, bias, y, mean, rstd, P, C, eps,
    CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    sample, group, channels, present = _columns(C, CG, GROUPS, BLOCK_C)
    base, at, mask = _tile(sample, 0, P, channels, present, P, C, BLOCK_P)
    values = tl.load(x + base + at, mask=mask, other=0.0).to(tl.float32)
    count = P * CG
    m = _by_group(tl.sum(values, axis=0), GROUPS, CG, BLOCK_C) / count
    centred = tl.where(mask, values - _by_channel(m, GROUPS, CG, BLOCK_C)[None, :], 0.0)
    variance = _by_group(tl.sum(centred * centred, axis=0), GROUPS, CG, BLOCK_C) / count
    r = 1 / tl.sqrt_rn(variance + eps)
    scale = _by_channel(r, GROUPS, CG, BLOCK_C) * tl.load(weight + channels, mask=present, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=present, other=0.0).to(tl.float32)
    out = _activated(centred * scale[None, :] + shift[None, :], SILU)
    tl.store(y + base + at, out.to(y.dtype.element_ty), mask=mask)
    groups = group + tl.arange(0, GROUPS)
    where = sample.to(tl.int64) * (C // CG) + groups
    tl.store(mean + where, m, mask=groups < C // CG)
    tl.store(rstd + where, r, mask=groups < C // CG)


@triton.jit
def group_norm_silu_moments_kernel(
    x, means, squares, P, C, chunk,
    CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Leave the mean and the sum of squared deviations of each chunk and group, (B, S, G)."""
    sample, group, channels, present = _columns(C, CG, GROUPS, BLOCK_C)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, P)
    mean = tl.zeros([BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_P):  # by channel; tiles are joined as in Chan et al. 1983, eq. 2.1
        base, at, mask = _tile(sample, start, last, channels, present, P, C, BLOCK_P)
        values = tl.load(x + base + at, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(last - start, BLOCK_P)
        tile_mean = tl.sum(values, axis=0) / count
        centred = tl.where(mask, values - tile_mean[None, :], 0.0)
        delta = tile_mean - mean
        share = count.to(tl.float32) / (start - first + count)
        mean += delta * share
        square += tl.sum(centred * centred, axis=0) + delta * delta * share * (start - first)
    m = _by_group(mean, GROUPS, CG, BLOCK_C) / CG
    apart = tl.where(present, mean - _by_channel(m, GROUPS, CG, BLOCK_C), 0.0)
    s = _by_group(square + apart * apart * (last - first), GROUPS, CG, BLOCK_C)
    groups = group + tl.arange(0, GROUPS)
    where = (sample.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (C // CG) + groups
    tl.store(means + where, m, mask=groups < C // CG)
    tl.store(squares + where, s, mask=groups < C // CG)


@triton.jit
def group_norm_silu_apply_kernel(
    x, weight, bias, means, squares, y, mean, rstd, P, C, chunk, eps,
    CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    sample, group, channels, present = _columns(C, CG, GROUPS, BLOCK_C)
    groups = group + tl.arange(0, GROUPS)
    chunks = tl.arange(0, CHUNKS)
    partial = (sample.to(tl.int64) * tl.num_programs(1) + chunks)[:, None] * (C // CG) + groups[None, :]
    there = (chunks < tl.num_programs(1))[:, None] & (groups < C // CG)[None, :]  # (CHUNKS, GROUPS)
    counts = tl.maximum(tl.minimum(P - chunks * chunk, chunk), 0).to(tl.float32)[:, None] * CG
    chunk_means = tl.load(means + partial, mask=there, other=0.0)
    m = tl.sum(chunk_means * counts, axis=0) / (P * CG)
    apart = tl.where(there, chunk_means - m[None, :], 0.0)
    deviations = tl.load(squares + partial, mask=there, other=0.0) + apart * apart * counts
    r = 1 / tl.sqrt_rn(tl.sum(deviations, axis=0) / (P * CG) + eps)
    if tl.program_id(1) == 0:
        where = sample.to(tl.int64) * (C // CG) + groups
        tl.store(mean + where, m, mask=groups < C // CG)
        tl.store(rstd + where, r, mask=groups < C // CG)

    scale = _by_channel(r, GROUPS, CG, BLOCK_C) * tl.load(weight + channels, mask=present, other=0.0).to(tl.float32)
    centre = _by_channel(m, GROUPS, CG, BLOCK_C)
    shift = tl.load(bias + channels, mask=present, other=0.0).to(tl.float32)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, P)
    for start in range(first, last, BLOCK_P):
        base, at, mask = _tile(sample, start, last, channels, present, P, C, BLOCK_P)
        values = tl.load(x + base + at, mask=mask, other=0.0).to(tl.float32)
        out = _activated((values - centre[None, :]) * scale[None, :] + shift[None, :], SILU)
        tl.store(y + base + at, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _slopes(grad, x, base, at, mask, m, r, w, shift, SILU: tl.constexpr):
    """Load a tile; return the normalised input and the gradient in it."""
    values = tl.load(x + base + at, mask=mask, other=0.0).to(tl.float32)
    normal = tl.where(mask, (values - m[None, :]) * r[None, :], 0.0)
    d = tl.load(grad + base + at, mask=mask, other=0.0).to(tl.float32) * w[None, :]
    if SILU:
        d *= _silu_slope(normal * w[None, :] + shift[None, :])
    return normal, d


@triton.jit
def group_norm_silu_bwd_kernel(
    grad, x, weight, bias, mean, rstd, dx, P, C,
    CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    sample, group, channels, present = _columns(C, CG, GROUPS, BLOCK_C)
    m, r = _statistics(mean, rstd, sample, group, C, CG, GROUPS, BLOCK_C)
    w = tl.load(weight + channels, mask=present, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=present, other=0.0).to(tl.float32)
    base, at, mask = _tile(sample, 0, P, channels, present, P, C, BLOCK_P)
    normal, d = _slopes(grad, x, base, at, mask, m, r, w, shift, SILU)
    along = _by_group(tl.sum(d, axis=0), GROUPS, CG, BLOCK_C) / (P * CG)
    stretch = _by_group(tl.sum(d * normal, axis=0), GROUPS, CG, BLOCK_C) / (P * CG)
    d -= _by_channel(along, GROUPS, CG, BLOCK_C)[None, :]
    d -= normal * _by_channel(stretch, GROUPS, CG, BLOCK_C)[None, :]
    tl.store(dx + base + at, (d * r[None, :]).to(dx.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_silu_bwd_sums_kernel(
    grad, x, weight, bias, mean, rstd, alongs, stretches, P, C, chunk,
    CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Leave each chunk's sums of the gradient in the normalised input, alone and times that input, (B, S, G)."""
    sample, group, channels, present = _columns(C, CG, GROUPS, BLOCK_C)
    m, r = _statistics(mean, rstd, sample, group, C, CG, GROUPS, BLOCK_C)
    w = tl.load(weight + channels, mask=present, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=present, other=0.0).to(tl.float32)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, P)
    along = tl.zeros([BLOCK_C], tl.float32)
    stretch = tl.zeros([BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_P):
        base, at, mask = _tile(sample, start, last, channels, present, P, C, BLOCK_P)
        normal, d = _slopes(grad, x, base, at, mask, m, r, w, shift, SILU)
        along += tl.sum(d, axis=0)
        stretch += tl.sum(d * normal, axis=0)
    groups = group + tl.arange(0, GROUPS)
    where = (sample.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (C // CG) + groups
    tl.store(alongs + where, _by_group(along, GROUPS, CG, BLOCK_C), mask=groups < C // CG)
    tl.store(stretches + where, _by_group(stretch, GROUPS, CG, BLOCK_C), mask=groups < C // CG)


@triton.jit
def group_norm_silu_bwd_apply_kernel(
    grad, x, weight, bias, mean, rstd, alongs, stretches, dx, P, C, chunk,
    CG: tl.constexpr, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    sample, group, channels, present = _columns(C, CG, GROUPS, BLOCK_C)
    m, r = _statistics(mean, rstd, sample, group, C, CG, GROUPS, BLOCK_C)
    w = tl.load(weight + channels, mask=present, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=present, other=0.0).to(tl.float32)
    groups = group + tl.arange(0, GROUPS)
    chunks = tl.arange(0, CHUNKS)
    partial = (sample.to(tl.int64) * tl.num_programs(1) + chunks)[:, None] * (C // CG) + groups[None, :]
    there = (chunks < tl.num_programs(1))[:, None] & (groups < C // CG)[None, :]  # (CHUNKS, GROUPS)
    along = tl.sum(tl.load(alongs + partial, mask=there, other=0.0), axis=0) / (P * CG)
    stretch = tl.sum(tl.load(stretches + partial, mask=there, other=0.0), axis=0) / (P * CG)
    along = _by_channel(along, GROUPS, CG, BLOCK_C)
    stretch = _by_channel(stretch, GROUPS, CG, BLOCK_C)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, P)
    for start in range(first, last, BLOCK_P):
        base, at, mask = _tile(sample, start, last, channels, present, P, C, BLOCK_P)
        normal, d = _slopes(grad, x, base, at, mask, m, r, w, shift, SILU)
        d = (d - along[None, :] - normal * stretch[None, :]) * r[None, :]
        tl.store(dx + base + at, d.to(dx.dtype.element_ty), mask=mask)


def group_norm_silu_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y like x, and mean and 1/std (B, groups) in float32; x is channels_last."""
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty(len(x), groups, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    split, grid, sizes, constants = plan(x, groups, WHOLE_FORWARD)
    with torch.cuda.device_of(x):
        if not split:
            group_norm_silu_fwd_kernel[grid](x, weight, bias, y, mean, rstd, *sizes, eps, **constants, SILU=silu)
            return y, mean, rstd
        means, squares = x.new_empty(2, len(x), grid[1], groups, dtype=torch.float32)
        group_norm_silu_moments_kernel[grid](x, means, squares, *sizes, **constants)
        constants["CHUNKS"] = triton.next_power_of_2(grid[1])
        constants["SILU"] = silu
        group_norm_silu_apply_kernel[grid](x, weight, bias, means, squares, y, mean, rstd, *sizes, eps, **constants)
    return y, mean, rstd


def group_norm_silu_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, silu: bool
) -> Tensor:
    """Return the gradient in x, like x; grad is channels_last too."""
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx
    split, grid, sizes, constants = plan(x, groups, WHOLE_BACKWARD)
    constants["SILU"] = silu
    saved = (grad, x, weight, bias, mean, rstd)
    with torch.cuda.device_of(x):
        if not split:
            group_norm_silu_bwd_kernel[grid](*saved, dx, *sizes, **constants)
            return dx
        alongs, stretches = x.new_empty(2, len(x), grid[1], groups, dtype=torch.float32)
        group_norm_silu_bwd_sums_kernel[grid](*saved, alongs, stretches, *sizes, **constants)
        constants["CHUNKS"] = triton.next_power_of_2(grid[1])
        group_norm_silu_bwd_apply_kernel[grid](*saved, alongs, stretches, dx, *sizes, **constants)
    return dx


def plan(x: Tensor, groups: int, whole: int) -> tuple[bool, tuple[int, ...], tuple[int, ...], dict[str, int | bool]]:
    """Return whether to split groups, the grid, (P, C) or (P, C, chunk), and the kernels' constants and options."""
    samples, channels, positions = len(x), x.shape[1], x.shape[2] * x.shape[3]
    per_group = channels // groups

    def block(bytes_wide: int) -> tuple[int, int, int]:
        """Return groups and channels (powers of two) of a block at least this wide, and how many there are."""
        together = triton.next_power_of_2(triton.cdiv(bytes_wide, per_group * x.element_size()))
        together = min(together, triton.next_power_of_2(groups))
        return together, triton.next_power_of_2(together * per_group), samples * triton.cdiv(groups, together)

    def constants(together: int, block_c: int, block_p: int) -> dict[str, int | bool]:
        warps = min(max(block_c * block_p // 1024, 4), 16)
        sizes = {"CG": per_group, "GROUPS": together, "BLOCK_P": block_p, "BLOCK_C": block_c}
        return {**sizes, "num_warps": warps, "enable_fp_fusion": True}

    together, block_c, programs = block(32)  # a sector
    tile = block_c * triton.next_power_of_2(positions)
    if tile <= SMALL or (tile <= whole and programs >= FEW_PROGRAMS):
        block_p = triton.next_power_of_2(positions)
        return False, (programs,), (positions, channels), constants(together, block_c, block_p)
    together, block_c, programs = block(128)  # a cache line
    block_p = min(max(TILE // block_c, 1), triton.next_power_of_2(positions))
    while programs * triton.cdiv(positions, block_p) < ENOUGH_PROGRAMS and block_p * block_c >= 2 * SMALL_TILE:
        block_p //= 2
    chunks = min(triton.cdiv(ENOUGH_PROGRAMS, programs), triton.cdiv(positions, block_p), MAX_CHUNKS)
    chunk = triton.cdiv(triton.cdiv(positions, chunks), block_p) * block_p
    grid = (programs, triton.cdiv(positions, chunk))
    return True, grid, (positions, channels, chunk), constants(together, block_c, block_p)
