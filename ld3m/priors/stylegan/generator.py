"""The generator of StyleGAN-XL (Sauer et al. 2022), frozen, split at a layer as in GLaD (Cazenavette et al. 2023).

Modulation scales activations instead of weights, y = d · conv(s · x, W): the same numbers as a convolution with weights
of its own for each sample, without those weights, and its backward pass is one convolution instead of two.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld3m.errors import InputError
from ld3m.priors.frozen.conv2d import frozen_conv2d
from ld3m.priors.stylegan.filters import CLAMP, SLOPE, down_matrices, filtered_leaky_relu, up_matrix
from ld3m.priors.stylegan.layers import FIRST_CUTOFF, MARGIN, LayerSpec

_OUTPUT_SCALE = 0.25
_EPSILON = 1e-8


class FullyConnected(nn.Module):
    """x Wᵀ m/√fan_in + m b, where m is the layer's learning-rate multiplier; then √2 leaky ReLU where `is_active`."""

    def __init__(self, in_features: int, out_features: int, *, multiplier: float = 1, is_active: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.multiplier, self.is_active = multiplier, is_active

    def forward(self, x: Tensor) -> Tensor:
        scale = self.multiplier / math.sqrt(self.weight.shape[1])
        x = F.linear(x, self.weight * scale, self.bias * self.multiplier)
        return math.sqrt(2) * F.leaky_relu(x, SLOPE) if self.is_active else x


class Mapping(nn.Module):
    """From a normal z, and a class where there are classes, to the code w.

    Args:
        num_classes: None when unconditional.
        class_dim: width of the class table.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_classes: int | None, class_dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        if num_classes is not None:
            self.embed = nn.Embedding(num_classes, class_dim)
            self.embed_proj = FullyConnected(class_dim, z_dim, is_active=True)
        self.fc0 = FullyConnected(z_dim * (1 if num_classes is None else 2), w_dim, multiplier=0.01, is_active=True)
        self.fc1 = FullyConnected(w_dim, w_dim, multiplier=0.01, is_active=True)
        self.register_buffer("w_avg", torch.empty(w_dim) if num_classes is None else torch.empty(num_classes, w_dim))

    def forward(self, z: Tensor, class_ids: Tensor | None, psi: float) -> Tensor:
        x, average = _normalize(z), self.w_avg
        if class_ids is not None:
            x = torch.cat([x, _normalize(self.embed_proj(_row(self.embed.weight, class_ids)))], 1)
            average = _row(average, class_ids)
        return average.lerp(self.fc1(self.fc0(x)), psi)


def _normalize(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + _EPSILON).rsqrt()


def _row(table: Tensor, class_ids: Tensor) -> Tensor:
    """Look classes up; the id behind the last one, the null class, has the mean of all."""
    return torch.cat([table, table.mean(0, keepdim=True)])[class_ids]


class FourierInput(nn.Module):
    """A map of plane waves, turned and shifted as the first code says."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int, size: int, w_dim: int) -> None:
        super().__init__()
        self.size, self.rate, self.bandwidth = size, size - 2 * MARGIN, FIRST_CUTOFF
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.affine = FullyConnected(w_dim, 4)
        self.register_buffer("transform", torch.empty(3, 3))
        self.register_buffer("freqs", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))

    def forward(self, w: Tensor) -> Tensor:
        t = self.affine(w)
        cos, sin, shift_x, shift_y = (t / t[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).unflatten(1, (3, 3))
        translation = torch.stack([one, zero, -shift_x, zero, one, -shift_y, zero, zero, one], 1).unflatten(1, (3, 3))
        matrix = rotation @ translation @ self.transform  # (B, 3, 3)
        freqs = self.freqs @ matrix[:, :2, :2]  # (B, C, 2)
        phases = self.phases + (self.freqs @ matrix[:, :2, 2:])[..., 0]  # (B, C)
        damping = 1 - (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)
        along = (torch.arange(self.size, device=w.device, dtype=w.dtype) + 0.5 - self.size / 2) / self.rate
        angle = freqs[:, :, :1] * along  # x of the grid
        angle = angle[:, :, None] + (freqs[:, :, 1:] * along)[..., None] + phases[:, :, None, None]  # (B, C, H, W)
        waves = torch.sin(2 * math.pi * angle) * damping.clamp(0, 1)[:, :, None, None]
        return torch.einsum("oi, bihw -> bohw", self.weight / math.sqrt(len(self.weight)), waves)


class SynthesisLayer(nn.Module):
    """Modulated convolution, then the filtered leaky ReLU; the layer that makes the image has neither filter nor slope.

    Args:
        is_radial: the down filter is two-dimensional.
    """

    magnitude_ema: Tensor
    up_filter: Tensor
    down_filter: Tensor
    up: Tensor
    down_y: Tensor
    down_x: Tensor

    def __init__(self, spec: LayerSpec, w_dim: int, *, is_radial: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.out_channels, spec.in_channels, spec.kernel, spec.kernel))
        self.bias = nn.Parameter(torch.empty(spec.out_channels))
        self.affine = FullyConnected(w_dim, spec.in_channels)
        self.register_buffer("magnitude_ema", torch.empty(()))
        if not spec.is_image:
            self.register_buffer("up_filter", torch.empty(spec.up_taps))
            self.register_buffer("down_filter", torch.empty((spec.down_taps,) * (2 if is_radial else 1)))

    @torch.no_grad()
    def fold(self) -> None:
        """Do once what does not depend on the input: lay the filters out as matrices, and scale the weights of each
        output to RMS 1, which the convolution would do anyway."""
        if self.spec.is_image:
            return
        weight = self.weight.double()
        self.weight.copy_(weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt())
        up = up_matrix(self.up_filter, self.spec.padded_size, self.spec.up, self.spec.padding)
        down_y, down_x = down_matrices(self.down_filter, (len(up), len(up)), self.spec.down)
        for name, matrix in (("up", up), ("down_y", down_y), ("down_x", down_x)):
            self.register_buffer(name, matrix.to(self.weight).contiguous(), persistent=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x (B, in_channels, in_size, in_size) and a code w (B, w_dim) to (B, out_channels, out_size, out_size)."""
        styles, gain = self.affine(w), self.magnitude_ema.rsqrt()
        if self.spec.is_image:
            styles = styles / math.sqrt(self.spec.in_channels)
            return modulated_convolution(x, self.weight, styles, self.bias, gain, False).clamp(-CLAMP, CLAMP)
        y = modulated_convolution(x, self.weight, styles, self.bias, gain, True)
        return filtered_leaky_relu(y, self.up, self.up, self.down_y, self.down_x)


def modulated_convolution(
    x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, gain: Tensor, is_demodulated: bool
) -> Tensor:
    """Convolve with weights that are scaled by `styles`, and with demodulation each sample's outputs to norm 1.

    Args:
        x: (B, in, H, W).
        weight: (out, in, k, k), with demodulation of RMS 1 over all but the first axis.
        styles: (B, in).
        gain: scale of x, a scalar.

    Returns:
        (B, out, H + k − 1, W + k − 1), the bias added.
    """
    if is_demodulated:
        styles = styles * styles.square().mean().rsqrt()  # over the whole batch, as published
    fully = weight.shape[-1] - 1
    y = frozen_conv2d(x * (styles * gain)[:, :, None, None], weight, padding=(fully, fully))
    if not is_demodulated:
        return y + bias[:, None, None]
    energy = weight.square().sum((2, 3))  # (out, in, k, k) -> (out, in)
    demodulation = (styles.square() @ energy.T + _EPSILON).rsqrt()
    return torch.addcmul(bias[:, None, None], y, demodulation[:, :, None, None])


class Synthesis(nn.Module):
    """The input and the layers, each under its name.

    Args:
        radial: names of the layers whose down filter is two-dimensional.
    """

    def __init__(self, specs: list[LayerSpec], w_dim: int, *, radial: Sequence[str] = ()) -> None:
        super().__init__()
        self.input = FourierInput(specs[0].in_channels, specs[0].in_size, w_dim)
        self.layers = [SynthesisLayer(spec, w_dim, is_radial=spec.name in radial) for spec in specs]
        for layer in self.layers:
            self.add_module(layer.spec.name, layer)


class StyleGAN(nn.Module):
    """A frozen StyleGAN-XL generator.

    Inputs may have another floating dtype than the weights: they are cast on the way in and the results cast back.

    Args:
        name: for logs and result files.
    """

    class_names = None  # of the classes there may be, only their places in ImageNet's order are known

    def __init__(self, name: str, mapping: Mapping, synthesis: Synthesis) -> None:
        super().__init__()
        self.name, self.mapping, self.synthesis = name, mapping, synthesis
        self.layers = synthesis.layers
        self.num_codes, self.w_dim = len(self.layers) + 1, mapping.w_avg.shape[-1]
        self.z_dim = mapping.fc0.weight.shape[1] // (1 if mapping.num_classes is None else 2)
        self.native_resolution = self.layers[-1].spec.out_size
        self.num_classes = self.null_class = mapping.num_classes  # the null class comes behind the others

    def freeze(self) -> "StyleGAN":
        """Make the generator ready for use once its weights are there; return it."""
        for layer in self.layers:
            layer.fold()
        return self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.mapping.w_avg.dtype

    @property
    def device(self) -> torch.device:
        return self.mapping.w_avg.device

    def map(self, z: Tensor, class_ids: Tensor | None = None, *, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Map z (B, z_dim) to codes (B, num_codes, w_dim), the same for all layers but for truncation.

        Args:
            class_ids: (B,) int64, 0 … num_classes, the null class included; None when unconditional.
            psi: towards the mean code of the class, where below 1.
            cutoff: codes that are truncated, from the first; all when None.
        """
        if (class_ids is None) != (self.num_classes is None):
            wanted = "no class_ids" if self.num_classes is None else f"class_ids from 0 to {self.num_classes}"
            raise InputError(f"{self.name} takes {wanted}, got {class_ids}")
        z = z.to(self.dtype)
        cutoff = self.num_codes if cutoff is None else cutoff
        parts = [self.mapping(z, class_ids, psi)] * cutoff
        parts += [self.mapping(z, class_ids, 1.0)] * (self.num_codes - cutoff)
        return torch.stack(parts, 1)

    def features(self, codes: Tensor, layer: int) -> Tensor:
        """Return the features (B, C, h, w) that the first `layer` layers make of the first 1 + `layer` codes."""
        codes = codes.to(self.dtype)
        x = self.synthesis.input(codes[:, 0])
        for module, code in zip(self.layers[:layer], codes[:, 1:].unbind(1), strict=False):
            x = module(x, code)
        return x

    def synthesize(self, features: Tensor, codes: Tensor, layer: int) -> Tensor:
        """Run the layers from number `layer` on.

        Args:
            features: (B, C, h, w), what the first `layer` layers return.
            codes: (B, num_codes − 1 − layer, w_dim), one for each layer that is run.

        Returns:
            Images (B, 3, resolution, resolution), about [−1, 1] and not clamped.
        """
        x = features.to(self.dtype)
        for module, code in zip(self.layers[layer:], codes.to(self.dtype).unbind(1), strict=True):
            x = module(x, code)
        return (_OUTPUT_SCALE * x).to(features.dtype)
