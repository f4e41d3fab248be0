"""What a plain `pip install .` gives, seen from the clone's root."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("ld3m", "kernels", "csrc", "benchmarks", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def clone(to: Path) -> Path:
    """Copy what a clone holds, without anything that was built in this one."""
    to.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, to / name)
    return to


@pytest.mark.slow
def test_a_plain_install_serves_the_clone(tmp_path):
    root, environment = clone(tmp_path / "clone"), tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    # Dependencies and build tools are those of the running environment, but for an editable ld3m, which is not seen.
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET", "LD3M_BACKEND")}
    variables |= {"OMP_NUM_THREADS": "1", "LD3M_CUDA": "0", "LD3M_EXT": "1"}

    def run(*command: str, **more: str) -> str:
        command = [str(python), "-m", *command]
        done = subprocess.run(command, cwd=root, env=variables | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", ".")
    assert list((packages / "ld3m").glob("_C*.so")), "installed without ld3m._C"
    assert (packages / "ld3m" / "kernels" / "reverse_step.py").is_file()
    (line,) = [line for line in run("ld3m", "info").splitlines() if line.startswith("backends")]
    assert f"native: {root / 'ld3m' / '_C'}" in line
    assert f"kernels in {root / 'ld3m' / 'kernels'}" in line
    for backend, more in {"native": {}, "triton": {"TRITON_INTERPRET": "1", "LD3M_BACKEND": "triton"}}.items():
        run("benchmarks.run", "--suite", "smoke", "--op", "reverse_step", "--json", "rows.json", **more)
        rows = json.loads((root / "rows.json").read_text())
        assert {row["backend"] for row in rows} == {backend}
    assert len(run("benchmarks.run", "--suite", "smoke").splitlines()) > 15
