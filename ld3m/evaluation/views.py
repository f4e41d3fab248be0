"""Set and data as a protocol shows them to the networks: test images cut out of larger ones, borders at the mean."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ld3m.config import EvaluateConfig
from ld3m.data import Dataset
from ld3m.data.images import channel_statistics
from ld3m.evaluation.foreign import MNIST_RESOLUTION, MNIST_SIDE
from ld3m.evaluation.inputs import load_for, reading_of
from ld3m.evaluation.protocol import Protocol
from ld3m.runs.result import Result

_BORDER = (MNIST_RESOLUTION - MNIST_SIDE) // 2


def zoomed(
    dataset: Dataset, data: object, protocol: Protocol, config: EvaluateConfig, stored: Mapping[str, Any]
) -> Dataset:
    """Return the data with test images that are the centres of larger ones, where the protocol tests so.

    Args:
        stored: the settings of the set, as of `load_for`.
    """
    side = dataset.resolution // 7 * 8
    if not protocol.test_zoom or side <= dataset.resolution or isinstance(data, Dataset) or dataset.test is None:
        return dataset
    reading = reading_of(config, "unit")
    larger = load_for(data, side, reading, stored)
    assert larger.test is not None
    low = (side - dataset.resolution) // 2
    images = larger.test.images[..., low : low + dataset.resolution, low : low + dataset.resolution].contiguous()
    return replace(dataset, test=replace(larger.test, images=images))


def framed(result: Result, dataset: Dataset, protocol: Protocol) -> tuple[Result, Dataset]:
    """Return set and data with the black border of 28 px images at the mean, where the protocol pads them so: zeros for
    the networks, whose first convolution is then as if it padded by more."""
    inner = slice(_BORDER, -_BORDER)
    train, test = dataset.train.images, dataset.test
    is_bordered = dataset.resolution == MNIST_RESOLUTION and not _framed(train, 0).ne(train).any()
    if not protocol.frames or not is_bordered or test is None:
        return result, dataset
    mean, std = channel_statistics(train[..., inner, inner])
    grey = (255 * mean).round().to(torch.uint8)[:, None, None]
    data = replace(
        dataset,
        train=replace(dataset.train, images=_framed(train, grey)),
        test=replace(test, images=_framed(test.images, grey)),
        mean=mean,
        std=std,
    )
    return replace(result, images=_framed(result.images, grey / 255), mean=mean, std=std), data


def _framed(images: Tensor, value: Tensor | int) -> Tensor:
    """Return images whose outer pixels have a value, one for each channel."""
    inner = slice(_BORDER, -_BORDER)
    filled = torch.zeros_like(images) + torch.as_tensor(value).to(images)
    filled[..., inner, inner] = images[..., inner, inner]
    return filled
