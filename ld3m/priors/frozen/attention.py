"""Attention without mask, by the implementation that suits the shape.

Flash kernels stop at heads 256 wide; the ImageNet model has one head of 384 to 960. There PyTorch has a slower kernel
that keeps no probabilities, while two batched products and a softmax run at the speed of products and keep them: little
where there are fewer positions than channels.
"""

import functools
import importlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.errors import BackendError

BACKENDS = ("auto", "sdpa", "xformers", "bmm")

_FLASH_WIDTH = 256  # widest head of the flash kernels


def attention(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function of q (B, N, H, D), k and v (B, M, H, D) to (B, N, H, D), scaled by 1/√D.

    Raises:
        BackendError: xFormers is asked for and cannot be imported.
    """
    if backend == "xformers":
        return _xformers()
    return {"auto": _auto, "sdpa": _sdpa, "bmm": _bmm}[backend]


def choose(q: Tensor) -> str:
    """Return "bmm" for heads too wide for flash kernels whose probabilities (N, N) are no more than q, else "sdpa"."""
    positions, width = q.shape[1], q.shape[3]
    return "bmm" if q.is_cuda and width > _FLASH_WIDTH and positions <= width else "sdpa"


def _auto(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _bmm(q, k, v) if choose(q) == "bmm" else _sdpa(q, k, v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, H, D) -> (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    B, _, H, D = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B, N, H, D) -> (B·H, N, D)
    unread = q.new_empty(())
    scores = torch.baddbmm(unread, q, k.mT, beta=0, alpha=1 / math.sqrt(D))  # (B·H, N, M)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (B, H)).transpose(1, 2)


@functools.cache
def _xformers() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    try:
        return importlib.import_module("xformers.ops").memory_efficient_attention
    except ImportError as error:
        raise BackendError(
            f"attention 'xformers' cannot be imported ({error}); pip install 'ld3m[xformers]', or choose 'auto'"
        ) from error
