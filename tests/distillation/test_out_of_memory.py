"""Runs whose memory is taken away: the iteration is repeated with less, and what cannot be done is said."""

import json
import logging
import re
import subprocess
import sys

import pytest
import torch

from ld3m.distillation.objectives import ClassMatching, TrajectoryMatching
from ld3m.errors import MemoryBudgetError
from ld3m.matching import dm
from ld3m.runtime.storage import load_tensors
from ld3m.spaces import LatentSpace

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.fixture
def go(distill_small):
    return lambda **settings: distill_small(**{"steps": 2, "lr": 0.01, "memory_budget": "1GB", **settings})


def run_out(patch, error, *, iteration=1, times=1, after=1):
    """Raise in an iteration, `times` attempts in a row, when the gradients of `after` groups are there already."""
    state = {"iteration": -1, "left": times, "losses": 0}
    backward, loss = ClassMatching.backward, dm.dm_loss

    def begin(self, number):
        state.update(iteration=number, losses=0)
        return backward(self, number)

    def lossy(*args, **kwargs):
        if state["iteration"] == iteration and state["left"] and state["losses"] == after:
            state["left"] -= 1
            raise error
        state["losses"] += 1
        return loss(*args, **kwargs)

    patch.setattr(ClassMatching, "backward", begin)
    patch.setattr(dm, "dm_loss", lossy)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_iteration_is_repeated_with_the_same_draws(error, go, tmp_path, monkeypatch, relative_error, caplog):
    expected = go()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        run_out(patch, error, after=0)
        result = go(out=tmp_path)
    assert relative_error(result.latents, expected.latents) < 1e-5
    assert relative_error(result.conditioning, expected.conditioning) < 1e-5
    (line,) = [record.message for record in caplog.records]
    assert re.match(r"out of memory in iteration 1; it is repeated with less: [\d.]+ MB at most of the ", line)
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts["plan"]["retain"] < result.config["retain"] == 1.0
    assert facts["plan"]["peak_bytes"] <= facts["plan"]["budget_bytes"] < 10**9
    assert facts["peak_memory_bytes"] > 0


def test_gradients_of_finished_classes_are_dropped(go, monkeypatch, relative_error):
    """Memory runs out at the second group of classes; that of the first has left its gradient."""
    settings = {"memory_budget": 7_000_000, "retain": 0.0}
    expected = go(**settings)
    groups = []
    apply = ClassMatching.apply_plan
    monkeypatch.setattr(
        ClassMatching, "apply_plan", lambda self, plan: (groups.append(len(self._groups)), apply(self, plan))
    )
    with monkeypatch.context() as patch:
        run_out(patch, MemoryError(), after=1)
        result = go(**settings)
    assert groups and groups[0] > 1
    assert relative_error(result.latents, expected.latents) < 1e-5


def test_a_resumed_run_goes_on_with_the_smaller_plan(go, tmp_path, monkeypatch):
    """And ends with the same bytes as one that was not interrupted."""
    with monkeypatch.context() as patch:
        run_out(patch, MemoryError(), iteration=0, after=0)
        whole = go(out=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        run_out(patch, MemoryError(), iteration=0, after=0)
        project, calls = LatentSpace.project, iter((False, True))

        def stop(self):
            if next(calls):
                raise KeyboardInterrupt
            project(self)

        patch.setattr(LatentSpace, "project", stop)
        go(out=tmp_path / "stopped")
    tensors, about = load_tensors(tmp_path / "stopped" / "checkpoint.safetensors")
    assert about["iteration"] == "1"
    resumed = go(out=tmp_path / "stopped", resume=True)
    plans = [json.loads((tmp_path / name / "result.json").read_text())["plan"] for name in ("whole", "stopped")]
    assert plans[0] == plans[1]
    assert plans[0]["budget_bytes"] == int(tensors["budget"])
    assert torch.equal(resumed.latents, whole.latents)


def test_the_smallest_plan_failing_ends_the_run_and_keeps_the_state(go, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        run_out(patch, MemoryError(), iteration=2, times=1000, after=0)
        with pytest.raises(
            MemoryBudgetError,
            match=r"cpu ran out of memory in iteration 2: there is not enough for what was planned, \d+.\d+ MB; the "
            "state before it is kept. Free what .+ or start anew with a lower memory_budget, ipc, resolution or",
        ):
            go(out=tmp_path)
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["iteration"] == "2"
    go(out=tmp_path, resume=True)  # when there is memory again


def test_pixels_are_matched_with_less(go, monkeypatch, relative_error, caplog):
    expected = go(space="pixel", memory_budget=None)
    run_out(monkeypatch, MemoryError(), iteration=1, after=0)
    result = go(space="pixel", memory_budget=None)
    assert "out of memory in iteration 1; it is repeated with less" in caplog.text
    assert relative_error(result.images, expected.images) < 1e-5


def test_trajectories_of_pixels_have_no_plan_to_make_smaller(go, tmp_path, monkeypatch):
    def none_left(self, iteration):
        raise MemoryError

    monkeypatch.setattr(TrajectoryMatching, "backward", none_left)
    with pytest.raises(MemoryBudgetError, match="ran out of memory in iteration 0: there is not enough; the state"):
        go(space="pixel", memory_budget=None, algorithm="mtt", out=tmp_path)


def test_trajectories_are_repeated_too(go, tmp_path, monkeypatch, relative_error):
    settings = {"algorithm": "mtt", "lr": 1.0, "iterations": 2}
    expected = go(out=tmp_path / "expected", **settings)
    backward, attempts = TrajectoryMatching.backward, []

    def once(self, iteration):
        attempts.append(iteration)
        if attempts == [0]:
            raise MemoryError
        return backward(self, iteration)

    monkeypatch.setattr(TrajectoryMatching, "backward", once)
    result = go(experts=expected.path / "experts", **settings)
    assert attempts == [0, 0, 1]
    assert relative_error(result.latents, expected.latents) < 1e-4


def test_other_errors_are_not_swallowed(go, monkeypatch):
    run_out(monkeypatch, RuntimeError("shapes cannot be multiplied"), after=0)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        go()


_LIMITED = """
import logging, resource, sys, torch
logging.basicConfig(format="%(message)s", level="INFO")
torch.set_num_threads(1)
import ld3m
settings = {"prior": "builtin", "width": 16, "progress": False, "evaluate": "none", "steps": 3, "ipc": 2, "lr": 0.01}
settings |= {"device": "cpu", "iterations": 1}
warm = ld3m.distill("builtin", memory_budget="60MB", **settings)  # what is loaded and compiled once is there
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
try:
    result = ld3m.distill("builtin", **settings)
    print("largest difference", float((result.latents - warm.latents).abs().max()))
except ld3m.errors.MemoryBudgetError as error:
    print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
@pytest.mark.parametrize("mebibytes", [20, 55, 70, 90, 110])
def test_a_job_that_its_process_has_no_room_for_is_planned_smaller(mebibytes):
    """Under a limit of the system's, in a process of its own: its plan needs 140 MB."""
    process = subprocess.run([sys.executable, "-c", _LIMITED, str(mebibytes)], capture_output=True, text=True)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert "0.14 GB at most of the" in process.stderr
    assert "out of memory in iteration 0; it is repeated with less" in process.stderr
    if mebibytes == 20:
        assert re.match(r"refused: cpu ran out of memory in iteration 0: .*the state before it is kept", process.stdout)
    else:
        assert float(process.stdout.split()[-1]) < 1e-4
