"""What all rooms share: the reference tensors' folder, the error measure, and hypothesis with fixed seeds."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from torch import Tensor

import ld3m

hypothesis.settings.register_profile("ld3m", derandomize=True, deadline=None)
hypothesis.settings.load_profile("ld3m")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference tensors; LD3M_REFERENCE names another one with the same files."""
    return Path(os.environ.get("LD3M_REFERENCE", Path(__file__).parent / "reference"))


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Largest absolute error over largest absolute reference value."""

    def measure(got: Tensor, want: Tensor) -> float:
        assert got.shape == want.shape
        got, want = got.detach().double(), want.detach().double()
        return float((got - want).abs().max() / want.abs().max())

    return measure


@pytest.fixture(scope="session")
def reference_prior(reference) -> Callable:
    """Load `cin`, `ffhq` or `kl` of the reference priors in a dtype, once a session; tests leave it unchanged."""

    @functools.cache
    def load(name: str, dtype: torch.dtype = torch.float64) -> "ld3m.priors.Prior":
        path = reference / f"{name}_tiny.ckpt"
        return ld3m.load_prior(path, config=path.with_suffix(".yaml"), dtype=dtype)

    return load
