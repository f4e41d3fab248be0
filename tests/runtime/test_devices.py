"""Devices by name."""

import pytest
import torch

from ld3m.errors import ConfigError
from ld3m.runtime.devices import default_device, resolve_device, resolve_dtype


def test_the_default_is_a_gpu_where_there_is_one(monkeypatch):
    for is_there, name in {True: "cuda", False: "cpu"}.items():
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert default_device() == name
    assert (
        resolve_device("cpu") == resolve_device(torch.device("cpu")) == resolve_device(None) == torch.device("cpu")
    )  # the tests' default


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_what_cannot_be_used_is_named(name):
    with pytest.raises(ConfigError, match=rf"device '{name}' cannot be used here \(.+\); leave it out, or say cpu"):
        resolve_device(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_precision_is_given_by_name_or_as_it_is(dtype):
    assert resolve_dtype(dtype) == resolve_dtype(str(dtype).removeprefix("torch.")) == dtype


@pytest.mark.parametrize("dtype", ["half", "int64", "torch.float32", torch.int64, torch.float8_e5m2, None, 32])
def test_what_is_no_precision_is_named(dtype):
    with pytest.raises(ConfigError, match=f"dtype is one of float32, bfloat16, float64, .*; got {dtype!r}"):
        resolve_dtype(dtype)
