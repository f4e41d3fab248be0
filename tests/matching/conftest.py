"""Reference cases of the matching losses and their network."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ld3m import networks


@pytest.fixture(scope="session")
def load_case(reference) -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(reference / f"{name}_tiny.safetensors")


@pytest.fixture(scope="session")
def case_network() -> Callable[..., nn.Module]:
    """The network of the reference cases: ConvNet of width 16 for 3 classes at 32 px, with the case's weights."""

    def make(weights: dict[str, Tensor] | None = None, dtype: torch.dtype = torch.float64) -> nn.Module:
        network = networks.build("ConvNet", num_classes=3, resolution=32, width=16, generator=torch.Generator())
        if weights is not None:
            network.load_state_dict({k.removeprefix("w."): v for k, v in weights.items() if k.startswith("w.")})
        return network.to(dtype)

    return make


@pytest.fixture(scope="session")
def small_network() -> Callable[..., nn.Module]:
    """A seeded float64 network of 5 classes at 32 px, named with its norm as in "ConvNet/batchnorm"."""

    def make(name: str, seed: int = 0, depth: int = 2) -> nn.Module:
        base, _, norm = name.partition("/")
        options = {"ConvNet": {"width": 8, "depth": depth, "norm": norm or "instancenorm"}, "ViT-w0.125": {"depth": 2}}
        generator = torch.Generator().manual_seed(seed)
        return networks.build(base, num_classes=5, resolution=32, generator=generator, **options.get(base, {})).double()

    return make


@pytest.fixture
def seeded() -> Callable[..., Tensor]:
    """Standard normal float64 tensors, one after another from one seed."""
    generator = torch.Generator().manual_seed(11)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
