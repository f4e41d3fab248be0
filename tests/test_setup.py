"""What setup.py makes of its environment variables, without compiling anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LD3M_CUDA": "1"}, "LD3M_CUDA=1 needs nvcc in PATH or under CUDA_HOME"),
        ({"LD3M_CUDA": "1", "LD3M_EXT": "0"}, "LD3M_CUDA=1 insists on a part of ld3m._C, which LD3M_EXT=0 leaves out"),
        ({"LD3M_EXT": "1"}, "ld3m._C needs a C++ compiler: install one, name it in CXX, or set LD3M_EXT=0"),
        ({}, None),
    ],
    ids=str,
)
def test_what_is_insisted_on_fails_the_build_and_all_else_is_a_warning(tmp_path, variables, message):
    for name in ("setup.py", "README.md", "LICENSE", "ld3m/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    if "LD3M_CUDA" in variables:
        (tmp_path / "c++").touch(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LD3M_") and k not in ("CXX", "CUDA_PATH")}
    environment = kept | {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "none")} | variables
    build = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == (message is None), done.stderr
    assert (message or "ld3m._C needs a C++ compiler") in done.stdout + done.stderr
