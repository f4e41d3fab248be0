"""What a finished distillation leaves in its folder: images, curves, evaluation, result.json, report.html."""

import logging
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from ld3m.evaluation import evaluate
from ld3m.preparation import Job
from ld3m.report import draw_curves, read_mapping, write_report
from ld3m.result import Result
from ld3m.storage import write_json

logger = logging.getLogger(__name__)


def finish(job: Job, result: Result, *, seconds: float, seconds_per_iteration: float | None, progress: bool) -> Result:
    """Write everything but the checkpoint; an evaluation that is there already is kept.

    Args:
        seconds: of this process's part of the distillation.
        seconds_per_iteration: None when nothing was left to iterate: what result.json says then stays.
    """
    folder = job.folder.path
    facts = read_mapping(folder / "result.json") if seconds_per_iteration is None else {}
    facts = facts or _measured(job, seconds, seconds_per_iteration)  # before an evaluation adds to the peak
    result.save(folder)
    draw_curves(folder)
    if job.config.evaluate != "none" and not (folder / "evaluation.json").is_file():
        evaluate(  # writes its report into the folder
            folder,
            job.dataset,
            protocol=job.config.evaluate,
            device=job.device,
            seed=job.config.seed,
            progress=progress,
        )
    evaluation = read_mapping(folder / "evaluation.json")
    protocol = evaluation["protocol"]["name"] if evaluation else job.config.evaluate
    write_json(folder / "result.json", facts | {"protocol": protocol, "accuracy": evaluation.get("unseen")})
    write_report(folder)
    return result


def _measured(job: Job, seconds: float, seconds_per_iteration: float | None) -> dict[str, object]:
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
        "seconds_per_iteration": None if seconds_per_iteration is None else round(seconds_per_iteration, 4),
        "iterations": job.config.iterations,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(job.device) if is_cuda else resident,
        "peak_memory_of": "CUDA allocator" if is_cuda else "resident size of the process",
        "plan": None if job.plan is None else job.plan.facts(),
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
