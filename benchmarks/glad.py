"""The scheme of the published GLaD code, written out on our generator's weights, as the baseline of the benchmarks.

One iteration makes the images without gradient, takes the loss's gradient at the images, then makes them again with
gradient, a split at a time, and pushes that gradient to features and codes. A layer modulates the weights for each
sample and convolves in groups; its filtered leaky ReLU is a chain of full-size operations: insert zeros, pad, filter,
activate, filter, drop samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ld3m.priors.stylegan.generator import StyleGAN, SynthesisLayer

_GAIN, _SLOPE, _CLAMP, _EPSILON = math.sqrt(2), 0.2, 256.0, 1e-8
# GLaD normalises generated images by another mean than real ones.
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.229, 0.224, 0.225)


def modulated_convolution(x: Tensor, weight: Tensor, styles: Tensor, *, is_demodulated: bool, gain: Tensor) -> Tensor:
    """Convolve each sample x (B, in, H, W) with weights of its own, made of weight (out, in, k, k), styles (B, in)."""
    B, size = len(x), weight.shape[-1]
    if is_demodulated:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        styles = styles * styles.square().mean().rsqrt()
    weights = weight * styles[:, None, :, None, None]  # (B, out, in, k, k)
    if is_demodulated:
        weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + _EPSILON).rsqrt()
    weights = weights * gain
    # (B, C, H, W) -> (1, B · C, H, W)
    y = F.conv2d(x.flatten(0, 1)[None], weights.flatten(0, 1), padding=size - 1, groups=B)
    return y[0].unflatten(0, (B, -1))


def filtered_leaky_relu(
    x: Tensor,
    bias: Tensor,
    up_filter: Tensor,
    down_filter: Tensor,
    *,
    up: int,
    down: int,
    padding: tuple[int, int, int, int],
    gain: float = _GAIN,
    slope: float = _SLOPE,
) -> Tensor:
    """Add the bias (C,), sample up, activate, sample down.

    Args:
        up_filter, down_filter: (taps,) for both axes, or (taps, taps).
        padding: left, right, top, bottom of the zero-inserted map; below zero it is cropped.
    """
    x = x + bias[:, None, None]
    B, C, H, W = x.shape
    x = F.pad(x.reshape(B, C, H, 1, W, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(B, C, H * up, W * up)
    x = _filter(F.pad(x, padding), up_filter) * up**2
    x = (F.leaky_relu(x, slope) * gain).clamp(-_CLAMP, _CLAMP)
    return _filter(x, down_filter)[..., ::down, ::down]


def _filter(x: Tensor, taps: Tensor) -> Tensor:
    C = x.shape[1]
    taps = taps.to(x)
    kernels = [taps.flip((0, 1))] if taps.ndim == 2 else [taps.flip(0)[None], taps.flip(0)[:, None]]
    for kernel in kernels:
        x = F.conv2d(x, kernel.expand(C, 1, *kernel.shape), groups=C)
    return x


def run_layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    """Run a layer on x (B, in, H, W) and a code w (B, w_dim)."""
    spec, gain = layer.spec, layer.magnitude_ema.rsqrt()
    styles = layer.affine(w)
    if spec.is_image:
        styles = styles / math.sqrt(spec.in_channels)
    x = modulated_convolution(x, layer.weight, styles, is_demodulated=not spec.is_image, gain=gain)
    if spec.is_image:
        identity = torch.ones(1)
        return filtered_leaky_relu(
            x, layer.bias, identity, identity, up=1, down=1, padding=(0, 0, 0, 0), gain=1, slope=1
        )
    return filtered_leaky_relu(
        x, layer.bias, layer.up_filter, layer.down_filter, up=spec.up, down=spec.down, padding=spec.padding * 2
    )


def generate(generator: StyleGAN, features: Tensor, codes: Tensor, layer: int) -> Tensor:
    """Make images (B, 3, H, W), about [−1, 1], of the features of `layer` and the codes after it."""
    x = features
    for module, code in zip(generator.layers[layer:], codes.unbind(1), strict=True):
        x = run_layer(module, x, code)
    return 0.25 * x


def iteration(
    generator: StyleGAN,
    features: Tensor,
    codes: Tensor,
    layer: int,
    image_gradient: Callable[[Tensor], Tensor],
    *,
    split: int = 10,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> tuple[Tensor, Tensor]:
    """Generate, differentiate the loss at the images, generate again and back-propagate, `split` images at a time.

    Args:
        features: (N, C, h, w), and codes (N, layers from number `layer` on, w_dim).
        image_gradient: gradient of the loss at the normalised images (N, 3, H, W), of the same shape.
        mean, std: by which the images, in [0, 1], are normalised.

    Returns:
        Gradients of features and codes.
    """
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1).to(features) for values in (mean, std))

    def normalized(features: Tensor, codes: Tensor) -> Tensor:
        return ((generate(generator, features, codes, layer) + 1) / 2 - mean) / std

    parts = list(zip(features.detach().split(split), codes.detach().split(split), strict=True))
    with torch.no_grad():
        images = torch.cat([normalized(*part) for part in parts])
    grads = []
    for part, cotangent in zip(parts, image_gradient(images).split(split), strict=True):
        leaves = [tensor.requires_grad_() for tensor in part]
        grads.append(torch.autograd.grad(normalized(*leaves), leaves, cotangent))
    of_features, of_codes = zip(*grads, strict=True)
    return torch.cat(of_features), torch.cat(of_codes)
