"""Vector quantisation against the argmin over the matrix of distances |z|² + |e|² − 2 z·e."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ld3m.ops.nearest_code import nearest_code

SHAPES = {  # rows, codes, channels: latents of 32², 64² and a batch, with the codebooks of the released priors
    "cpu": [(2048, 8192, 3), (256, 8192, 4)],
    "gpu": [(10 * 1024, 8192, 3), (10 * 4096, 8192, 3), (10 * 1024, 16384, 4)],
    "smoke": [(64, 128, 3)],
}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare."""
    draw = torch.Generator().manual_seed(0)
    for num_rows, num_codes, dim in SHAPES[suite]:
        rows, codebook = (torch.randn(n, dim, generator=draw).to(device) for n in (num_rows, num_codes))
        yield {
            "name": f"nearest_code/{num_rows}x{num_codes}x{dim}",
            "mode": "fwd",
            "shape": (num_rows, num_codes, dim),
            "dtype": "float32",
            "against": "distance matrix",
            "ours": lambda rows=rows, codebook=codebook: nearest_code(rows, codebook),
            "baseline": lambda rows=rows, codebook=codebook: matrix_argmin(rows, codebook),
            "bytes": 4 * (rows.numel() + codebook.numel()) + 8 * num_rows,
        }


def matrix_argmin(rows: Tensor, codebook: Tensor) -> Tensor:
    """As diffusion code bases write it: several (N, K) matrices."""
    distances = rows.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * rows @ codebook.t()  # (N, K)
    return distances.argmin(1)
