"""Group selection (D3HR, arXiv 2505.18399): of m groups of normal latents, the one whose statistics fit best.

A group is `ipc` rows mean + std · z. With row statistics over its members, and D coordinates,

    mean term  ‖mean_rows(G) − mean‖ = ‖std · z̄‖
    std term   ‖std_rows(G) − std‖   = ‖std · (s − 1)‖           s: unbiased standard deviation of z over the members
    skew term  ‖g‖, g_k = D/((D−1)(D−2)) Σ_d ((z_kd − z̄_d)/s_d)³   one number a member, as the released code has it

so a score needs the noise and `std` alone. No group is stored: its noise follows from (seed, index) by a counter-based
generator, and only a few hundred coordinates of it exist at a time. Every backend draws the same numbers to rounding.

    words    Philox 4x32-10 (Salmon et al. 2011), key seed, counter (block, member, index mod 2³², index div 2³²)
    normals  Box–Muller in float32 of words (0, 1) and (2, 3), as x, y: radius √(−2 ln(2⁻³¹ ⌊x/2⌋ + 2⁻³²)), at most
             6.66, and angle 2⁻³¹ π y
    place    normal r of counter (block, member): coordinate r · ⌈D/4⌉ + block of that member
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ld3m.errors import InputError
from ld3m.ops.backends import choose, missing, native

WEIGHTS = (1.0, 1.0, 0.1)  # of the mean, std and skew terms in the released code; the paper has 0.5 for the last
_CHUNK = 1 << 22  # numbers that the eager definition holds at once
_SCORES = 1 << 20  # scores held at once
_TRITON_IPC = 512
_MASK = 0xFFFFFFFF


def philox(counters: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return the four 32-bit words (int64 tensors) of Philox 4x32-10 for four counter words, which broadcast."""
    words, keys = list(counters), [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(10):
        # A product of two 32-bit words wraps around the sign of int64; its bits are right.
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        high = [(product >> 32) & _MASK for product in (first, second)]
        words = [high[1] ^ words[1] ^ keys[0], second & _MASK, high[0] ^ words[3] ^ keys[1], first & _MASK]
        keys = [(key + bump) & _MASK for key, bump in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)]
    return words


def group_noise(indices: Tensor, *, ipc: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Recompute the noise z of groups from their indices (B,) int64: (B, ipc, dim) on their device."""
    blocks = math.ceil(dim / 4)
    block, member = (torch.arange(n, device=indices.device) for n in (blocks, ipc))
    group = indices[:, None, None]
    x, y, v, w = philox((block, member[:, None], group & _MASK, group >> 32 & _MASK), seed)  # each (B, ipc, blocks)
    normals = [*_box_muller(x, y, dtype), *_box_muller(v, w, dtype)]
    return torch.stack(normals, 2).flatten(2)[..., :dim]  # (B, ipc, 4, blocks) -> (B, ipc, dim)


def _box_muller(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2 * torch.log((x >> 1).to(dtype) * 2.0**-31 + 2.0**-32))
    angle = torch.where(y < 2**31, y, y - 2**32).to(dtype) * (math.pi * 2.0**-31)  # within ±π, where it rounds least
    return radius * torch.cos(angle), radius * torch.sin(angle)


def score_noise(noise: Tensor, std: Tensor, weights: Sequence[float] = WEIGHTS) -> Tensor:
    """Score groups given as noise z (B, ipc, D), for std (D,): (B,), smaller is better.

    A single member has no standard deviation: the mean term alone counts. A coordinate at which all members are equal
    adds nothing to the skewness.
    """
    ipc, dim = noise.shape[1:]
    of_mean, of_std, of_skewness = _factors(ipc, dim, weights)
    mean = noise.mean(1, keepdim=True)  # (B, 1, D)
    deviation = (noise - mean).square().sum(1, keepdim=True).div(max(ipc - 1, 1)).sqrt()
    standard = torch.where(deviation > 0, (noise - mean) / deviation, 0.0)
    score = of_mean * (std * mean[:, 0]).norm(dim=-1) + of_std * (std * (deviation[:, 0] - 1)).norm(dim=-1)
    return score + of_skewness * standard.pow(3).sum(-1).norm(dim=-1)  # (B, ipc, D) -> (B, ipc) -> (B,)


def _factors(ipc: int, dim: int, weights: Sequence[float]) -> list[float]:
    """Return what the norms of mean, std and skewness are multiplied by."""
    bias = dim / ((dim - 1) * (dim - 2)) if dim > 2 else 0.0  # the skewness of two numbers is not defined
    return [float(weights[0]), float(weights[1]), weights[2] * bias] if ipc > 1 else [float(weights[0]), 0.0, 0.0]


def group_scores_reference(
    std: Tensor, ipc: int, first: int, count: int, seed: int, weights: Sequence[float]
) -> Tensor:
    """Eager definition that every backend is tested against: some groups at a time."""
    indices = torch.arange(first, first + count, device=std.device)
    chunks = indices.split(max(1, _CHUNK // (ipc * len(std))))
    noise = (group_noise(chunk, ipc=ipc, dim=len(std), seed=seed, dtype=std.dtype) for chunk in chunks)
    return torch.cat([score_noise(part, std, weights) for part in noise])


def supports(backend: str, std: Tensor, ipc: int) -> str:
    """Say why `backend` cannot take these inputs; "" when it can."""
    if reason := missing(backend, std):
        return reason
    if backend == "native" and std.is_cuda:
        return "native is for cpu: Triton serves cuda"
    if backend != "eager" and std.dtype != torch.float32:
        return f"{backend} is for float32, got {std.dtype}"
    if backend == "triton" and ipc > _TRITON_IPC:
        return f"triton is for groups of at most {_TRITON_IPC}, got {ipc}"
    return ""


def group_scores(
    std: Tensor,
    *,
    ipc: int,
    count: int,
    seed: int,
    first: int = 0,
    weights: Sequence[float] = WEIGHTS,
    backend: str = "auto",
) -> Tensor:
    """Score groups first … first + count − 1.

    Args:
        std: (D,), float, of a class; scores are computed in its dtype, float32 at least.
        ipc: members of a group.
        seed: 0 … 2⁶³ − 1; with a group's index it says the group's noise.
        weights: of the mean, std and skew terms.
        backend: "auto", "native", "triton" or "eager".

    Returns:
        Scores (count,), smaller is better; no gradient.

    Raises:
        InputError: a shape or range is not as above.
        BackendError: the backend asked for cannot take the inputs.
    """
    _check(std, ipc, first, count, seed, weights)
    std = std.detach().to(torch.float64 if std.dtype == torch.float64 else torch.float32).contiguous()
    chosen = choose(backend, partial(supports, ipc=ipc), std)
    return _group_scores(std, ipc, first, count, seed, list(map(float, weights)), chosen)


def group_select(
    std: Tensor,
    *,
    ipc: int,
    groups: int,
    seed: int,
    weights: Sequence[float] = WEIGHTS,
    backend: str = "auto",
) -> tuple[int, float]:
    """Return (index, score) of the best of `groups` groups, the first of equal ones; arguments as of `group_scores`.

    `group_noise(torch.tensor([index]), ...)` recomputes its noise.
    """
    best, best_score = 0, math.inf
    for first in range(0, groups, _SCORES):
        count = min(_SCORES, groups - first)
        scores = group_scores(std, ipc=ipc, first=first, count=count, seed=seed, weights=weights, backend=backend)
        found = int(scores.argmin())  # the first of equal scores
        if float(scores[found]) < best_score:
            best, best_score = first + found, float(scores[found])
    return best, best_score


@torch.library.custom_op("ld3m::group_scores", mutates_args=())
def _group_scores(
    std: Tensor, ipc: int, first: int, count: int, seed: int, weights: list[float], backend: str
) -> Tensor:
    if backend == "eager":
        return group_scores_reference(std, ipc, first, count, seed, weights)
    factors = _factors(ipc, len(std), weights)
    scores = torch.empty(count, dtype=torch.float32, device=std.device)
    if backend == "triton":
        from ld3m.kernels.group_select import group_scores_fwd  # Triton may be absent

        group_scores_fwd(std, scores, ipc, first, seed, factors)
    else:
        addresses = std.data_ptr(), scores.data_ptr()
        native.group_scores(*addresses, len(std), ipc, first, count, seed, *factors, torch.get_num_threads())
    return scores


@_group_scores.register_fake
def _(std: Tensor, ipc: int, first: int, count: int, seed: int, weights: list[float], backend: str) -> Tensor:
    return std.new_empty(count)


def _check(std: Tensor, ipc: int, first: int, count: int, seed: int, weights: Sequence[float]) -> None:
    if std.ndim != 1 or not std.numel() or not std.is_floating_point():
        raise InputError(
            f"group_scores needs std (D,), D at least 1, float; got {tuple(std.shape)} {std.dtype}; flatten it"
        )
    if ipc < 1 or count < 1 or first < 0:
        raise InputError(f"ipc and count are at least 1, first at least 0; got {ipc}, {count} and {first}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is a whole number from 0 to 2^63 - 1, got {seed}")
    if len(weights) != 3 or any(not (math.isfinite(weight) and weight >= 0) for weight in weights):
        raise InputError(f"weights are three numbers, 0 or more, for mean, std and skewness; got {list(weights)}")
