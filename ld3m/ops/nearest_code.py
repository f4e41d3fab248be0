"""Vector quantisation: the nearest row of a codebook, without the matrix of distances between rows and codes.

Distances are sums of squared differences. The usual |z|² − 2 z·e + |e|² is one matrix product, but cancels: where two
codes are almost equally near, it takes the wrong one.
"""

import torch
from torch import Tensor

from ld3m.errors import InputError
from ld3m.ops.backends import choose, missing, native

_CHUNK = 1 << 22  # differences that the eager definition holds at once


def nearest_code_reference(rows: Tensor, codebook: Tensor) -> Tensor:
    """Eager definition that every backend is tested against: distances as they stand, some rows at a time."""
    chunks = rows.split(max(1, _CHUNK // codebook.numel()))
    # (n, 1, D) - (K, D) -> (n, K, D) -> (n, K) -> (n,); argmin takes the first of equal distances
    found = [(chunk.unsqueeze(1) - codebook).square_().sum(-1).argmin(-1) for chunk in chunks]
    return torch.cat(found)


def supports(backend: str, rows: Tensor, codebook: Tensor) -> str:
    """Say why `backend` cannot take these inputs; "" when it can."""
    if reason := missing(backend, rows):
        return reason
    if backend != "eager" and rows.dtype != torch.float32:
        return f"{backend} is for float32, got {rows.dtype}"
    if backend != "eager" and len(codebook) >= 2**31:
        return f"{backend} counts codes in 32 bits, got {len(codebook)}"
    return ""


def nearest_code(rows: Tensor, codebook: Tensor, *, backend: str = "auto") -> Tensor:
    """Find for each row the nearest codebook row by Euclidean distance; the lowest index where several are.

    Args:
        rows: (N, D), float; bfloat16 and float16 are computed in float32.
        codebook: (K, D) with K and D at least 1, of the dtype of `rows`.
        backend: "auto", "native", "triton" or "eager".

    Returns:
        Indices (N,) int64, which have no gradient; 0 for a row with NaN.

    Raises:
        InputError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot take the inputs.
    """
    _check(rows, codebook)
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    rows, codebook = (t.detach().to(dtype).contiguous() for t in (rows, codebook))
    return _nearest_code(rows, codebook, choose(backend, supports, rows, codebook))


@torch.library.custom_op("ld3m::nearest_code", mutates_args=())
def _nearest_code(rows: Tensor, codebook: Tensor, backend: str) -> Tensor:
    if backend == "eager":
        return nearest_code_reference(rows, codebook)
    indices = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    if backend == "triton":
        from ld3m.kernels.nearest_code import nearest_code_fwd  # Triton may be absent

        nearest_code_fwd(rows, codebook, indices)
        return indices
    addresses = [t.data_ptr() for t in (rows, codebook, indices)]
    if rows.is_cuda:
        with torch.cuda.device(rows.device):
            stream = torch.cuda.current_stream().cuda_stream
            native.nearest_code_cuda(*addresses, len(rows), *codebook.shape, stream)
    else:
        native.nearest_code(*addresses, len(rows), *codebook.shape, torch.get_num_threads())
    return indices


@_nearest_code.register_fake
def _(rows: Tensor, codebook: Tensor, backend: str) -> Tensor:
    return rows.new_empty(len(rows), dtype=torch.int64)


def _check(rows: Tensor, codebook: Tensor) -> None:
    if rows.ndim != 2 or codebook.ndim != 2 or rows.shape[1] != codebook.shape[1] or codebook.numel() == 0:
        raise InputError(
            f"nearest_code needs rows (N, D) and a codebook (K, D), K and D at least 1; got {tuple(rows.shape)} and "
            f"{tuple(codebook.shape)}; bring latents (B, c, h, w) to rows with permute(0, 2, 3, 1).flatten(0, 2)"
        )
    if not rows.is_floating_point() or rows.dtype != codebook.dtype or rows.device != codebook.device:
        raise InputError(
            "nearest_code needs float rows and a codebook of their dtype and device, got "
            f"{rows.dtype} on {rows.device} and {codebook.dtype} on {codebook.device}; cast or move one of them"
        )
