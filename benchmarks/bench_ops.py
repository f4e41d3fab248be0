"""Every op and its baseline under pytest-benchmark.

    pytest benchmarks/bench_ops.py

The CPU's shapes with one thread, or the GPU's where there is one. `python -m benchmarks.run` compares the two.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.measuring import one_thread
from benchmarks.run import OPS, cases

SUITE, DEVICE = ("gpu", "cuda") if torch.cuda.is_available() else ("cpu", "cpu")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("side", ["ours", "baseline"])
def test_largest_shape(benchmark, op, side):
    *_, case = cases(SUITE, DEVICE, op, op)
    benchmark.group = f"{case['name']} {case['mode']} {case['dtype']}"

    def run():
        case[side]()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with one_thread():
        benchmark.pedantic(run, rounds=5, warmup_rounds=1)
