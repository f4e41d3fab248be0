"""Check a case of a benchmark against its baseline, then time both and count their memory.

A case is a dictionary of name, mode, shape, dtype, against, and of two functions without arguments, `ours` and
`baseline`. It may also have

    bytes            read and written by one call of ours
    images           made by one call of ours
    work             a function that does the work of ours without CUDA graphs, whose operations are counted
    baseline_flop    of one call of the baseline, a matrix product: `ratio` is then the share of its rate
    tolerance        largest error that is let pass; None where the two are not to give the same tensors
    runs             timed runs of each
    baseline_runs    of the baseline after each run of ours, one unless said
    context          a context manager inside which the baseline runs
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ld3m.ops.backends import BACKENDS
from ld3m.runtime.footprint import Ledger

MIB = 2**20
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 3e-2}
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


class WrongResult(Exception):
    """Ours and the baseline differ by more than the case's tolerance."""


class _Watch(Ledger):
    """The ledger of memory, which also notes the backends that the ops of ld3m ran on."""

    def __init__(self) -> None:
        super().__init__()
        self.backends: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ld3m":
            self.backends |= {a for a in args if isinstance(a, str) and a in BACKENDS}
        return super().__torch_dispatch__(function, types, args, kwargs)


def measure(case: dict, device: torch.device, seconds: float, runs: int, kept: dict[tuple, int]) -> dict:
    """Return the measured part of a row.

    Args:
        seconds: about how long to time the two.
        runs: of each, where the case has no number of its own.
        kept: bytes that functions kept on the device since their first call, such as captured graphs, by case; added
            to here, for cases of one process that are alike but for the baseline and share `ours`.
    """
    ours, baseline, context = case["ours"], case["baseline"], case.get("context", contextlib.nullcontext)
    before, started = _allocated(device), time.perf_counter()
    result = ours()
    _synchronise(device)
    first, with_ours = time.perf_counter() - started, _allocated(device)
    with context():
        error = _error(case, result, baseline())
    of_baseline = _allocated(device) - with_ours
    del result
    key = tuple(case[name] for name in ("name", "mode", "shape", "dtype"))
    kept.setdefault(key, _allocated(device) - before - of_baseline)
    # A mode that watches operations and compiled code exclude each other.
    with _Watch() as watch, torch.compiler.set_stance("force_eager"):
        ours()
    memory = _cuda_peak if device.type == "cuda" else _cpu_peak
    ours_mib = (memory(ours) + kept[key]) / MIB
    with context():
        baseline_mib = (memory(baseline) + of_baseline) / MIB
    times = {"ours": [], "baseline": []}
    clock = _cuda_clock if device.type == "cuda" else _cpu_clock
    least, ended = case.get("runs", runs), time.perf_counter() + seconds
    while len(times["ours"]) < least or (time.perf_counter() < ended and len(times["ours"]) < 10 * least):
        times["ours"].append(clock(ours))
        with context():
            times["baseline"] += [clock(baseline) for _ in range(case.get("baseline_runs", 1))]
    # Another job on a shared CPU can only add time, so its smallest time is what a call takes; a GPU is not shared.
    summary = statistics.median if device.type == "cuda" else min
    best = {name: 1e3 * summary(values) for name, values in times.items()}
    row = {
        **best,
        "ratio": best["baseline"] / best["ours"],
        "unit": "ms",
        "statistic": "median of CUDA events" if device.type == "cuda" else "smallest CPU time of one thread",
        "ours_mib": ours_mib,
        "baseline_mib": baseline_mib,
        "memory": "peak of a call, with what the first one left behind, above weights and whatever else was there",
        "runs": len(times["ours"]),
        "spread": {name: [1e3 * q for q in _quartiles(values)] for name, values in times.items()},
        "error": error,
        "backend": "+".join(sorted(watch.backends)) or "torch",
        "first_call_s": first,
    }
    if device.type == "cuda":
        row["launches"] = {"ours": _launches(ours)}
        with context():
            row["launches"]["baseline"] = _launches(baseline)
    return row


def _error(case: dict, ours: object, baseline: object) -> float | None:
    """Return the largest difference relative to the baseline's largest value; raise when it is too large."""
    pairs = list(zip(*([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (ours, baseline)), strict=False))
    if not all(bool(torch.isfinite(t).all()) for pair in pairs for t in pair):
        raise WrongResult(f"{case['name']}: a result is not finite")
    tolerance = case.get("tolerance", TOLERANCE[case["dtype"]])
    if tolerance is None:
        return None
    error = 0.0
    for got, wanted in pairs:
        if not got.is_floating_point():  # indices: the share of those that differ, where two distances are as good
            error = max(error, (got != wanted).double().mean().item())
        elif got.numel():
            error = max(error, ((got.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item())
    if not pairs or error > tolerance:
        raise WrongResult(
            f"{case['name']}: error {error:.2e} against {case['against']}, at most {tolerance:.0e} is right"
        )
    return error


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _cpu_clock(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def _cuda_clock(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _cpu_peak(call: Callable[[], object]) -> int:
    """Count what operations allocate, eager ones in place of compiled ones; not what a kernel takes while it runs."""
    with Ledger() as count, torch.compiler.set_stance("force_eager"):
        call()
    return count.peak


def _cuda_peak(call: Callable[[], object]) -> int:
    """Return the allocator's peak above what is there, which is the other function's as well.

    Of what is reserved: what captured graphs have freed within their own pools is seen there alone.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    there = torch.cuda.memory_reserved()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved() - there


def _launches(call: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.key.startswith(_LAUNCHES))


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return values * 3
    return statistics.quantiles(values, n=4)


def peaks(device: torch.device) -> dict[str, float]:
    """Measure a large copy, in GB/s, and a large bfloat16 matrix product, in TFLOP/s: what a GPU can do at most."""
    if device.type != "cuda":
        return {}
    source = torch.empty(2**28, device=device)  # 1 GiB
    target, factor = torch.empty_like(source), torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    copy, product = (_median(call) for call in (lambda: target.copy_(source), lambda: factor @ factor))
    return {"copy_gbs": 2 * source.nbytes / copy / 1e9, "matmul_tflops": 2 * 8192**3 / product / 1e12}


def _median(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    return statistics.median(_cuda_clock(call) for _ in range(20))


class _Flops(TorchDispatchMode):
    """Floating-point operations of products and convolutions inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._overloadpacket not in flop_registry:
            with self:  # in inference mode convolutions and linear layers come whole
                if (result := function.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return result
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def rates(case: dict, row: dict, best: dict[str, float]) -> dict[str, float]:
    """Return achieved rates of ours, and their shares of the best that was measured."""
    found: dict[str, float] = {}
    seconds = row["ours"] / 1e3
    if "bytes" in case:
        found["gbs"] = case["bytes"] / seconds / 1e9
    if "work" in case:
        with _Flops() as count, torch.compiler.set_stance("force_eager"):
            case["work"]()
        found["tflops"] = count.total / seconds / 1e12
    for name, rate in list(found.items()):
        reference = {"gbs": "copy_gbs", "tflops": "matmul_tflops"}[name]
        if reference in best:
            found[f"{name}_share"] = rate / best[reference]
    if "baseline_flop" in case:
        found["gflop"] = found["tflops"] * seconds * 1e3
        found["ratio"] = found["tflops"] * 1e12 / (case["baseline_flop"] / (row["baseline"] / 1e3))
    if "images" in case:
        found["images_s"] = case["images"] / seconds
    return found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run the block with one thread of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
