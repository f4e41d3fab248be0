"""The layers of StyleGAN-XL generators: what each reads and writes, and the low-pass filters that follow from it.

A stage of N layers raises cutoff and stopband geometrically from those of its first signal to those of its resolution.
A generator is one stage, or a chain of them: each next stage takes the place of the last three layers before it and
doubles the resolution.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ld3m.priors.stylegan.filters import low_pass

MARGIN = 10  # pixels beyond each edge of the image that all but the last layers carry along
TAPS = 6  # of a filter, for each sample it inserts or drops
FIRST_CUTOFF = 2.0
_FIRST_STOPBAND, _LAST_STOPBAND = 2**2.1, 2**0.3  # the last one relative to half the resolution
_CRITICAL = 2  # layers at a stage's end whose cutoff is the highest that its resolution carries
_HEAD_LAYERS, _KERNEL = 7, 3


@dataclass(frozen=True)
class GeneratorShape:
    """The structure of a generator.

    Args:
        resolution: of the images, in pixels.
        stem_resolution: of the first stage; further ones double it up to `resolution`.
        stem_layers: of the first stage, without the layer that makes the image.
        channel_base, channel_max: a signal of cutoff f has min(channel_base / 2f, channel_max) channels.
        num_classes: None when unconditional.
        class_dim: width of the class table; the mapping projects it to `z_dim`.
    """

    resolution: int
    stem_resolution: int
    stem_layers: int
    channel_base: int
    channel_max: int
    z_dim: int = 64
    w_dim: int = 512
    num_classes: int | None = None
    class_dim: int = 320


@dataclass(frozen=True)
class Signal:
    """The signal from one layer to the next: square maps of `size` pixels at `rate` pixels an image unit."""

    channels: int
    size: int
    rate: int
    cutoff: float
    half_width: float


@dataclass(frozen=True)
class LayerSpec:
    """Sizes of a layer: a k×k convolution, then sampling up by `up`, the activation, sampling down by `down`."""

    name: str
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel: int
    up: int
    down: int
    is_image: bool = False

    @property
    def padded_size(self) -> int:
        """Return the side after the convolution, which pads fully."""
        return self.in_size + self.kernel - 1

    @property
    def up_taps(self) -> int:
        return 1 if self.up == 1 else TAPS * self.up

    @property
    def down_taps(self) -> int:
        return 1 if self.down == 1 else TAPS * self.down

    @property
    def padding(self) -> tuple[int, int]:
        """Return what is added before and after the zero-inserted map, on each axis; below zero it is cropped."""
        total = (self.out_size - 1) * self.down + 1 - self.padded_size * self.up + self.up_taps + self.down_taps - 2
        low = (total + self.up) // 2  # rounded down, also below zero
        return low, total - low


@dataclass(frozen=True)
class Design:
    """A layer with the signals that its filters are made for."""

    spec: LayerSpec
    source: Signal
    target: Signal

    @property
    def up_filter(self) -> Tensor:
        return self._filter(self.source, self.spec.up_taps)

    @property
    def down_filter(self) -> Tensor:
        return self._filter(self.target, self.spec.down_taps)

    def _filter(self, signal: Signal, taps: int) -> Tensor:
        return low_pass(taps, signal.cutoff, 2 * signal.half_width, self.spec.up * self.source.rate)


SHAPES = {
    # The published settings of StyleGAN-XL for ImageNet.
    "stylegan-xl-128": GeneratorShape(128, 16, 10, 65536, 1024, num_classes=1000),
    "stylegan-xl-256": GeneratorShape(256, 16, 10, 65536, 1024, num_classes=1000),
    # One plain stage without classes: what GLaD's "random" generator is, and a small one for a CPU.
    "stylegan-128": GeneratorShape(128, 128, 17, 32768, 512),
    "stylegan-256": GeneratorShape(256, 256, 17, 32768, 512),
    "stylegan-32": GeneratorShape(32, 32, 7, 512, 64, w_dim=64),
}


def design(shape: GeneratorShape) -> list[Design]:
    """Lay out all layers of a generator, the one that makes the image last."""
    signals = _stage(shape, shape.stem_resolution, shape.stem_layers, None)
    layers, number, resolution = _layers(signals, 0), shape.stem_layers - 1, shape.stem_resolution
    while resolution < shape.resolution:
        resolution *= 2
        layers = layers[: -_CRITICAL - 1]
        signals = _stage(shape, resolution, _HEAD_LAYERS, layers[-1].target)
        layers += _layers(signals, number)
        number += _HEAD_LAYERS - _CRITICAL
    return layers


def _stage(shape: GeneratorShape, resolution: int, num_layers: int, before: Signal | None) -> list[Signal]:
    """Return the signals 0 … num_layers of a stage that goes on from the signal `before`."""
    cutoff = before.cutoff if before else FIRST_CUTOFF
    stopband = before.cutoff + before.half_width if before else _FIRST_STOPBAND
    signals = []
    for i in range(num_layers + 1):
        exponent = min(i / (num_layers - _CRITICAL), 1)
        here = cutoff * (resolution / 2 / cutoff) ** exponent
        stop = stopband * (resolution / 2 * _LAST_STOPBAND / stopband) ** exponent
        rate = 2 ** math.ceil(math.log2(min(2 * stop, resolution)))
        channels = round(min(shape.channel_base / 2 / here, shape.channel_max))
        if before and i == 0:
            rate, channels = before.rate, before.channels
        size = resolution if i >= num_layers - 1 else rate + 2 * MARGIN
        signals.append(Signal(channels, size, rate, here, max(stop, rate / 2) - here))
    return [*signals[:-1], replace(signals[-1], channels=3)]


def _layers(signals: list[Signal], number: int) -> list[Design]:
    """Join a stage's signals by layers, the first of them from signal 0 to itself; names count from `number`."""
    found = []
    for i, (source, target) in enumerate(zip([signals[0], *signals[:-1]], signals, strict=True)):
        is_image = i == len(signals) - 1
        rate = source.rate if is_image else 2 * max(source.rate, target.rate)  # at which the activation is applied
        spec = LayerSpec(
            name=f"L{number + i}_{target.size}_{target.channels}",
            in_channels=source.channels,
            out_channels=target.channels,
            in_size=source.size,
            out_size=target.size,
            kernel=1 if is_image else _KERNEL,
            up=rate // source.rate,
            down=rate // target.rate,
            is_image=is_image,
        )
        found.append(Design(spec, source, target))
    return found
