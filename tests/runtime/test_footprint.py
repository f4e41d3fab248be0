"""What operations allocate, counted, on the CPU and without memory on the meta device."""

import pytest
import torch
from torch import nn

from ld3m.runtime import footprint as footprint_module
from ld3m.runtime.footprint import Ledger, footprint, size_of

CPU = torch.device("cpu")


def test_a_ledger_counts_what_is_alive():
    given = torch.ones(100)
    with Ledger() as ledger:
        a = given + 1  # 400 bytes
        b = torch.zeros(50, dtype=torch.float64)
        assert (ledger.now, ledger.peak) == (800, 800)
        del a
        assert (ledger.now, ledger.peak) == (400, 800)
        c, given[:] = b[10:], 2  # a view, and what was there before
        del b
        assert ledger.now == 400
        del c
        assert (ledger.now, ledger.peak) == (0, 800)


def test_a_ledger_sees_the_backward_pass():
    x = torch.ones(100, requires_grad=True)
    with Ledger() as ledger:
        y = x.exp().sin()  # the results of exp and sin; exp's is saved by both
        assert ledger.now == 800
        y.backward(torch.ones(100))
        del y
        assert ledger.now == 400  # the gradient
        assert ledger.peak > 1200


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_footprint_has_what_is_held_and_the_peaks_of_both_passes(device):
    layer = nn.Linear(10, 1000, bias=False, device=device).requires_grad_(False)
    x = torch.ones(5, 10, device=device, requires_grad=True)
    found = footprint(lambda: layer(x).relu().square(), torch.device(device))
    assert found.held == 2 * 20_000  # of the linear layer nothing is needed; relu's result, and the output
    assert found.forward == 2 * 20_000
    assert found.peak >= 4 * 20_000
    assert found.flops == 2 * 5 * 10 * 1000


def test_on_a_gpu_both_passes_are_run_before_they_are_counted(monkeypatch):
    """The thread of the backward pass makes workspaces of its own, once."""
    done = []
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _device, name=name: done.append(name) or 0)
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: done.append("backward"))
    with torch.no_grad():
        footprint(lambda: x.exp(), torch.device("cuda"))
    assert done.count("backward") == 2 and done.index("backward") < done.index("reset_peak_memory_stats")


def test_the_peak_of_a_call():
    assert footprint_module.peak_bytes(lambda: (torch.ones(1000) + 1).sum(), CPU) == 8000


def test_the_size_of_modules_counts_each_storage_once():
    norm, layer = nn.BatchNorm1d(10), nn.Linear(10, 10, bias=False)
    shared = nn.Linear(10, 10, bias=False)
    shared.weight = layer.weight
    assert size_of(layer, shared) == 400
    assert size_of(norm) == 4 * 40 + 8  # weight, bias, running mean and variance; the count of batches


@pytest.mark.parametrize("channels", [(3, 32), (32, 32), (64, 16)])
def test_what_a_convolution_copies_is_counted(channels, peak_bytes):
    layer, images = nn.Conv2d(*channels, 3, padding=1), torch.ones(32, channels[0], 16, 16)
    with torch.no_grad():
        counted, allocated = footprint_module.peak_bytes(lambda: layer(images), CPU), peak_bytes(lambda: layer(images))
    assert counted == pytest.approx(allocated, rel=0.05)
