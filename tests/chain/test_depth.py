"""The calls between a step of a chain and the convolutions of the denoiser."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ld3m
from ld3m.priors import ExecutionConfig

PACKAGE = str(Path(ld3m.__file__).parent)
MOST = 6


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, ...]]:
    """The functions of ld3m on the stack of each convolution that runs, the outermost first."""
    seen, conv2d = [], F.conv2d

    def noting(*arguments, **keywords):
        frame, names = sys._getframe(1), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back
        seen.append(tuple(reversed(names)))
        return conv2d(*arguments, **keywords)

    monkeypatch.setattr(F, "conv2d", noting)
    return seen


@pytest.fixture
def prior():
    return ld3m.load_prior("random:tiny").set_execution(ExecutionConfig())


def depths(calls: list[tuple[str, ...]], step: str) -> set[int]:
    """Count the calls below the function that makes the steps, the last of them the one that convolves."""
    return {len(names) - 1 - names.index(step) for names in calls}


def test_few_calls_from_a_step_to_a_convolution(prior, calls):
    latents = torch.randn(2, 3, 8, 8, requires_grad=True)
    z0 = ld3m.reverse_chain(
        prior, latents, prior.null_conditioning(2), steps=2, noise=torch.randn(2, 3, 8, 8), retain=0.5
    )
    assert calls and max(depths(calls, "_ReverseChain.forward")) <= MOST
    calls.clear()
    z0.sum().backward()
    assert calls and max(depths(calls, "_ReverseChain.backward")) <= MOST


def test_few_calls_from_a_step_of_inversion_to_a_convolution(prior, calls):
    noisy = ld3m.invert(prior, torch.randn(2, 3, 8, 8), prior.null_conditioning(2), steps=4, stop=2)
    ld3m.sample(prior, noisy, prior.null_conditioning(2))
    for step in ("inversion_states", "sampling_states"):
        depth = depths([names for names in calls if step in names], step)
        assert depth and max(depth) <= MOST
