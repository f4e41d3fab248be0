"""Devices by name."""

import pytest
import torch

from ld3m.devices import usable
from ld3m.errors import ConfigError


def test_the_default_is_a_gpu_where_there_is_one(monkeypatch):
    assert usable("cpu") == usable(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable(None) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_what_cannot_be_used_is_named(name):
    with pytest.raises(ConfigError, match=rf"device '{name}' cannot be used here \(.+\); leave it out, or say cpu"):
        usable(name)
