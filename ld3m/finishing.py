"""What a finished distillation leaves in its folder: images, curves, evaluation, result.json, report.html."""

import json
import logging
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ld3m.evaluation import evaluate
from ld3m.preparation import Job
from ld3m.report import draw_curves, write_report
from ld3m.result import Result
from ld3m.storage import write_json

logger = logging.getLogger(__name__)


def finish(job: Job, result: Result, *, seconds: float, seconds_per_iteration: float | None, progress: bool) -> Result:
    """Write everything but the checkpoint; an evaluation that is there already is kept.

    Args:
        seconds: of the distillation, this session of it.
        seconds_per_iteration: None when nothing was left to iterate.
    """
    folder = job.folder.path
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
    write_json(folder / "result.json", _summary(job, folder, seconds, seconds_per_iteration))
    write_report(folder)
    return result


def _summary(job: Job, folder: Path, seconds: float, seconds_per_iteration: float | None) -> dict[str, object]:
    path = folder / "evaluation.json"
    evaluation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
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
        "protocol": job.config.evaluate,
        "accuracy": None if evaluation is None else evaluation["unseen"],
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
