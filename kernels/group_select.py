"""Triton: the scores of `ld3m.ops.group_select`. A program has one group, and makes its noise block by block."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 512  # counters at a time, members by blocks: 4 a thread, so 16 normals with their cubes, sums and coordinates


@triton.jit
def _box_muller(x, y):
    uniform = (x >> 1).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10  # 2^-31, 2^-32
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    angle = y.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09  # pi / 2^31
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _add(of_mean, of_std, cubes, normals, std, coordinate, inside, is_member, ipc):
    """Add the terms of a block of coordinates [BLOCK], given their normal numbers [MEMBERS, BLOCK]."""
    deviation = tl.load(std + coordinate, inside, 0.0)
    mean = tl.sum(tl.where(is_member, normals, 0.0), 0) / ipc
    centred = tl.where(is_member, normals - mean[None, :], 0.0)
    spread = tl.sqrt_rn(tl.sum(centred * centred, 0) / tl.maximum(ipc - 1, 1))
    of_mean += deviation * deviation * mean * mean
    of_std += deviation * deviation * (spread - 1.0) * (spread - 1.0)
    # A coordinate at which all members are equal has no skewness.
    scale = tl.where(inside & (spread > 0.0), 1.0 / tl.maximum(spread, 1e-30), 0.0)
    standard = centred * scale[None, :]
    cubes += standard * standard * standard
    return of_mean, of_std, cubes


@triton.jit
def group_scores_fwd_kernel(
    std, scores, dim, blocks, ipc, first, seed, mean_weight, std_weight, skew_weight,
    MEMBERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64) + first
    counter = tl.zeros([MEMBERS, BLOCK], tl.uint32)
    member = tl.arange(0, MEMBERS)[:, None]
    is_member = member < ipc
    of_mean, of_std = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    cubes = tl.zeros([MEMBERS, BLOCK], tl.float32)
    low, high = (group & 0xFFFFFFFF).to(tl.uint32), (group >> 32).to(tl.uint32)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        x, y, v, w = tl.philox(
            seed, counter + block[None, :].to(tl.uint32), counter + member.to(tl.uint32), counter + low, counter + high
        )
        a, b = _box_muller(x, y)
        c, d = _box_muller(v, w)
        inside = block < blocks
        of_mean, of_std, cubes = _add(of_mean, of_std, cubes, a, std, block, inside, is_member, ipc)
        block += blocks
        inside = inside & (block < dim)
        of_mean, of_std, cubes = _add(of_mean, of_std, cubes, b, std, block, inside, is_member, ipc)
        block += blocks
        inside = inside & (block < dim)
        of_mean, of_std, cubes = _add(of_mean, of_std, cubes, c, std, block, inside, is_member, ipc)
        block += blocks
        inside = inside & (block < dim)
        of_mean, of_std, cubes = _add(of_mean, of_std, cubes, d, std, block, inside, is_member, ipc)
    skewness = tl.sum(cubes, 1)  # [MEMBERS]
    score = mean_weight * tl.sqrt_rn(tl.sum(of_mean, 0)) + std_weight * tl.sqrt_rn(tl.sum(of_std, 0))
    score += skew_weight * tl.sqrt_rn(tl.sum(skewness * skewness, 0))
    tl.store(scores + tl.program_id(0), score)


def group_scores_fwd(std: Tensor, scores: Tensor, ipc: int, first: int, seed: int, weights: list[float]) -> None:
    """Write the scores of len(scores) groups; `weights` have what the terms are multiplied by in all."""
    members = triton.next_power_of_2(ipc)
    dim, block = len(std), max(1, TILE // members)
    with torch.cuda.device_of(std):
        group_scores_fwd_kernel[(len(scores),)](
            std, scores, dim, triton.cdiv(dim, 4), ipc, first, seed, *weights, members, block, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
