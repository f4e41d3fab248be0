"""Triton: the search of `ld3m.ops.nearest_code`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N, BLOCK_K = 32, 64  # 16 distances a thread with their minima and indices: 48 registers


@triton.jit
def nearest_code_fwd_kernel(
    rows, codebook, indices, num_rows, num_codes, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < num_rows
    best = tl.full((BLOCK_N, BLOCK_K), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    for first in range(0, num_codes, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        is_code = k < num_codes
        distance = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for c in range(DIM):
            value = tl.load(rows + n * DIM + c, is_row, other=0.0)  # [BLOCK_N]
            code = tl.load(codebook + k.to(tl.int64) * DIM + c, is_code, other=float("inf"))  # [BLOCK_K]
            difference = value[:, None] - code[None, :]
            distance += difference * difference
        is_nearer = distance < best  # each place keeps the first of its equal codes
        best = tl.where(is_nearer, distance, best)
        index = tl.where(is_nearer, k[None, :], index)
    nearest = tl.min(best, 1)  # [BLOCK_N]
    found = tl.min(tl.where(best == nearest[:, None], index, num_codes), 1)
    tl.store(indices + n, found.to(tl.int64), is_row)


def nearest_code_fwd(rows: Tensor, codebook: Tensor, indices: Tensor) -> None:
    """Write the indices; `rows` and `codebook` are contiguous."""
    if len(rows) == 0:
        return
    with torch.cuda.device_of(rows):
        nearest_code_fwd_kernel[(triton.cdiv(len(rows), BLOCK_N),)](
            rows, codebook, indices, len(rows), *codebook.shape, BLOCK_N, BLOCK_K, num_warps=4, enable_fp_fusion=True
        )
