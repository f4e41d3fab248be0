"""The chain, forward and backward, against the scheme of the released code: time, and memory over the steps.

    pytest benchmarks/bench_chain.py -s

Times are process CPU times of one thread, the smallest of interleaved runs, so that other load on the machine does not
count. Memory is counted in bytes that autograd holds, and as the peak resident size of a process of its own.
"""

import gc
import json
import resource
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ld3m
from ld3m.priors import ExecutionConfig

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.chain import GUIDANCE, inputs, ours, schemes
from benchmarks.run import processor

IMAGES = 10
LARGE = 128  # images of the memory runs: enough to stand out from what an idle process takes
RESULTS = Path(__file__).parent / "results" / "chain_cpu.json"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prior():
    return ld3m.load_prior("random:builtin")


@pytest.fixture(scope="module")
def frozen():
    return ld3m.load_prior("random:builtin").set_execution(ExecutionConfig())


LEAST = {"recompute": 1.25, "retain": 1.7, "recompute, streamlined": 1.4, "retain, streamlined": 2.0}


@pytest.mark.parametrize("scheme", ["official", *LEAST])
def test_time_of_an_iteration(benchmark, prior, frozen, scheme):
    benchmark.group = f"chain, T = 10, {IMAGES} images, {prior.name}"
    run = schemes(prior, frozen, 10, IMAGES)[scheme]
    grads = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_faster_than_the_official_scheme(prior, frozen):
    runs = schemes(prior, frozen, 10, IMAGES)
    expected = runs["official"]()
    for name in LEAST:
        for got, wanted in zip(runs[name](), expected, strict=True):
            assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    seconds = {name: [] for name in runs}
    for _ in range(6):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    best = {name: min(times) for name, times in seconds.items()}
    ratios = {name: best["official"] / best[name] for name in LEAST}
    note("time", {"seconds": best, "ratios": ratios, "all": seconds})
    assert all(ratios[name] >= least for name, least in LEAST.items())


def peak_saved_bytes(prior, steps: int) -> int:
    """Return the most bytes autograd holds at once between the first call and the last gradient, weights left out."""
    weights = {p.untyped_storage().data_ptr() for module in prior.modules() for p in module.parameters()}
    held, peak, current = {}, 0, 0

    class Box:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def release(key: int) -> None:
        nonlocal current
        current -= held.pop(key)

    def pack(tensor: Tensor) -> Box:
        nonlocal peak, current
        box = Box(tensor)
        if tensor.untyped_storage().data_ptr() not in weights:
            held[id(box)] = tensor.untyped_storage().nbytes()
            current += held[id(box)]
            peak = max(peak, current)
            weakref.finalize(box, release, id(box))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        ours(prior, *inputs(prior, IMAGES), steps=steps, retain=0.0)
    gc.collect()
    return peak


def test_saved_bytes_are_flat_in_the_number_of_steps(prior):
    few, many = peak_saved_bytes(prior, 10), peak_saved_bytes(prior, 40)
    note("saved bytes", {"T=10": few, "T=40": many, "growth": many / few - 1})
    assert many <= 1.05 * few


def test_peak_resident_size_is_flat_in_the_number_of_steps():
    peaks = {}
    for steps in (10, 40):
        command = [sys.executable, __file__, str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        before, peaks[steps] = json.loads(done.stdout)
        assert peaks[steps] > 1.2 * before, "the chain has to be what sets the peak"
    figures = {f"T={steps}": peak for steps, peak in peaks.items()}
    note("peak resident KiB", figures | {"before": before, "images": LARGE, "growth": peaks[40] / peaks[10] - 1})
    assert peaks[40] <= 1.05 * peaks[10]


def note(name: str, figures: dict[str, object]) -> None:
    """Keep figures under benchmarks/results, with the machine and versions beside them."""
    print(f"\n{name}: {json.dumps({k: v for k, v in figures.items() if k != 'all'})}")
    content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    content |= {
        "command": "pytest benchmarks/bench_chain.py -s",
        "setting": f"random:builtin, {IMAGES} images, T = 10, guidance {GUIDANCE}, float32, one thread",
        "machine": processor(),
        "torch": torch.__version__,
        name: figures,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    random_prior = ld3m.load_prior("random:builtin")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(random_prior, *inputs(random_prior, LARGE), steps=int(sys.argv[1]), retain=0.0)
    print(json.dumps([loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
