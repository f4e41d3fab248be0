"""What a finished distillation leaves in its folder: images, curves, evaluation, result.json, report.html."""

import logging
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import torch

from ld3m.config import RunConfig
from ld3m.data import Dataset
from ld3m.distillation.job import Job
from ld3m.evaluation import evaluate
from ld3m.runs.folder import RunFolder
from ld3m.runs.page import draw_curves, publish, read_mapping
from ld3m.runs.result import Result
from ld3m.runtime.storage import write_json

logger = logging.getLogger(__name__)


class _Job(Protocol):
    """What is asked of a job."""

    config: RunConfig
    dataset: Dataset
    folder: RunFolder
    device: torch.device


def finish(job: Job, result: Result, *, seconds: float, seconds_per_iteration: float | None, progress: bool) -> Result:
    """Write everything but the checkpoint; an evaluation that is there already is kept.

    Args:
        seconds: of this process's part of the distillation.
        seconds_per_iteration: None when nothing was left to iterate: what result.json says then stays.
    """
    folder = job.folder.path
    facts = read_mapping(folder / "result.json") if seconds_per_iteration is None else {}
    facts = facts or measured(  # before an evaluation adds to the peak
        job,
        seconds,
        seconds_per_iteration=seconds_per_iteration,
        iterations=job.config.iterations,
        plan=None if job.plan is None else job.plan.facts(),
    )
    result.save(folder)
    draw_curves(folder)
    conclude(job, facts, progress)
    return result


def conclude(job: _Job, facts: dict[str, object], progress: bool) -> None:
    """Write result.json with these facts, evaluate what is in the run's folder, and write report.html."""
    folder = job.folder.path
    # Before the evaluation, often the longest part: broken off there, the run that goes on keeps its own facts.
    write_json(folder / "result.json", facts | {"protocol": job.config.evaluate, "accuracy": None})
    if job.config.evaluate != "none" and not (folder / "evaluation.json").is_file():
        evaluate(  # writes its report into the folder
            folder,
            job.dataset,
            protocol=job.config.evaluate,
            device=job.device,
            seed=job.config.seed,
            progress=progress,
        )
    publish(folder)


def measured(job: _Job, seconds: float, **more: object) -> dict[str, object]:
    """Return what result.json says of this process, and `more`."""
    is_cuda = job.device.type == "cuda"
    cpu = f"cpu ({platform.processor() or platform.machine()})"
    # Linux counts the peak resident size in KiB, macOS in bytes.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "versions": versions(),
        "seed": job.config.seed,
        "device": torch.cuda.get_device_name(job.device) if is_cuda else cpu,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 2),
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in more.items()},
        "peak_memory_bytes": torch.cuda.max_memory_allocated(job.device) if is_cuda else resident,
        "peak_memory_of": "CUDA allocator" if is_cuda else "resident size of the process",
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("ld3m", "torch", "diffusers", "safetensors", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
