"""What is held at once: sizes, plans, and what is counted while they are carried out."""

import math
import types
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ld3m
from ld3m.config import DistillConfig, resolve
from ld3m.distillation import loop
from ld3m.distillation.job import objective_of, prepare
from ld3m.errors import ConfigError
from ld3m.matching import Line
from ld3m.memory import plan as memory
from ld3m.memory.costs import Costs, Workload
from ld3m.memory.diffusion import DiffusionPlanner, plan_memory
from ld3m.memory.plan import Plan, parse_bytes
from ld3m.runtime.devices import is_out_of_memory
from ld3m.runtime.footprint import Ledger, Pass
from ld3m.spaces import LatentSpace

MB = 10**6


@pytest.fixture(autouse=True)
def costs_are_counted_once() -> None:
    """Not here."""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("500 MB", 500 * MB),
        ("2GiB", 2 * 2**30),
        ("1.5 kib", 1536),
        ("0.25T", 250 * 10**9),
        ("12", 12),
        ("12B", 12),
        (" 7 m ", 7 * MB),
        (10**9, 10**9),
        (2.5e9, 2_500_000_000),
    ],
)
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@given(
    st.integers(1, 10**6), st.sampled_from(("", "K", "M", "G", "T")), st.sampled_from(("", "B", "iB")), st.booleans()
)
def test_every_unit_means_its_power(number, unit, ending, is_lower):
    text = f"{number} {unit}{ending}"
    base = 1024 if ending == "iB" else 1000
    assert parse_bytes(text.lower() if is_lower else text) == number * base ** " KMGT".index(unit or " ")


@pytest.mark.parametrize("text", ["lots", "", "-5GB", "0", "0.1", "8PB", "8 GB or so", "1e9", None, "GB", "8,5GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match=rf'memory_budget is a size such as "8GB" or a number of bytes, got {text!r}'):
        parse_bytes(text)


# Round figures, in units that stand for megabytes, so that plans can be checked by hand.
COSTS = Costs(
    resident=1000, latent=1, picture=2, chain=Pass(100, 104, 110, 50), chain_free=20, quantising=5,
    decoding=Pass(300, 310, 330, 80), decoding_free=60, real=Line(10, 7), synthetic=Line(20, 30), gradients=3,
    real_map=1, cuts_real_batch=True,
)  # fmt: skip
WORK = Workload(resolution=32, steps=4, ipc=1, num_classes=10, real_batch=64, algorithm="dc")


def planner(costs=COSTS, retain=None, **work):
    return DiffusionPlanner(costs, replace(WORK, **work), 16, retain)


WORKS = st.builds(
    dict,
    steps=st.integers(0, 30),
    ipc=st.integers(1, 20),
    num_classes=st.integers(1, 60),
    real_batch=st.integers(1, 300),
    algorithm=st.sampled_from(("dc", "dm", "mtt")),
)

RETAIN = st.sampled_from((None, 0.0, 0.4, 1.0))


@given(WORKS, st.integers(1, 10**5), st.integers(1, 10**5), st.booleans(), st.booleans(), RETAIN)
def test_a_plan_fits_and_a_larger_budget_has_a_peak_no_lower(work, first, second, can_cut, is_graphed, retain):
    planning = planner(replace(COSTS, cuts_real_batch=can_cut, is_graphed=is_graphed), retain, **work)
    needed, plans = planning.smallest.peak_bytes, []
    for budget in sorted((first, second)):
        if budget < needed:
            with pytest.raises(ConfigError, match="does not hold the smallest plan"):
                planning.plan(budget)
            continue
        plans.append(plan := planning.plan(budget))
        images = plan.classes_in_flight * work["ipc"]
        assert needed <= plan.peak_bytes <= plan.budget_bytes == budget
        assert 1 <= plan.classes_in_flight <= work["num_classes"]
        assert plan.classes_in_flight == work["num_classes"] or work["algorithm"] != "mtt"
        assert 1 <= plan.micro_batch <= images
        assert plan.decoder_batch is None or 1 <= plan.decoder_batch <= images
        assert plan.real_chunk is None or can_cut
        assert retain in (None, plan.retain) or not work["steps"]
        assert plan.retain == round(plan.retain, 2)
    if len(plans) == 2:
        assert plans[0].peak_bytes <= plans[1].peak_bytes


@given(WORKS, st.integers(10**3, 10**5))
def test_less_is_planned_until_the_smallest_plan(work, budget):
    planning = planner(**work)
    plan, peaks = planning.plan(max(budget, planning.smallest.peak_bytes)), []
    while plan is not None:
        peaks.append(plan.peak_bytes)
        plan = plan.smaller()
    assert peaks[-1] == planning.smallest.peak_bytes
    assert all(less <= max(0.7 * more, peaks[-1]) for more, less in pairwise(peaks))


def test_the_same_budget_gives_the_same_plan_with_what_it_retains_given():
    """A resumed run has the retained fraction among its settings."""
    for budget in range(1600, 9000, 300):
        plan = planner().plan(budget)
        assert planner(retain=plan.retain).plan(budget) == plan


def test_with_enough_everything_is_kept_whole():
    found = planner().plan(10**6)
    assert (found.retain, found.micro_batch, found.classes_in_flight) == (1.0, 10, 10)
    assert (found.decoder_batch, found.real_chunk, found.slow_down) == (None, None, 1.0)
    # Weights; 40 states; 10 images in 4 copies; 40 evaluations; 10 decoded images; the real ones, twice 64 a class.
    matching = 10 * 64 * 2 * 2
    assert found.peak_bytes == 1000 + 40 + 10 * 4 * 2 + 40 * 100 + 10 * 300 + matching
    assert found.saved_bytes == 40 + 40 * 100 + 10 * 300
    assert planner().plan(found.peak_bytes) == replace(found, budget_bytes=found.peak_bytes)
    assert planner().plan(found.peak_bytes - 1).retain < 1


def test_the_smallest_plan_and_one_byte_less():
    smallest = planner().smallest
    assert (smallest.retain, smallest.micro_batch, smallest.classes_in_flight) == (0.0, 1, 1)
    assert (smallest.decoder_batch, smallest.real_chunk) == (1, 1)
    # One image's decoding is the most: more than the chain's backward pass, 110, and than matching, 4 + 128 + 128.
    assert smallest.peak_bytes == 1000 + 4 + 4 * 2 + 2 * 2 + 330
    assert planner().plan(smallest.peak_bytes).peak_bytes == smallest.peak_bytes
    with pytest.raises(ConfigError, match=r"memory_budget of 0.00 MB .+ needs 0.00 MB, 0.00 MB of it for weights"):
        planner().plan(smallest.peak_bytes - 1)


def test_the_time_is_that_of_forward_passes():
    """Everything recomputed: 3.01 forward passes of chain and decoder instead of 2.01."""
    assert planner().smallest.slow_down == pytest.approx(3.01 / 2.01)
    only_decoder = planner(retain=1.0, steps=1).smallest
    assert only_decoder.slow_down == pytest.approx((2.01 * 50 + 3.01 * 80) / (2.01 * 130))


def test_fewer_calls_of_the_denoiser_go_before_what_is_retained():
    less, more = planner().plan(3400), planner().plan(4000)
    assert (less.classes_in_flight, less.micro_batch) == (5, 5)
    assert (more.classes_in_flight, more.micro_batch) == (10, 10)
    assert more.retain < 0.1 < less.retain


def test_classes_and_images_are_cut_evenly():
    """A last group of one class would cost as much as a full one."""
    assert planner(num_classes=100).plan(10**7).classes_in_flight == 15  # 7 groups
    assert planner(num_classes=17).plan(10**7).classes_in_flight == 9
    found = planner(ipc=50).plan(10**7)
    assert (found.classes_in_flight, found.micro_batch) == (1, 13)  # 4 calls


def test_the_real_batch_is_cut_only_as_far_as_needed():
    dear = replace(COSTS, real=Line(10, 100))
    budgets = {chunk: 1000 + 40 + 80 + 10 * 300 + 10 * 128 + 10 * 3 + 10 + 100 * chunk for chunk in (64, 32)}
    assert planner(dear, retain=0.0).plan(budgets[64]).real_chunk is None
    assert planner(dear, retain=0.0).plan(budgets[32]).real_chunk == 32
    uncut = replace(dear, cuts_real_batch=False)
    assert planner(uncut).plan(budgets[32]).real_chunk is None
    assert planner(uncut).smallest.peak_bytes > 1000 + 6400


def test_trajectories_need_all_images_at_once():
    planning = planner(algorithm="mtt", ipc=10, real_batch=0)
    assert planning.smallest.classes_in_flight == 10
    assert planning.plan(10**6).classes_in_flight == 10
    assert planning.plan(planning.smallest.peak_bytes + 3 * 110).decoder_batch >= 1


def test_the_default_is_a_share_of_all_memory_not_of_what_is_free(tiny_prior, monkeypatch):
    settings = {"resolution": 16, "steps": 2, "ipc": 1, "num_classes": 3, "algorithm": "dc", "width": 8}
    first = plan_memory(tiny_prior, **settings, real_batch=4)
    blocks = [torch.zeros(8 * MB) for _ in range(4)]
    assert plan_memory(tiny_prior, **settings, real_batch=4) == first
    del blocks
    assert first.budget_bytes == memory.total_memory(torch.device("cpu")) // 4
    monkeypatch.setattr(memory, "total_memory", lambda _device: 400 * MB)
    assert plan_memory(tiny_prior, **settings, real_batch=4).budget_bytes == 100 * MB


def test_the_memory_of_a_gpu_is_what_it_has_in_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: types.SimpleNamespace(total_memory=7))
    assert memory.total_memory(torch.device("cuda")) == 7


def test_an_unconditional_prior_is_planned_without_guidance(reference_prior):
    prior = reference_prior("ffhq", torch.float32)
    common = {"resolution": prior.native_resolution, "steps": 2, "ipc": 1, "num_classes": 2, "algorithm": "dm"}
    assert prior.conditioning_shape is None
    plans = [plan_memory(prior, **common, budget="8GB", width=8, guidance_scale=scale) for scale in (1.0, 3.0)]
    assert plans[0] == plans[1]


def test_a_large_prior_is_planned_without_its_weights():
    """What autograd keeps of a row of cin256 at 32² in float32, counted otherwise: 131.8 MB; its decoder, 390 MB."""
    prior = ld3m.load_prior("random:cin256", device="meta")
    plan = plan_memory(prior, resolution=128, steps=10, ipc=1, num_classes=10, algorithm="dc", budget="8GB")
    costs = plan.planner.costs
    assert costs.chain.held == pytest.approx(2 * 131.8e6, rel=0.01)
    assert costs.decoding.held == pytest.approx(390e6, rel=0.01)
    assert costs.chain.flops == pytest.approx(2 * 50.5e9, rel=0.01)
    assert costs.resident > 4 * (400_920_579 + 32_960_783)
    assert plan.peak_bytes <= 8 * 10**9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "DC"}, "algorithm is one of dc, dm, mtt; got 'DC'"),
        ({"ipc": 0}, "ipc is a whole number, at least 1; got 0"),
        ({"num_classes": 0}, "num_classes is a whole number, at least 1; got 0"),
        ({"real_batch": 0}, "real_batch is a whole number, at least 1; got 0"),
        ({"student_steps": -1}, "student_steps is a whole number, at least 1; got -1"),
        ({"steps": -1}, "steps is a whole number, at least 0; got -1"),
        ({"resolution": 0}, "resolution is a whole number, at least 1; got 0"),
        ({"resolution": 15}, "resolution must be divisible by 2, the first stage's factor in random:tiny; got 15"),
    ],
)
def test_what_cannot_be_planned_is_refused(change, message, tiny_prior):
    settings = {"resolution": 16, "steps": 1, "ipc": 1, "num_classes": 3, "algorithm": "dc", "budget": "8GB"}
    with pytest.raises(ConfigError, match=message):
        plan_memory(tiny_prior, **settings | change)


def test_networks_that_see_whole_batches_are_not_cut(tiny_prior):
    settings = {"resolution": 16, "steps": 1, "ipc": 1, "num_classes": 3, "algorithm": "dc", "budget": "8GB"}
    cut = {
        name: plan_memory(tiny_prior, **settings, network=name, real_batch=4).planner.costs.cuts_real_batch
        for name in ("ConvNet-w0.1", "ViT-w0.1")
    }
    assert cut == {"ConvNet-w0.1": True, "ViT-w0.1": False}


def test_a_plan_reads_as_a_sentence():
    plan = memory.Plan(0.25, 5, 10, 3, 32, peak_bytes=7_380_000_000, slow_down=1.4, budget_bytes=8 * 10**9)
    assert str(plan) == (
        "7.38 GB at most of the 8.00 GB allowed; 25 % of the chain's activations are kept, the others computed again, "
        "1.40 times as slow as keeping all. At once: 10 classes, 5 images in the denoiser, 3 in the decoder, "
        "32 real images"
    )
    assert str(replace(plan, decoder_batch=None, real_chunk=None)).endswith(
        "5 images in the denoiser, all in the decoder, all real images"
    )
    assert "all activations are kept, which is fastest." in str(replace(plan, retain=1.0, decoder_batch=None))
    assert plan._repr_html_() == f"<p>Memory: {plan}.</p>"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            True,
        ),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def between(plan, share):
    """Plan again for a budget on the way from the smallest plan's peak to this one's."""
    low = plan.planner.smallest.peak_bytes
    return plan.within(math.ceil(low + share * (plan.peak_bytes - low)))


# steps, ipc, classes, guidance, share of the way to keeping everything
CARRIED_OUT = [
    (4, 1, 10, 3.0, 1.0), (4, 1, 10, 3.0, 0.4), (4, 1, 10, 3.0, 0.0), (12, 1, 3, 1.0, 0.3), (1, 2, 5, 3.0, 0.5),
    (0, 1, 10, 3.0, 1.0), (0, 4, 3, 3.0, 0.1), (3, 5, 2, 3.0, 0.6), (2, 1, 17, 1.0, 0.2), (6, 3, 2, 3.0, 0.9),
    (2, 20, 1, 3.0, 0.05), (5, 1, 4, 3.0, 0.75),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "ipc", "classes", "guidance", "share"), CARRIED_OUT)
def test_saved_bytes_are_those_that_hooks_count(steps, ipc, classes, guidance, share, tiny_prior, saved_tensors):
    common = {"resolution": 16, "steps": steps, "ipc": ipc, "num_classes": classes, "algorithm": "dc", "width": 4}
    whole = plan_memory(tiny_prior, **common, real_batch=1, guidance_scale=guidance, budget="1TB")
    plan = between(whole, share)
    images = plan.classes_in_flight * ipc
    space = LatentSpace(
        tiny_prior,
        torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        tiny_prior.null_conditioning(images) if steps else None,
        learn=("latents", "conditioning"),
        resolution=16,
        chain=resolve(DistillConfig(steps=steps, guidance_scale=guidance), 16) if steps else None,
        retain=plan.retain,
        micro_batch=plan.micro_batch,
        decoder_batch=plan.decoder_batch,
    )
    with saved_tensors(*tiny_prior.modules()) as count:
        rendered = space.render(torch.arange(images), (0,))
        rendered.backward(torch.ones_like(rendered))
    assert plan.saved_bytes == pytest.approx(count.peak, rel=0.1)


@pytest.mark.parametrize("algorithm", ["dc", "dm"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_the_peak_is_what_an_iteration_allocates(algorithm, share, tiny_prior, coloured):
    settings = {"prior": tiny_prior, "algorithm": algorithm, "steps": 3, "width": 16, "evaluate": "none"}
    settings |= {"class_ids": (0, 1, 2), "memory_budget": "1TB"}
    job = prepare(coloured, settings, out=None, resume=False, overwrite=False)
    plan = between(job.plan, share)
    objective = objective_of(job, progress=False)
    objective.apply_plan(plan)
    running = loop._Loop(job, objective)
    running._iterate(0)  # makes the gradients of the parameters and their momentum
    running.optimizer.keep(1)
    state = running.optimizer.state()
    running._iterate(1)  # and the second state
    running.optimizer.keep(2)
    learnt = list(running.parameters.values())
    always_there = [*learnt, *(p.grad for p in learnt), *state.values(), *running.optimizer.state().values()]
    for module in (*tiny_prior.modules(), objective._network):
        always_there += [*module.parameters(), *module.buffers()]
    resident = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in always_there}.values())
    assert plan.planner.costs.resident == resident
    with Ledger() as ledger:
        objective.backward(1)
    assert plan.peak_bytes - resident == pytest.approx(ledger.peak, rel=0.1)


@pytest.mark.parametrize("algorithm", ["dc", "dm"])
@pytest.mark.parametrize("resolution", [128, 256])
def test_no_map_has_more_elements_than_libraries_of_a_gpu_count(algorithm, resolution):
    """Ten classes of 256 real images, with room for all of them."""
    prior = ld3m.load_prior("random:cin256", device="meta")
    size = {"resolution": resolution, "ipc": 1, "num_classes": 10, "steps": 10}
    plan = plan_memory(prior, **size, algorithm=algorithm, budget="120GB")
    together = plan.real_chunk or 256 * (plan.classes_in_flight if algorithm == "dm" else 1)
    assert 2**27 < together * 128 * resolution**2 <= 2**30


@pytest.mark.parametrize("resolution", [16, 64])
def test_small_maps_are_taken_whole(resolution):
    prior = ld3m.load_prior("random:cin256", device="meta")
    size = {"resolution": resolution, "ipc": 1, "num_classes": 10, "steps": 10}
    assert plan_memory(prior, **size, algorithm="dc", budget="120GB").real_chunk is None


def test_a_gpu_gets_more_images_at_once():
    """By the name of the device alone; ten classes of ten images."""
    sizes = {name: memory.images_in_flight(torch.device(name)) for name in ("cpu", "cuda")}
    plans = [DiffusionPlanner(COSTS, replace(WORK, ipc=10), most).plan(10**9) for most in sizes.values()]
    assert [(plan.classes_in_flight, plan.micro_batch) for plan in plans] == [(1, 10), (5, 50)]


def test_graphs_hold_what_their_evaluations_take_throughout():
    """All of two steps of two images kept in graphs, where eager evaluations leave what their backward pass took."""
    work = Workload(resolution=32, steps=2, ipc=1, num_classes=2, real_batch=1, algorithm="dm")
    plans = {}
    for is_graphed in (False, True):
        planning = DiffusionPlanner(replace(COSTS, is_graphed=is_graphed), work, 16)
        plans[is_graphed] = planning._rated(Plan(1.0, 2, 2, None, None)), planning._rated(Plan(0.0, 2, 2, None, None))
    kept, recomputed = ((graphed.peak_bytes - eager.peak_bytes) for eager, graphed in zip(*plans.values(), strict=True))
    assert kept == 4 * (COSTS.chain.peak - COSTS.chain.held)
    assert recomputed == 2 * COSTS.chain.peak


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("budget", ["3GB", "6GB", None])
def test_the_peak_is_what_a_gpu_allocates(budget):
    images = torch.randint(0, 256, (200, 3, 128, 128), dtype=torch.uint8), torch.arange(200) % 4
    settings = {"prior": "random:cin256", "dtype": "bfloat16", "resolution": 128, "steps": 4, "evaluate": "none"}
    settings["compile"] = False  # compiled losses keep less than is planned
    job = prepare(
        images, settings | {"device": "cuda", "memory_budget": budget}, out=None, resume=False, overwrite=False
    )
    objective = objective_of(job, progress=False)
    objective.backward(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    objective.backward(1)
    assert job.plan.peak_bytes == pytest.approx(torch.cuda.max_memory_reserved(), rel=0.1)
