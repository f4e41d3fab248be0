"""The memory plan of pixel space, counted and run."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ld3m.config import DistillConfig, resolve
from ld3m.errors import ConfigError
from ld3m.matching import LOSSES
from ld3m.memory.pixel import plan_pixels
from ld3m.networks import build

CPU = torch.device("cpu")


def config(**more):
    settings = {"space": "pixel", "algorithm": "dm", "resolution": 32, "width": 64, "real_batch": 32} | more
    return resolve(DistillConfig(**settings), 32)


def planned(num_classes=100, **more):
    settings = config(**more)
    return plan_pixels(settings, num_classes, settings.real_batch, CPU)


@pytest.mark.parametrize("algorithm", ["dm", "dc"])
def test_it_stays_within_a_share_of_the_budget(algorithm):
    plan = planned(algorithm=algorithm, memory_budget="6GB")
    assert plan.peak_bytes < 0.3e9
    assert 1 <= plan.classes_in_flight <= 100
    assert plan.budget_bytes == 6 * 10**9
    more = planned(algorithm=algorithm, memory_budget="600GB")
    assert (more.classes_in_flight, more.real_chunk) == (100, None)
    less = planned(algorithm=algorithm, memory_budget="60MB")
    assert less.peak_bytes < 60e6 < plan.peak_bytes
    assert less.classes_in_flight < plan.classes_in_flight


def test_a_thousand_classes_take_their_images_and_a_group():
    plan = planned(1000, memory_budget="6GB")
    assert plan.peak_bytes <= plan.planner.resident + 6e9 / 32 < 5 * 1000 * 4 * 3 * 32**2 + 6e9 / 32 + 5e6
    assert plan.classes_in_flight < 200


def test_a_budget_below_the_smallest_plan_is_refused():
    smallest = planned(memory_budget="6GB").planner.smallest.peak_bytes
    assert planned(memory_budget=smallest).classes_in_flight == 1
    with pytest.raises(ConfigError, match=r"does not hold the smallest plan, .* for images and their gradients; raise"):
        planned(memory_budget=smallest - 1)


def test_less_is_planned_when_memory_runs_out():
    plan, seen = planned(memory_budget="6GB"), []
    while plan is not None:
        seen.append(plan.peak_bytes)
        plan = plan.smaller()
    assert len(seen) > 3
    assert seen == sorted(seen, reverse=True)


def test_batch_norm_sees_the_real_batch_whole():
    network = "ConvNetBN"
    plan = planned(10, network=network, memory_budget="600MB")
    assert plan.real_chunk is None


def test_trajectories_are_of_all_images():
    assert planned(algorithm="mtt") is None


@pytest.mark.parametrize("algorithm", ["dm", "dc"])
def test_the_peak_is_what_is_counted(algorithm):
    """On the CPU, of one group's matching in the chunk of the plan."""
    from ld3m.runtime.footprint import peak_bytes

    settings = config(algorithm=algorithm, memory_budget="3GB")
    plan = plan_pixels(settings, 100, 32, CPU)
    classes = plan.classes_in_flight
    network = build("ConvNet", num_classes=100, resolution=32, width=64, generator=torch.Generator()).train()

    def match():
        real = torch.zeros(classes, 32, 3, 32, 32)
        synthetic = torch.zeros(classes, 1, 3, 32, 32, requires_grad=True)
        loss = LOSSES[algorithm].of_classes
        loss(network, real, synthetic, torch.arange(classes), settings, plan.real_chunk).sum().backward()

    counted = plan.peak_bytes - plan.planner.resident
    assert peak_bytes(match, CPU) < 1.1 * counted


_RUN = """
import resource, sys, torch
torch.set_num_threads(1)
from ld3m.distillation.job import objective_of, prepare
draw = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (3200, 3, 32, 32), dtype=torch.uint8, generator=draw)
settings = {"space": "pixel", "algorithm": "dm", "width": 64, "real_batch": 32, "evaluate": "none", "holdout": 0}
settings |= {"resolution": 32, "memory_budget": "6GB"}
job = prepare((images, torch.arange(3200) // 32), settings, out=None, resume=False, overwrite=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
objective_of(job, False).backward(0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_rise_of_a_hundred_classes():
    done = subprocess.run([sys.executable, "-c", _RUN], capture_output=True, text=True, check=True, timeout=240)
    assert int(done.stdout.splitlines()[-1]) * 1024 < 300e6


def test_a_plan_by_hand_cuts_the_real_batch():
    plan = planned(memory_budget="6GB")
    assert replace(plan, real_chunk=None).cut(classes=None, images=None, decoded=None, real=8).real_chunk == 8
