"""Every benchmark in one run: ours against what it stands for, checked, then timed side by side.

    python -m benchmarks.run --suite cpu|gpu|smoke [--op NAME] [--official-ld3m DIR] [--official-glad DIR] [--json FILE]

"cpu" takes one thread and the smallest CPU time of interleaved runs, "gpu" the median of CUDA events; `ratio` is the
baseline's time over ours. Each module of cases runs in a process of its own. "smoke" is everything in its smallest
form. `--op` takes the rows whose names start with NAME. In rows `share/*` the baseline is a matrix product and `ratio`
the share of its rate. The official rows run a checkout of the original repositories,
which is not part of this one.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.measuring import measure, one_thread, peaks, rates
from ld3m.runs.facts import versions

SUITES = ("cpu", "gpu", "smoke")
OPS = (
    "reverse_step", "nearest_code", "instance_norm_relu_pool", "group_norm_silu", "gradient_distance", "group_select",
)  # fmt: skip
# Module: what the names of its rows start with.
MODULES = {op: (op,) for op in OPS} | {
    "denoiser": ("denoiser", "attention"),
    "chain": ("chain",),
    "dc_loss": ("dc_loss",),
    "main_job": ("main-job",),
    "iteration": ("iter/",),
    "sampling": ("sample/",),
    "share": ("share/",),
}
SECONDS = {"cpu": 1.0, "gpu": 3.0, "smoke": 0.05}
RUNS = {"cpu": 20, "gpu": 20, "smoke": 2}
ROOT = Path(__file__).parent.parent


def cases(suite: str, device: str, op: str, module: str) -> Iterator[dict]:
    """Return the cases of a module whose names start with `op`; none is held on to when the next is made."""
    return filter(lambda case: case["name"].startswith(op), import_module(f"benchmarks.{module}").cases(suite, device))


def main() -> None:
    options = parse()
    if (options.official_ld3m or options.official_glad) and options.suite != "gpu":
        sys.exit("--official-ld3m and --official-glad go with --suite gpu: the original code runs on CUDA alone")
    if options.suite == "gpu" and not torch.cuda.is_available():
        sys.exit("--suite gpu needs a CUDA device and none is there; take --suite cpu, or --suite smoke")
    device = torch.device("cuda" if options.suite == "gpu" else "cpu")
    about = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "versions": versions() | optional_versions(),
        "commit": commit(),
        "command": f"python -m benchmarks.run {shlex.join(sys.argv[1:])}",
    }
    rows, failed = [], []
    checkouts = {"ld3m": options.official_ld3m, "glad": options.official_glad}
    # Compiled code from earlier runs would hide what compilation costs.
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        for row in chain(measured_rows(options.suite, options.op), official_rows(rows, checkouts)):
            if "failed" in row:
                failed.append(row["failed"])
                continue
            rows.append(row | about)
            print(line_of(row), flush=True)
            write(options.json, rows)
    if failed:
        sys.exit(f"{len(failed)} failed, as said above: {', '.join(failed)}")
    if not rows:
        known = ", ".join(prefix for prefixes in MODULES.values() for prefix in prefixes)
        sys.exit(f"no row's name starts with {options.op!r}; names start with {known}")


def measured_rows(suite: str, op: str) -> Iterator[dict]:
    """Yield the rows, each module's from a process of its own: memory that one frees would be found by the next.

    What fails is a row that only says so: the others are measured.

    The smoke suite measures nothing and stays in one process.
    """
    spawn = multiprocessing.get_context("spawn")
    for module, prefixes in MODULES.items():
        if not any(op.startswith(prefix) or prefix.startswith(op) for prefix in prefixes):
            continue
        if suite == "smoke":
            yield from module_rows(module, suite, op)
            continue
        here, there = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_send_rows, args=(there, module, suite, op))
        process.start()
        there.close()  # the process has it: when it ends, so does what can be received
        with contextlib.suppress(EOFError):
            while True:
                yield here.recv()
        process.join()
        if process.exitcode:
            yield {"failed": f"benchmarks.{module}"}


def _send_rows(connection: Connection, *arguments: str) -> None:
    for row in module_rows(*arguments):
        connection.send(row)


def module_rows(module: str, suite: str, op: str) -> Iterator[dict]:
    """Measure a module's cases in this process."""
    device = torch.device("cuda" if suite == "gpu" else "cpu")
    kept: dict[tuple, int] = {}
    with contextlib.nullcontext() if suite == "gpu" else one_thread():
        best, threads = peaks(device), {"threads": torch.get_num_threads()}
        for case in cases(suite, device.type, op, module):
            row = {key: case[key] for key in ("name", "mode", "shape", "dtype", "against")}
            try:
                row |= measure(case, device, SECONDS[suite], RUNS[suite], kept)
                row |= rates(case, row, best) | best | threads
            except Exception:  # whatever one case runs into, the others are worth their time
                traceback.print_exc()
                row = {"failed": f"{row['name']} against {row['against']}"}
            yield row
            del case  # with all that it holds on the device, before the next is made


def official_rows(rows: list[dict], checkouts: dict[str, Path | None]) -> Iterator[dict]:
    """Yield the rows of whole iterations once more, against the original code in each checkout that is given."""
    for repository, folder in checkouts.items():
        for row in [row for row in rows if row["against"] == "recreated" and folder is not None]:
            algorithm, resolution, steps, ipc = re.fullmatch(r"iter/(\w+)-(\d+)-t(\d+)-ipc(\d+)", row["name"]).groups()
            settings = {"algorithm": algorithm, "resolution": int(resolution), "steps": int(steps), "ipc": int(ipc)}
            script = str(ROOT / "benchmarks" / "checkout.py")
            command = [sys.executable, script, repository, str(folder), json.dumps(settings)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = done.stderr.strip() or f"the code in {folder} ended without a word"
                print(reason.splitlines()[-1], file=sys.stderr)
                yield {"failed": f"{row['name']} against the code in {folder}"}
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            quartiles = {"ours": row["spread"]["ours"], "baseline": found.pop("spread")}
            label = "official" if repository == "ld3m" else "official glad"
            ratio = {"ratio": found["baseline"] / row["ours"], "error": None, "spread": quartiles, "against": label}
            yield row | found | ratio


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--op", default="", metavar="NAME", help="only rows whose names start with it")
    parser.add_argument("--official-ld3m", type=Path, metavar="DIR", help="checkout of the released LD3M code")
    parser.add_argument("--official-glad", type=Path, metavar="DIR", help="checkout of the released GLaD code")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go")
    return parser.parse_args()


def line_of(row: dict) -> str:
    """Return a row as a line of the table."""
    memory = f"{row['ours_mib']:9.2f} / {row['baseline_mib']:9.2f} MiB"
    time = f"{row['ours']:10.3f} / {row['baseline']:10.3f} {row['unit']}"
    share = "".join(f"  {100 * row[k]:.0f} % {k.split('_')[0]}" for k in ("gbs_share", "tflops_share") if k in row)
    name = f"{row['name']} {row['mode']} {row['dtype']}"
    return f"{name:62} x{row['ratio']:7.2f}  {time}  {memory}  {row['backend']:7} against {row['against']}{share}"


def write(path: Path | None, rows: list[dict]) -> None:
    """Write the rows so far: a run that breaks off keeps what it has."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def optional_versions() -> dict[str, str]:
    found = {"cuda": str(torch.version.cuda)} if torch.version.cuda else {}
    if importlib.util.find_spec("triton") is not None:
        found["triton"] = importlib.metadata.version("triton")
    return found


def commit() -> str:
    """Return the commit that was measured, with a mark when files differ from it; "unknown" outside of a clone."""
    with contextlib.suppress(OSError):  # no git
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"


if __name__ == "__main__":
    main()
