"""What is held at once: sizes, counted bytes, plans."""

import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ld3m import memory
from ld3m.errors import ConfigError
from ld3m.memory import parse_bytes, plan_memory, saved_bytes

MB = 10**6


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


class Toy(nn.Module):
    """Its backward pass needs x once, for `sin`, and the weight and the product's other factor, for the product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5), requires_grad=False)

    def forward(self, x):
        return x.sin() * self.weight


def test_saved_bytes_counts_what_the_backward_pass_needs():
    x = torch.ones(3, 5, requires_grad=True)
    toy = Toy()
    assert saved_bytes(toy, lambda: toy(x)) == 15 * 4  # x; the weight is not counted
    assert saved_bytes(nn.Identity(), lambda: toy(x)) == 15 * 4 + 5 * 4
    assert saved_bytes(toy, lambda: toy(x) * x) == 2 * 15 * 4  # x is counted once, the product of both is kept
    assert saved_bytes(toy, lambda: (x * 2).exp()) == 15 * 4
    assert saved_bytes(toy, lambda: toy(x.detach())) == 0
    with torch.no_grad():
        assert saved_bytes(toy, lambda: toy(x.double())) == 15 * 8


@pytest.fixture(scope="module")
def costs(tiny_prior):
    """Bytes of decoding one image and of one guided evaluation at 16 px, counted by the definition."""
    latents = torch.zeros(1, 3, 8, 8, requires_grad=True)
    conditioning = tiny_prior.null_conditioning(1).requires_grad_()
    decoding = saved_bytes(tiny_prior.first_stage, lambda: tiny_prior.decode(latents))
    evaluation = saved_bytes(tiny_prior.denoiser, lambda: tiny_prior.predict_noise(latents, 500, conditioning))
    return decoding, 2 * evaluation


@pytest.fixture(scope="module")
def plan(tiny_prior, costs):
    """Plan with bytes that are counted once: `plan_memory` counts them at every call."""
    counted = {tiny_prior.first_stage: costs[0], tiny_prior.denoiser: costs[1] // 2}
    defaults = {"resolution": 16, "steps": 4, "ipc": 1, "num_classes": 10, "algorithm": "dc"}

    def make(**settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "saved_bytes", lambda module, _call: counted[module])
            return plan_memory(tiny_prior, **defaults | settings)

    return make


BUDGETS = st.integers(2_500_000, 120 * MB)
SETTINGS = st.fixed_dictionaries(
    {"steps": st.integers(1, 30), "num_classes": st.integers(2, 120), "guidance_scale": st.sampled_from((1.0, 3.0))}
)


@given(BUDGETS, SETTINGS, st.integers(1, 3))
def test_a_plan_fits_its_budget(plan, costs, budget, settings, ipc):
    decoding, evaluation = costs
    evaluation = evaluation if settings["guidance_scale"] != 1 else evaluation // 2
    try:
        found = plan(budget=budget, ipc=ipc, **settings)
    except ConfigError:
        assert budget < ipc * decoding + evaluation
        return
    images = found.classes_in_flight * ipc
    kept = round(found.retain * settings["steps"] * images)  # as `reverse_chain` counts
    assert found.peak_bytes == images * decoding + (kept + found.micro_batch) * evaluation
    assert found.peak_bytes <= found.budget_bytes == budget
    assert 1 <= found.micro_batch <= images
    assert 1 <= found.classes_in_flight <= settings["num_classes"]
    assert 0 <= found.retain <= 1


@given(BUDGETS, BUDGETS, SETTINGS)
def test_more_budget_never_retains_less(plan, first, second, settings):
    less, more = (plan(budget=budget, **settings) for budget in sorted((first, second)))
    assert less.retain <= more.retain
    assert less.classes_in_flight <= more.classes_in_flight


def test_with_enough_everything_is_kept_and_evaluations_are_full(plan, costs):
    decoding, evaluation = costs
    enough = 10 * decoding + (4 * 10 + 10) * evaluation
    found = plan(budget=enough)
    assert (found.retain, found.classes_in_flight, found.micro_batch) == (1.0, 10, 10)
    assert plan(budget=enough - 1).retain < 1
    assert plan(budget=10 * enough) == memory.Plan(1.0, 10, 10, enough, 10 * enough)


def test_classes_are_cut_into_equal_groups(plan):
    """A last group of one class would cost as much as a full one."""
    assert plan(budget="8GB", num_classes=100).classes_in_flight == 15  # 7 groups
    assert plan(budget="8GB", num_classes=17).classes_in_flight == 9
    assert plan(budget="8GB", ipc=50).classes_in_flight == 1
    assert plan(budget="8GB", ipc=50).micro_batch == 16


def test_a_small_budget_cuts_classes_before_the_micro_batch(plan, costs):
    found = plan(budget=6 * sum(costs))
    assert (found.classes_in_flight, found.micro_batch, found.retain) == (5, 5, 0.0)


def test_trajectories_need_all_images_at_once(plan, costs):
    decoding, evaluation = costs
    found = plan(budget=100 * decoding + 3 * evaluation, algorithm="mtt", ipc=10)
    assert (found.classes_in_flight, found.micro_batch, found.retain) == (10, 3, 0.0)
    with pytest.raises(ConfigError, match=r"does not hold what 100 decoded images and one evaluation"):
        plan(budget=100 * decoding + evaluation - 1, algorithm="mtt", ipc=10)


def test_without_a_chain_only_decoding_is_planned(plan, costs):
    assert plan(budget=10 * costs[0], steps=0) == memory.Plan(0.0, 10, 10, 10 * costs[0], 10 * costs[0])


def test_the_smallest_budget_and_one_byte_less(plan, costs, tiny_prior):
    settings = {"resolution": 16, "steps": 4, "ipc": 1, "num_classes": 10, "algorithm": "dc"}
    found = plan_memory(tiny_prior, **settings, budget=sum(costs))
    assert found == plan(budget=sum(costs))
    assert (found.classes_in_flight, found.micro_batch, found.retain, found.peak_bytes) == (1, 1, 0.0, sum(costs))
    with pytest.raises(
        ConfigError, match=rf"memory_budget of {(sum(costs) - 1) / 1e6:.2f} MB does not hold .+; raise it"
    ):
        plan(budget=sum(costs) - 1)


def test_the_default_is_a_share_of_all_memory_not_of_what_is_free(plan, monkeypatch):
    first = plan()
    blocks = [torch.zeros(8 * MB) for _ in range(4)]
    assert plan() == first
    del blocks
    assert first.budget_bytes == memory.total_memory(torch.device("cpu")) // 4
    monkeypatch.setattr(memory, "total_memory", lambda _device: 400 * MB)
    assert plan().budget_bytes == 100 * MB


def test_the_memory_of_a_gpu_is_what_it_has_in_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: types.SimpleNamespace(total_memory=7))
    assert memory.total_memory(torch.device("cuda")) == 7


def test_an_unconditional_prior_is_planned_without_guidance(reference_prior):
    prior = reference_prior("ffhq", torch.float32)
    common = {"resolution": prior.native_resolution, "steps": 2, "ipc": 1, "num_classes": 2, "algorithm": "dm"}
    assert prior.conditioning_shape is None
    plans = [plan_memory(prior, **common, budget="8GB", guidance_scale=scale) for scale in (1.0, 3.0)]
    assert plans[0] == plans[1]


def test_a_plan_reads_as_a_sentence(plan, costs):
    text = str(plan(budget="1GB"))
    peak = (10 * costs[0] + 50 * costs[1]) / 1e6
    assert text == f"activations {peak:.2f} MB of 1.00 GB: retain 1.00, micro-batch 10, classes in flight 10"
