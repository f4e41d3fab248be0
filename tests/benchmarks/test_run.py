"""`python -m benchmarks.run`, from the clone's root, as a user calls it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
KEYS = {
    "name", "ours", "baseline", "ratio", "unit", "against", "shape", "dtype", "mode", "device", "ours_mib",
    "baseline_mib", "runs", "spread", "error", "versions", "commit", "command", "backend", "statistic", "threads",
    "memory",
}  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def rows_of(done: subprocess.CompletedProcess, path: Path) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    assert all(row.keys() >= KEYS for row in rows)
    assert all(row["ratio"] > 0 and row["ours"] > 0 and row["threads"] == 1 for row in rows)
    assert len(done.stdout.strip().splitlines()) == len(rows)
    return {f"{row['name']} {row['mode']} {row['against']}": row for row in rows}


def test_two_ops_run_on_the_native_backend(tmp_path):
    rows = rows_of(
        run("--suite", "smoke", "--op", "nearest_code", "--json", str(tmp_path / "a.json")), tmp_path / "a.json"
    )
    (row,) = rows.values()
    assert (row["backend"], row["error"], row["unit"], row["shape"]) == ("native", 0.0, "ms", [64, 128, 3])
    assert row["ours_mib"] < 0.05 * row["baseline_mib"]
    done = run("--suite", "smoke", "--op", "reverse_step", "--json", str(tmp_path / "b.json"))
    rows = rows_of(done, tmp_path / "b.json")
    assert {row["against"] for row in rows.values()} == {"eager", "released sampler"}
    assert {row["mode"] for row in rows.values()} == {"fwd", "fwd+bwd"}
    assert all(row["backend"] == "native" and row["error"] < 1e-5 for row in rows.values())


def test_a_share_is_that_of_the_products_rate(tmp_path):
    done = run("--suite", "smoke", "--op", "share/VGG11", "--json", str(tmp_path / "a.json"))
    (row,) = rows_of(done, tmp_path / "a.json").values()
    assert row["name"] == "share/VGG11-w0.5" and row["mode"] == "training"
    rate, best = row["gflop"] / row["ours"], 2 * 64**3 / 1e9 / row["baseline"]
    assert row["ratio"] == pytest.approx(rate / best)
    # An image takes 77.3 MFLOP (VGG11 of half width), its step thrice that but for the gradient in the images.
    assert row["gflop"] == pytest.approx(2 * 10 * (3 * 0.0773 - 0.0018) + 10 * 0.0773, rel=1e-3)


def test_a_gpus_memory_is_that_of_one_side(monkeypatch):
    """A stand-in for the allocator: ours keeps 100 bytes from its first call on and takes 7 more in each, 5 and 3."""
    spec = importlib.util.spec_from_file_location("measuring", ROOT / "benchmarks" / "measuring.py")
    measuring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measuring)
    held = {"weights": 50}
    most = 0

    def call(name, keeps, takes):
        def run():
            nonlocal most
            held[name] = keeps
            most = max(most, sum(held.values()) + takes)
            return torch.ones(1)

        return run

    def reset():
        nonlocal most
        most = sum(held.values())

    fakes = {
        "memory_allocated": lambda *_: sum(held.values()),
        "max_memory_allocated": lambda: most,
        "reset_peak_memory_stats": reset,
        **dict.fromkeys(("synchronize", "empty_cache"), lambda: None),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name, fake in {"_cuda_clock": lambda run: 1.0, "_launches": lambda run: 0, "MIB": 1}.items():
        monkeypatch.setattr(measuring, name, fake)
    case = {"name": "x", "mode": "fwd", "shape": (1,), "dtype": "float32", "ours": call("ours", 100, 7)}
    kept = {}
    for baseline in (call("first", 5, 3), call("second", 5, 3)):
        row = measuring.measure(case | {"baseline": baseline}, torch.device("cuda"), 0, 2, kept)
        assert (row["ours_mib"], row["baseline_mib"]) == (107, 8)


def test_triton_runs_through_the_interpreter(tmp_path):
    path = tmp_path / "rows.json"
    done = run(
        "--suite", "smoke", "--op", "reverse_step", "--json", str(path), TRITON_INTERPRET="1", LD3M_BACKEND="triton"
    )
    assert {row["backend"] for row in rows_of(done, path).values()} == {"triton"}


def test_a_case_that_fails_is_named_and_the_others_are_measured(tmp_path):
    code = """
from benchmarks import nearest_code, run

def cases(*arguments, whole=nearest_code.cases):
    for case in whole(*arguments):
        yield case | {"name": "nearest_code/broken", "ours": lambda: 1 / 0}
        yield case

nearest_code.cases = cases
run.main()
"""
    command = [sys.executable, "-c", code, "--suite", "smoke", "--op", "nearest_code", "--json", tmp_path / "a.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "1 failed, as said above: nearest_code/broken against distance matrix" in done.stderr
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["name"].startswith("nearest_code") and row["error"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "smoke", "--op", "nothing"), "no row's name starts with 'nothing'; names start with reverse_step"),
        (("--suite", "gpu", "--op", "nearest_code"), "needs a CUDA device and none is there"),
    ],
)
def test_bad_input_is_one_message(arguments, message):
    done = run(*arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_smoke_suite(tmp_path):
    path = tmp_path / "rows.json"
    rows = rows_of(run("--suite", "smoke", "--json", str(path)), path)
    names = {row["name"] for row in rows.values()}
    assert names >= {"chain/retain", "chain/recompute", "main-job", "iter/glad-32", "iter/dc-16-t2-ipc1"}
    assert {name.split("/")[0] for name in names} >= {"reverse_step", "nearest_code", "dc_loss", "denoiser"}
    assert "native" in {backend for row in rows.values() for backend in row["backend"].split("+")}
    recreated = [
        row for row in rows.values() if row["against"] == "recreated" and not row["name"].startswith("iter/mtt")
    ]
    assert len(recreated) == 2
    assert all(row["error"] < 1e-3 for row in recreated)


def test_a_folder_without_the_original_code_is_one_message(tmp_path):
    command = [sys.executable, "benchmarks/checkout.py", "ld3m", str(tmp_path), "{}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{tmp_path} is no checkout of https://github.com/humansensinglab/LD3M: src/glad_utils.py")
    done = run("--suite", "smoke", "--official-glad", str(tmp_path))
    assert done.returncode == 1
    assert "go with --suite gpu" in done.stderr
