"""Graphed evaluations: on a CPU with a recorder that replays by calling again, on a GPU with captured graphs."""

import contextlib
import copy
import gc
import itertools
import types
import weakref
from dataclasses import replace

import pytest
import torch

import ld3m
from ld3m.memory import Plan
from ld3m.memory.costs import Workload, count_costs
from ld3m.priors import ExecutionConfig
from ld3m.priors.frozen.graphs import CudaRecorder, GraphedDenoiser
from ld3m.spaces import LatentSpace


def call_again(*functions, forget):
    """Run the functions, as a warm-up does, and record nothing: a replay is another call."""
    for function in functions:
        function()
    forget()
    return functions


class FakeCuda:
    """What `CudaRecorder` takes of torch.cuda, on a CPU: captures run, replays run again, and both are noted."""

    def __init__(self) -> None:
        self.captures, self.num_streams, self.current = [], 0, "default"

    def stand_in(self, monkeypatch) -> None:
        pools = itertools.count()
        for name, value in {
            "Stream": self._new_stream,
            "current_stream": lambda: types.SimpleNamespace(wait_stream=lambda stream: None),
            "stream": self._on,
            "device": lambda device: contextlib.nullcontext(),
            "graph_pool_handle": lambda: next(pools),
            "CUDAGraph": types.SimpleNamespace,
            "graph": self._capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def _new_stream(self, device):
        self.num_streams += 1
        return types.SimpleNamespace(name=f"own {self.num_streams}", wait_stream=lambda stream: None)

    @contextlib.contextmanager
    def _on(self, stream):
        self.current = stream.name
        yield
        self.current = "default"

    @contextlib.contextmanager
    def _capture(self, graph, *, pool, stream):
        graph.replay = lambda: None
        self.captures.append((pool, stream.name))
        with self._on(stream):
            yield


@pytest.fixture
def fake_cuda(monkeypatch):
    fake = FakeCuda()
    fake.stand_in(monkeypatch)
    return fake


@pytest.fixture
def graphed():
    """The prior "random:tiny" in float64 with graphed evaluations of a CPU's kind."""
    prior = ld3m.load_prior("random:tiny", dtype=torch.float64).set_execution(ExecutionConfig())
    prior.frozen.graphs = GraphedDenoiser(prior.frozen.denoiser, call_again)
    return prior


@pytest.fixture(scope="module")
def eager():
    return ld3m.load_prior("random:tiny", dtype=torch.float64).set_execution(ExecutionConfig())


def run(prior, *, num_images=3, learn=("latents", "conditioning"), **settings):
    draw = torch.Generator().manual_seed(1)
    latents, noise, cotangent = torch.randn(3, num_images, 3, 4, 4, generator=draw, dtype=torch.float64).to(
        prior.device, prior.dtype
    )
    conditioning = prior.embed(torch.arange(num_images) % 4).clone()
    inputs = {"latents": latents, "conditioning": conditioning}
    wanted = [inputs[name].requires_grad_() for name in learn]
    z0 = ld3m.reverse_chain(prior, latents, conditioning, noise=noise, **{"steps": 3, **settings})
    return z0.detach(), *torch.autograd.grad(z0, wanted, cotangent)


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("retain", [0.0, 0.5, 1.0])
def test_the_chain_is_the_eager_one(graphed, eager, retain, micro_batch, guidance_scale):
    settings = {"retain": retain, "micro_batch": micro_batch, "guidance_scale": guidance_scale}
    expected = run(eager, **settings)
    for _ in range(2):
        assert all(torch.equal(got, want) for got, want in zip(run(graphed, **settings), expected, strict=True))


@pytest.mark.parametrize("learn", [("latents",), ("conditioning",)])
def test_what_is_not_learnt_gets_no_gradient(graphed, eager, learn):
    got, expected = (run(prior, learn=learn, retain=0.3) for prior in (graphed, eager))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("settings", "num_slots"),
    [
        ({"retain": 0.0}, 1),
        ({"retain": 0.0, "micro_batch": 2}, 2),  # blocks of two images and of one
        ({"retain": 1.0}, 3),
        ({"retain": 1.0, "micro_batch": 2}, 6),
        ({"retain": 1 / 3}, 1),
    ],
)
def test_as_many_slots_as_evaluations_kept_at_once(graphed, settings, num_slots):
    for _ in range(2):
        run(graphed, **settings)
        assert graphed.frozen.graphs.num_slots == num_slots


def test_slots_come_back_when_a_chain_is_dropped_without_a_backward_pass(graphed):
    latents = torch.zeros(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    conditioning = graphed.null_conditioning(2)
    for _ in range(3):
        ld3m.reverse_chain(graphed, latents, conditioning, steps=3, noise=torch.zeros(2, 3, 8, 8).double(), retain=1.0)
    assert graphed.frozen.graphs.num_slots == 3
    with torch.no_grad():
        ld3m.reverse_chain(graphed, latents, conditioning, steps=3, noise=torch.zeros(2, 3, 8, 8).double(), retain=1.0)
    assert graphed.frozen.graphs.num_slots == 3


def test_results_are_not_overwritten_by_the_next_replay(graphed):
    latents, conditioning = torch.randn(1, 3, 8, 8, dtype=torch.float64), graphed.project(graphed.null_conditioning(1))
    first = graphed.evaluate(latents, 5, conditioning, wants=(True, True))
    kept, product = first.predictions, first.vjp(torch.ones_like(latents))
    copies = [x.clone() for x in (kept, *product)]
    del first
    second = graphed.evaluate(latents + 1, 900, conditioning, wants=(True, False))
    assert second.vjp(torch.ones_like(latents))[1] is None
    assert graphed.frozen.graphs.num_slots == 1
    assert all(torch.equal(x, y) for x, y in zip((kept, *product), copies, strict=True))


def test_inputs_and_outputs_of_a_slot_stay_where_they_are(graphed):
    """A captured graph reads and writes fixed addresses: what is replayed must find its inputs there."""
    run(graphed)
    [[slot]] = graphed.frozen.graphs._free.values()
    before = [x.data_ptr() for x in (*slot._inputs, slot._cotangent)]
    run(graphed)
    assert [x.data_ptr() for x in (*slot._inputs, slot._cotangent)] == before


def test_released_slots_are_gone_with_what_holds_them(graphed):
    evaluation = graphed.evaluate(torch.zeros(1, 3, 8, 8).double(), 5, graphed.null_conditioning(1), wants=(True, True))
    slot = weakref.ref(evaluation._slot)
    graphed.frozen.graphs.release()
    gc.collect()
    assert graphed.frozen.graphs.num_slots == 0 and slot() is not None
    del evaluation
    gc.collect()
    assert slot() is None


def test_another_plan_lets_go_of_the_slots_of_the_one_before(graphed, eager):
    expected = run(eager, retain=1.0)
    run(graphed, retain=1.0)
    space = LatentSpace(graphed, torch.zeros(1, 3, 8, 8), None, learn=("latents",), resolution=16, chain=None)
    space.apply_plan(Plan(0.0, 1, 1, 1, None))
    assert graphed.frozen.graphs.num_slots == 0
    assert all(torch.equal(got, want) for got, want in zip(run(graphed), expected, strict=True))
    assert graphed.frozen.graphs.num_slots == 1


def test_costs_are_counted_without_graphs(graphed, eager):
    """A replay makes nothing and calls nothing that could be counted."""
    work = Workload(resolution=16, steps=1, ipc=1, num_classes=2, algorithm="dm", real_batch=1, width=4)
    expected = count_costs(eager, work)
    assert count_costs(graphed, work) == replace(expected, is_graphed=True) and expected.chain.flops > 0
    assert graphed.frozen.graphs.num_slots == 0  # the prior itself stays as it is


def test_moving_a_prior_drops_what_was_recorded(graphed):
    assert graphed.to(dtype=torch.float32).frozen.graphs is None  # as a CPU's defaults say


@pytest.mark.parametrize("execution", [None, ExecutionConfig(channels_last=False)])
def test_moving_the_weights_that_recorded_calls_read_drops_them(execution, graphed, monkeypatch):
    """By a copy of the prior that shares its weights."""
    decided = ExecutionConfig(fused_norm=True, channels_last=True, cuda_graphs=True)
    with monkeypatch.context() as patches:
        patches.setattr(ExecutionConfig, "on", lambda *_: decided)  # as on a GPU
        graphs = graphed.set_execution(ExecutionConfig()).frozen.graphs
    graphs.num_slots = 1
    copy.copy(graphed).set_execution(ExecutionConfig(channels_last=True))
    assert graphs.num_slots == 1  # nothing moved
    copy.copy(graphed).set_execution(execution)
    assert graphs.num_slots == 0


def test_every_slot_has_a_pool_of_its_own(graphed, fake_cuda):
    """One slot's temporaries must not lie where another one's activations are kept."""
    graphed.frozen.graphs = GraphedDenoiser(graphed.frozen.denoiser, CudaRecorder(torch.device("cuda")))
    run(graphed, retain=1.0, micro_batch=2)
    assert graphed.frozen.graphs.num_slots == 6
    pools = [pool for pool, _ in fake_cuda.captures]
    assert pools[::2] == pools[1::2]  # a call and its product
    assert len(set(pools)) == 6


def test_warm_ups_and_captures_share_one_stream_and_hold_one_evaluation(fake_cuda):
    held, most, streams = set(), [], []

    def forward():
        held.add(len(most))
        most.append(len(held))
        streams.append(fake_cuda.current)

    recorder = CudaRecorder(torch.device("cuda"))
    for _ in range(2):
        held.clear()
        recorder(forward, lambda: streams.append(fake_cuda.current), forget=held.clear)
    assert max(most) == 1
    assert set(streams) == {"own 1"} and fake_cuda.num_streams == 1
    assert [name for _, name in fake_cuda.captures] == ["own 1"] * 4


def test_a_slot_forgets_its_trial_runs(graphed):
    def record(*functions, forget):
        replays = call_again(*functions, forget=forget)
        slot = forget.__self__
        assert (slot._predictions, slot._grads) == (None, None)
        return replays

    graphed.frozen.graphs = GraphedDenoiser(graphed.frozen.denoiser, record)
    run(graphed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("retain", [0.0, 0.5, 1.0])
def test_captured_graphs_give_the_eager_chain(relative_error, retain):
    priors = [
        ld3m.load_prior("random:tiny", device="cuda").set_execution(ExecutionConfig(cuda_graphs=is_on))
        for is_on in (True, False)
    ]
    for micro_batch in (None, 2):
        for _ in range(2):
            got, want = (run(prior, retain=retain, micro_batch=micro_batch) for prior in priors)
            assert all(relative_error(a, b) <= 1e-5 for a, b in zip(got, want, strict=True))
