"""Low-pass filters, and the leaky ReLU between two of them, which keeps an activation within its band.

A separable filter that samples up or down is a linear map of each axis: zero insertion, padding and convolution
together are a banded matrix A. The layer's activation is then B_y act(A_y x A_xᵀ) B_xᵀ: four matrix products a map.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SLOPE, CLAMP = 0.2, 256.0
_GAIN = math.sqrt(2)  # of the activation


def low_pass(taps: int, cutoff: float, width: float, rate: float, *, is_radial: bool = False) -> Tensor:
    """Design a low-pass filter by a Kaiser window; one tap is the identity.

    Args:
        cutoff, width: of the pass band and of the transition at its edge, in the unit of `rate`.
        is_radial: return (taps, taps) with the same response in all directions, else (taps,) for each axis.

    Returns:
        float32 of sum 1, made in float64.
    """
    if taps == 1:
        return torch.ones(1)
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95  # Kaiser's, in decibel
    beta = 0.0
    if attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    distance = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    if is_radial:
        radius = torch.hypot(distance[:, None], distance)  # never zero, as taps are even
        response = torch.special.bessel_j1(2 * math.pi * cutoff * radius) / radius * torch.outer(window, window)
    else:
        response = torch.sinc(2 * cutoff * distance) * window
    return (response / response.sum()).float()


def up_matrix(taps: Tensor, size: int, up: int, padding: tuple[int, int]) -> Tensor:
    """Return (U, size) float64: insert up − 1 zeros after each sample, pad, convolve, restore the amplitude.

    The activation's gain √2 is in it, a root on each axis: act(√2 x) = √2 act(x).
    """
    inserted = F.pad(torch.eye(size, dtype=torch.float64)[..., None], (0, up - 1)).flatten(1)  # (size, up · size)
    filtered = F.conv1d(F.pad(inserted, padding)[:, None], taps.double().cpu().flip(0)[None, None])
    return filtered[:, 0].T * up * math.sqrt(_GAIN)


def down_matrices(taps: Tensor, size: tuple[int, int], down: int) -> tuple[Tensor, Tensor]:
    """Return (r, out, U) float64 for each axis: convolve a map of `size` (U_y, U_x), keep every down-th sample.

    Args:
        taps: (t,) for both axes, where r is 1; or (t, t), which is a sum of r separable filters.
    """
    taps = taps.double().cpu()
    if taps.ndim == 1:
        factors = taps[None], taps[None]
    else:
        left, singular, right = torch.linalg.svd(taps)
        kept = singular > 1e-15 * singular[0]
        factors = (left * singular).T[kept], right[kept]
    down_y, down_x = (
        F.conv1d(torch.eye(side, dtype=torch.float64)[:, None], axis.flip(1)[:, None], stride=down).permute(1, 2, 0)
        for side, axis in zip(size, factors, strict=True)
    )
    return down_y, down_x


def filtered_leaky_relu(x: Tensor, up_y: Tensor, up_x: Tensor, down_y: Tensor, down_x: Tensor) -> Tensor:
    """Sample up, apply √2 leaky ReLU clamped to ±256, sample down.

    Args:
        x: (B, C, H, W), the bias added.
        up_y, up_x: (U_y, H) and (U_x, W) of `up_matrix`.
        down_y, down_x: (r, H', U_y) and (r, W', U_x) of `down_matrices`.

    Returns:
        (B, C, H', W'). The backward pass needs one byte for each value the activation saw, and nothing else.
    """
    return _FilteredLeakyReLU.apply(x, up_y, up_x, down_y, down_x)


class _FilteredLeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up_y: Tensor, up_x: Tensor, down_y: Tensor, down_x: Tensor) -> Tensor:
        raised = up_y @ (x @ up_x.T)  # (B, C, H, W) -> (B, C, U_y, U_x)
        is_positive = raised >= 0
        raised = F.leaky_relu_(raised, SLOPE)
        if ctx.needs_input_grad[0]:
            # Five times the derivative, which is 1, the slope 1/5, or 0 where the value is clamped.
            derivative = is_positive.to(torch.int8).mul_(4).add_(1).mul_(raised.abs() <= CLAMP)
            ctx.save_for_backward(derivative, up_y, up_x, down_y, down_x)
        raised.clamp_(-CLAMP, CLAMP)
        return cast(Tensor, sum(y @ (raised @ x.T) for y, x in zip(down_y, down_x, strict=True)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        derivative, up_y, up_x, down_y, down_x = ctx.saved_tensors
        raised = cast(Tensor, sum(y.T @ (grad @ x) for y, x in zip(down_y, down_x, strict=True)))
        raised.mul_(derivative).mul_(SLOPE)
        return up_y.T @ (raised @ up_x), None, None, None, None
