"""Descent between two states: torch's SGD bit for bit, with nothing cloned and a way back."""

import pytest
import torch

from ld3m.distillation.optimizer import Descent


@pytest.fixture
def leaves():
    draw = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(5, 3, 4, 4, generator=draw, requires_grad=True),
        "student_lr": torch.tensor(0.02, requires_grad=True),
    }


def descend(leaves, seed):
    draw = torch.Generator().manual_seed(seed)
    for leaf in leaves.values():
        leaf.grad = torch.randn(leaf.shape, generator=draw)


RATES = {"latents": 3.0, "student_lr": 1e-6}


def test_a_step_is_that_of_torch(leaves):
    twins = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    groups = [{"params": [leaf], "lr": RATES[name]} for name, leaf in twins.items()]
    descent, sgd = Descent([(n, p, RATES[n]) for n, p in leaves.items()], 0.5), torch.optim.SGD(groups, momentum=0.5)
    for iteration in range(5):
        for each in (leaves, twins):
            descend(each, iteration)
        descent.step()
        descent.keep(iteration + 1)
        sgd.step()
        for name, leaf in leaves.items():
            assert torch.equal(leaf, twins[name])
            assert torch.equal(descent.state()[f"momentum/{name}"], sgd.state[twins[name]]["momentum_buffer"])
    assert descent.iterations == 5


def test_a_step_counts_when_it_is_kept(leaves):
    descent = Descent([(n, p, RATES[n]) for n, p in leaves.items()], 0.5)
    start = leaves["latents"].detach().clone()
    descend(leaves, 0)
    descent.step()
    moved = leaves["latents"].detach().clone()
    assert not torch.equal(moved, start)
    assert torch.equal(descent.state()["latents"], start)
    assert "momentum/latents" not in descent.state()
    descent.undo()
    assert torch.equal(leaves["latents"], start)
    descent.step()
    assert torch.equal(leaves["latents"], moved)
    descent.keep(1)
    assert torch.equal(descent.state()["latents"], moved)
    stored = {name: tensor.clone() for name, tensor in descent.state().items()}

    descent.step()
    descent.keep(2)
    after = leaves["latents"].detach().clone()
    descent.restore(1, stored)
    assert descent.iterations == 1
    assert torch.equal(leaves["latents"], moved)
    descent.step()
    assert torch.equal(leaves["latents"], after)


def test_two_states_take_turns(leaves):
    """Nothing of the set's size is made once both are there."""
    descent, places = Descent([(n, p, RATES[n]) for n, p in leaves.items()], 0.5), set()
    descend(leaves, 0)
    for iteration in range(6):
        descent.step()
        descent.keep(iteration + 1)
        places |= {tensor.data_ptr() for tensor in descent.state().values()}
    assert len(places) == 2 * 2 * len(leaves)
