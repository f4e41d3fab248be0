"""Each term of a plan by itself: weights and states, what waits in trajectory matching, more images of a class."""

import re
from dataclasses import replace

import pytest
import torch

from ld3m import networks
from ld3m.errors import ConfigError
from ld3m.matching import Line, dc_loss
from ld3m.memory import Plan, plan_memory
from ld3m.memory.costs import Costs
from ld3m.runtime.footprint import Pass

COMMON = {"resolution": 16, "steps": 0, "budget": "1TB", "width": 8}


def nbytes(*modules) -> int:
    return sum(p.nbytes for module in modules for p in (*module.parameters(), *module.buffers()))


def smallest(prior, **options) -> Plan:
    plan = plan_memory(prior, **COMMON | options)
    while less := plan.smaller():
        plan = less
    return plan


@pytest.mark.parametrize("steps", [0, 2])
def test_weights_and_five_copies_of_every_latent_are_always_there(steps, tiny_prior):
    with pytest.raises(ConfigError) as refused:
        options = {"steps": steps, "ipc": 50, "num_classes": 100, "algorithm": "dm", "budget": 1}
        plan_memory(tiny_prior, **COMMON | options)
    said = float(re.search(r"([\d.]+) MB of it for weights and states", str(refused.value))[1])
    latent = 4 * (3 * 8 * 8 + (8 if steps else 0))  # with its conditioning where there is a chain
    network = networks.build("ConvNet", num_classes=100, resolution=16, width=8)
    expected = nbytes(*tiny_prior.modules(), network) + 5 * 5000 * latent
    assert said == pytest.approx(expected / 1e6, rel=0.01)


def test_every_student_step_keeps_its_weights_and_four_copies_of_its_images(tiny_prior):
    options = {"algorithm": "mtt", "ipc": 3, "num_classes": 4}
    peaks = [smallest(tiny_prior, **options, student_steps=steps).peak_bytes for steps in (20, 40, 60)]
    network = nbytes(networks.build("ConvNet", num_classes=4, resolution=16, width=8))
    step = network + 12 * 4 * 4 * 3 * 16 * 16
    assert peaks[1] - peaks[0] == peaks[2] - peaks[1] == 20 * step
    many = [smallest(tiny_prior, **options | {"ipc": 100}, student_steps=steps).peak_bytes for steps in (20, 40)]
    assert many[1] - many[0] == 20 * (network + 256 * 4 * 4 * 3 * 16 * 16)  # at most 256 images a step


def test_more_images_of_a_class_take_what_matching_them_allocates(tiny_prior, peak_bytes):
    network = networks.build("ConvNet", num_classes=4, resolution=16, width=8)
    draw = torch.Generator().manual_seed(0)

    def matching(ipc: int) -> int:
        synthetic = torch.rand(1, ipc, 3, 16, 16, generator=draw).requires_grad_()
        real = torch.rand(1, 1, 3, 16, 16, generator=draw)
        return peak_bytes(lambda: dc_loss(network, real, synthetic, torch.tensor([0])))

    options = {"algorithm": "dc", "num_classes": 4, "real_batch": 1}
    plans = [plan_memory(tiny_prior, **COMMON | options, ipc=ipc) for ipc in (1, 33)]
    sides = [plan.planner.costs.synthetic(1) for plan in plans]
    assert sides[1] - sides[0] == pytest.approx(matching(33) - matching(1), rel=0.25)


COSTS = Costs(
    resident=1000, latent=1, picture=2, chain=Pass(100, 104, 110, 50), chain_free=20, quantising=5,
    decoding=Pass(300, 310, 330, 80), decoding_free=60, real=Line(10, 7), synthetic=Line(20, 30), gradients=3,
    real_map=1, cuts_real_batch=True,
)  # fmt: skip
ALWAYS = 1000 + 40 + 10 * 4 * 2  # weights, 40 states, ten images in four copies
KEPT = Plan(1.0, 5, 10, None, None)


@pytest.mark.parametrize(
    ("change", "plan", "phase"),
    [
        ({"quantising": 10**6}, KEPT, 10 * 10**6),  # of all images at once, before anything is kept
        ({"chain_free": 10**6}, KEPT, 40 * 100 + 5 * 10**6),
        ({"chain": Pass(100, 10**6, 10**6, 50)}, KEPT, 40 * 100 + 5 * (10**6 - 100)),
        ({"chain": Pass(100, 104, 10**6, 50)}, KEPT, 40 * 100 + 5 * (10**6 - 100)),
        ({"chain": Pass(100, 104, 10**6, 50)}, replace(KEPT, retain=0.0), 5 * 10**6),
        ({"decoding": Pass(300, 310, 10**6, 80)}, KEPT, 40 * 100 + 10 * 10**6),
        ({"decoding_free": 10**6}, replace(KEPT, decoder_batch=3), 40 * 100 + 10 * 2 * 2 + 3 * 10**6),
        ({"real": Line(10, 10**6)}, KEPT, 40 * 100 + 10 * 300 + 10 * 64 * 2 + 10 + 64 * 10**6 + 10 * 3),
        ({"synthetic": Line(20, 10**6)}, KEPT, 40 * 100 + 10 * 300 + 10 * 64 * 2 + 20 + 10 * 10**6 + 10 * 3),
    ],
)
def test_the_dearest_phase_is_the_peak(change, plan, phase, tiny_prior):
    """In units that can be added up by hand: four steps of ten images, micro-batches of five."""
    planner = plan_memory(tiny_prior, **COMMON, ipc=1, num_classes=10, algorithm="dc").planner
    work = replace(planner.work, steps=4, ipc=1, num_classes=10, real_batch=64, algorithm="dc")
    planner = replace(planner, costs=replace(COSTS, **change), work=work)
    assert planner._rated(plan).peak_bytes == ALWAYS + phase
