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


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run it in this process, which has torch already; return what it ends with (None: well), stdout and stderr."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import run

    def call(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        ended = None
        try:
            run.main()
        except SystemExit as stop:
            ended = stop.code
        return ended, *capsys.readouterr()

    return call


def rows_of(path: Path, stdout: str) -> dict[str, dict]:
    rows = json.loads(path.read_text())
    assert all(row.keys() >= KEYS for row in rows)
    assert all(row["ratio"] > 0 and row["ours"] > 0 and row["threads"] == 1 for row in rows)
    assert len(stdout.strip().splitlines()) == len(rows)
    return {f"{row['name']} {row['mode']} {row['against']}": row for row in rows}


def test_two_ops_run_on_the_native_backend(run_here, tmp_path):
    ended, stdout, _ = run_here("--suite", "smoke", "--op", "nearest_code", "--json", str(tmp_path / "a.json"))
    assert ended is None
    rows = rows_of(tmp_path / "a.json", stdout)
    (row,) = rows.values()
    assert (row["backend"], row["error"], row["unit"], row["shape"]) == ("native", 0.0, "ms", [64, 128, 3])
    assert row["ours_mib"] < 0.05 * row["baseline_mib"]
    ended, stdout, _ = run_here("--suite", "smoke", "--op", "reverse_step", "--json", str(tmp_path / "b.json"))
    assert ended is None
    rows = rows_of(tmp_path / "b.json", stdout)
    assert {row["against"] for row in rows.values()} == {"eager", "released sampler"}
    assert {row["mode"] for row in rows.values()} == {"fwd", "fwd+bwd"}
    assert all(row["backend"] == "native" and row["error"] < 1e-5 for row in rows.values())


def test_a_share_is_that_of_the_products_rate(tmp_path, run_here):
    ended, stdout, stderr = run_here("--suite", "smoke", "--op", "share/VGG11", "--json", str(tmp_path / "a.json"))
    assert ended is None, stderr
    (row,) = rows_of(tmp_path / "a.json", stdout).values()
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
        "memory_reserved": lambda: sum(held.values()),
        "max_memory_reserved": lambda: most,
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
    assert done.returncode == 0, done.stderr
    assert {row["backend"] for row in rows_of(path, done.stdout).values()} == {"triton"}


def test_a_case_that_fails_is_named_and_the_others_are_measured(run_here, monkeypatch, tmp_path):
    from benchmarks import nearest_code

    def cases(*arguments, whole=nearest_code.cases):
        for case in whole(*arguments):
            yield case | {"name": "nearest_code/broken", "ours": lambda: 1 / 0}
            yield case

    monkeypatch.setattr(nearest_code, "cases", cases)
    path = tmp_path / "a.json"
    ended, _, stderr = run_here("--suite", "smoke", "--op", "nearest_code", "--json", str(path))
    assert "ZeroDivisionError" in stderr
    assert ended == "1 failed, as said above: nearest_code/broken against distance matrix"
    (row,) = json.loads(path.read_text())
    assert row["name"].startswith("nearest_code") and row["error"] == 0


def test_bad_input_is_one_message(run_here, monkeypatch):
    ended, _, stderr = run_here("--suite", "smoke", "--op", "nothing")
    assert ended.startswith("no row's name starts with 'nothing'; names start with reverse_step") and not stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended, _, stderr = run_here("--suite", "gpu", "--op", "nearest_code")
    assert "needs a CUDA device and none is there" in ended and not stderr


@pytest.mark.slow
def test_smoke_suite(tmp_path):
    path = tmp_path / "rows.json"
    done = run("--suite", "smoke", "--json", str(path))
    assert done.returncode == 0, done.stderr
    rows = rows_of(path, done.stdout)
    names = {row["name"] for row in rows.values()}
    assert names >= {"chain/retain", "chain/recompute", "main-job", "iter/glad-32", "iter/dc-16-t2-ipc1"}
    assert {name.split("/")[0] for name in names} >= {"reverse_step", "nearest_code", "dc_loss", "denoiser"}
    assert "native" in {backend for row in rows.values() for backend in row["backend"].split("+")}
    recreated = [
        row for row in rows.values() if row["against"] == "recreated" and not row["name"].startswith("iter/mtt")
    ]
    assert len(recreated) == 2
    assert all(row["error"] < 1e-3 for row in recreated)


def test_a_folder_without_the_original_code_is_one_message(run_here, tmp_path):
    command = [sys.executable, "benchmarks/checkout.py", "ld3m", str(tmp_path), "{}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{tmp_path} is no checkout of https://github.com/humansensinglab/LD3M: src/glad_utils.py")
    ended, _, _ = run_here("--suite", "smoke", "--official-glad", str(tmp_path))
    assert "go with --suite gpu" in ended
