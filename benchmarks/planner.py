"""The memory planner's predictions against what is counted while its plans are carried out.

    python -m benchmarks.planner [--device cuda] [--json FILE]

`planner/saved/…`: bytes autograd holds of chain and decoder at most, by saved-tensor hooks, over twelve settings.
`planner/peak/…`: everything an iteration takes at once, by the allocator of the device, weights included. On a GPU the
settings are those of cin256's shape with random weights, and `seconds` compares with the plan for all of its memory.
"""

import argparse
import itertools
import json
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import ld3m
from ld3m.config import DistillConfig, resolve
from ld3m.distillation.job import objective_of, prepare
from ld3m.memory import Plan, plan_memory
from ld3m.runtime.devices import default_device
from ld3m.spaces import LatentSpace

MB = 10**6
# prior, steps, ipc, classes, guidance, share of the way from the smallest plan's peak to that of keeping everything
SAVED = [
    ("random:tiny", 4, 1, 10, 3.0, 1.0), ("random:tiny", 4, 1, 10, 3.0, 0.4), ("random:tiny", 4, 1, 10, 3.0, 0.0),
    ("random:tiny", 12, 1, 10, 1.0, 0.3), ("random:tiny", 1, 2, 5, 3.0, 0.5), ("random:tiny", 0, 1, 10, 3.0, 1.0),
    ("random:tiny", 0, 4, 3, 3.0, 0.1), ("builtin", 2, 1, 4, 3.0, 1.0), ("builtin", 2, 1, 4, 3.0, 0.5),
    ("builtin", 2, 1, 4, 1.0, 0.0), ("builtin", 3, 2, 2, 3.0, 0.2), ("builtin", 0, 1, 6, 3.0, 0.0),
]  # fmt: skip
PEAK = {
    "cpu": [{"algorithm": a, "augment": augment, "steps": 2, "share": share}
            for a in ("dc", "dm") for augment in (False, True) for share in (1.0, 0.3, 0.0)],
    "cuda": [{"prior": "random:cin256", "resolution": r, "steps": t, "algorithm": "dc", "memory_budget": b}
             for r, t, b in ((128, 10, "7GB"), (128, 40, "7GB"), (128, 10, None), (256, 20, "8GB"), (256, 20, None))],
}  # fmt: skip


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Bytes of the storages that autograd holds for backward passes, weights left out: now and at most."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__(self._pack, lambda box: box[0])
        self.weights, self.holders, self.now, self.peak = weights, {}, 0, 0

    def __enter__(self) -> "SavedBytes":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> "_Box":
        box, storage = _Box([tensor]), tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.weights:
            self.holders[key] = self.holders.get(key, 0) + 1
            if self.holders[key] == 1:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            weakref.finalize(box, self._release, key, storage.nbytes())
        return box

    def _release(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            self.now -= size


class _Box(list):
    """A list that can be referred to weakly."""


def saved(prior: ld3m.priors.Prior, plan: Plan, steps: int, ipc: int, guidance_scale: float) -> int:
    """Render the images in flight, and go back, as planned; return the most bytes that autograd held."""
    images, side = plan.classes_in_flight * ipc, prior.native_resolution // prior.downsample
    space = LatentSpace(
        prior,
        torch.randn(images, prior.latent_channels, side, side, generator=torch.Generator().manual_seed(0)),
        prior.embed(torch.zeros(images, dtype=torch.int64)) if steps else None,
        learn=("latents", "conditioning"),
        resolution=prior.native_resolution,
        chain=resolve(DistillConfig(steps=steps, guidance_scale=guidance_scale), 32) if steps else None,
        retain=plan.retain,
        micro_batch=plan.micro_batch,
        decoder_batch=plan.decoder_batch,
    )
    weights = {p.untyped_storage().data_ptr() for module in prior.modules() for p in module.parameters()}
    with SavedBytes(weights) as count:
        rendered = space.render(torch.arange(images), (0,))
        rendered.backward(torch.ones_like(rendered))
    return count.peak


def saved_rows() -> Iterator[dict[str, object]]:
    for name, steps, ipc, classes, guidance, share in SAVED:
        prior = ld3m.load_prior(name)
        common = {"resolution": prior.native_resolution, "steps": steps, "ipc": ipc, "num_classes": classes}
        whole = plan_memory(prior, **common, algorithm="dc", real_batch=2, guidance_scale=guidance, budget="1TB")
        plan = _between(whole, share)
        label = f"planner/saved/{name}/T{steps}/ipc{ipc}/g{guidance:g}/{share:g}"
        yield _row(label, plan.saved_bytes, saved(prior, plan, steps, ipc, guidance), plan)


def peak_rows(device: str) -> Iterator[dict[str, object]]:
    for settings in PEAK[device]:
        settings = dict(settings)
        share = settings.pop("share", None)
        fixed = {"evaluate": "none", "ipc": 1, "device": device}
        fixed |= {"compile": False} if device == "cuda" else {"width": 32}
        job = prepare(_data(settings), fixed | settings, out=None, resume=False, overwrite=False)
        objective, plan = objective_of(job, progress=False), job.plan
        if share is not None:
            plan = _between(plan, share)
            objective.apply_plan(plan)
        label = "planner/peak/" + "/".join(f"{k}={v}" for k, v in {**settings, "share": share}.items() if v is not None)
        resident = plan.planner.costs.resident if device == "cpu" else 0  # the CPU's is counted for the iteration alone
        measure = _cuda_peak if device == "cuda" else _cpu_peak
        peak, seconds = measure(lambda objective=objective: objective.backward(0))
        yield _row(label, plan.peak_bytes - resident, peak, plan) | {"seconds": seconds, "slow_down": plan.slow_down}


def _data(settings: dict[str, object]) -> object:
    if "resolution" not in settings:
        return "builtin"
    images = torch.randint(0, 256, (2600, 3, settings["resolution"], settings["resolution"]), dtype=torch.uint8)
    return images, torch.arange(2600) % 10


def _between(whole: Plan, share: float) -> Plan:
    low = whole.planner.smallest.peak_bytes
    return whole.within(int(low + share * (whole.peak_bytes - low)))


def _cpu_peak(call: Callable[[], object]) -> tuple[int, float]:
    """Return the most bytes the CPU's allocator gave to a call at once, and its seconds."""
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, seconds


def _cuda_peak(call: Callable[[], object]) -> tuple[int, float]:
    call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved(), time.perf_counter() - started


def _row(name: str, predicted: int, counted: int, plan: Plan) -> dict[str, object]:
    ratio = predicted / counted
    print(
        f"{name:60} predicted {predicted / MB:10.3f} MB  counted {counted / MB:10.3f} MB  ratio {ratio:.3f}", flush=True
    )
    return {"name": name, "predicted": predicted, "counted": counted, "ratio": ratio, "unit": "B", "plan": str(plan)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=default_device(), choices=PEAK)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = {"device": options.device, "torch": torch.__version__, "command": "python -m benchmarks.planner"}
    rows = []
    for row in itertools.chain(saved_rows(), peak_rows(options.device)):
        rows.append(row | about)
        if options.json:  # each time: what breaks off keeps what it has
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
