"""Compiled matching gives what eager matching gives; a function that does not compile runs eager, and says so once."""

import logging
from functools import partial

import pytest
import torch

from ld3m import networks
from ld3m.matching import dc_loss, dm_loss, mtt_loss
from ld3m.matching.compiled import compiled
from ld3m.matching.gradient import weights_of


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Trace and differentiate as for real, but generate no code, which takes minutes."""
    compiled.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    compiled.cache_clear()
    torch._dynamo.reset()


def both(call, leaf, caplog):
    """Return (value, gradient) eager and compiled; nothing may have fallen back."""
    found = []
    for compile in (False, True):
        x = leaf.detach().clone().requires_grad_()
        with caplog.at_level(logging.WARNING):
            value = call(x, compile=compile)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        found.append((value.detach(), gradient))
    assert not [record for record in caplog.records if record.name.startswith("ld3m")]
    return found


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("metric", ["layerwise-cosine", "mse", "cosine"])
def test_gradient_matching(metric, classes, small_network, seeded, relative_error, caplog):
    depth = 2 if metric == "layerwise-cosine" else 1  # every block takes seconds to trace
    network, labels = small_network("ConvNet", depth=depth), torch.arange(classes)
    call = partial(dc_loss, network, seeded(classes, 4, 3, 32, 32), labels=labels, metric=metric)
    eager, fast = both(lambda x, compile: call(synthetic=x, compile=compile), seeded(classes, 2, 3, 32, 32), caplog)
    for got, expected in zip(fast, eager, strict=True):
        assert relative_error(got, expected) < 1e-9


def test_feature_matching(small_network, seeded, relative_error, caplog):
    network, real = small_network("ConvNet"), seeded(2, 4, 3, 32, 32)
    eager, fast = both(lambda x, compile: dm_loss(network, real, x, compile=compile), seeded(2, 2, 3, 32, 32), caplog)
    for got, expected in zip(fast, eager, strict=True):
        assert relative_error(got, expected) < 1e-10


@pytest.mark.parametrize("unroll", ["exact", "tesla"])
def test_trajectory_matching(unroll, small_network, seeded, relative_error, caplog):
    network = small_network("ConvNet", depth=1)
    start = list(weights_of(network).values())
    target = [weight + 0.01 * torch.ones_like(weight) for weight in start]
    labels, batches = torch.arange(4), [torch.tensor([0, 2]), torch.tensor([1, 3])]
    call = partial(mtt_loss, network, start, target, labels=labels, student_lr=0.01, batches=batches, unroll=unroll)
    eager, fast = both(lambda x, compile: call(images=x, compile=compile), seeded(4, 3, 32, 32), caplog)
    for got, expected in zip(fast, eager, strict=True):
        assert relative_error(got, expected) < 1e-9


@pytest.mark.parametrize("algorithm", ["dc", "dm"])
def test_new_weights_are_not_compiled_again(algorithm, small_network, seeded):
    network, sides = small_network("ConvNet"), (seeded(2, 2, 3, 32, 32), seeded(2, 1, 3, 32, 32))
    call = (
        partial(dc_loss, network, *sides, torch.arange(2)) if algorithm == "dc" else partial(dm_loss, network, *sides)
    )
    torch._dynamo.utils.counters.clear()
    losses = []
    for seed in (0, 1):
        networks.initialize(network, torch.Generator().manual_seed(seed))
        losses.append(call(compile=True))
        torch.testing.assert_close(losses[-1], call())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch.allclose(*losses)


def test_what_does_not_compile_runs_eager_and_says_so_once(caplog):
    def stubborn(x):
        torch._dynamo.graph_break()
        return 2 * x

    with caplog.at_level(logging.WARNING):
        results = [compiled(stubborn)(torch.ones(2)) for _ in range(3)]
    assert all(result.tolist() == [2.0, 2.0] for result in results)
    (record,) = [record for record in caplog.records if record.name.startswith("ld3m")]
    assert record.message.startswith("stubborn runs eager: it does not compile (")


def test_errors_of_the_function_itself_are_not_swallowed():
    def failing(x):
        return x.view(3)

    with pytest.raises(RuntimeError, match="shape"):
        compiled(failing)(torch.ones(2))


def test_more_shapes_than_are_compiled_run_eager(caplog):
    def doubled(x):
        return 2 * x

    call = compiled(doubled)
    for count in range(1, torch._dynamo.config.recompile_limit + 3):
        assert torch.equal(call(torch.ones(count)), torch.full((count,), 2.0))
    (line,) = [record.message for record in caplog.records if record.name.startswith("ld3m")]
    assert line.startswith("doubled runs eager: it does not compile (")
