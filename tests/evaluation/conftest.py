"""A toy data set that tiny networks learn in a moment, and a protocol to match."""

from dataclasses import replace

import pytest
import torch

from ld3m import Result
from ld3m.data import Dataset, load
from ld3m.evaluation.protocols import Protocol, Recipe, find


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are so small here that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy() -> Dataset:
    """Three classes of 8 px images, told apart by which channel is bright; 20 train and 30 test images each."""
    generator = torch.Generator().manual_seed(0)

    def split(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(3).repeat(per_class)
        images = 0.3 * torch.rand(len(labels), 3, 8, 8, generator=generator)
        images[torch.arange(len(labels)), labels] += 0.6
        return images, labels

    return replace(load({"train": split(20), "test": split(30)}, resolution=8), class_names=("red", "green", "blue"))


@pytest.fixture
def brief() -> Protocol:
    """Thirty epochs of small networks."""
    return replace(
        find("quick"),
        networks=("ConvNet-w0.06", "AlexNet-w0.06"),
        recipes={name: Recipe(0.02, 30, 0.8) for name in ("ConvNet", "AlexNet", "ViT")},
    )


@pytest.fixture
def result(toy) -> Result:
    """One clean image of each class, as if distilled."""
    images = torch.full((3, 3, 8, 8), 0.15)
    images[range(3), range(3)] = 0.75
    config = {"space": "ld3m", "network": "ConvNet", "seed": 0}
    return Result(images, torch.arange(3), toy.class_names, {"latents": torch.zeros(3, 2)}, config, toy.mean, toy.std)
