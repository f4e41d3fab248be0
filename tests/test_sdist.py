"""What an sdist gives: a package that builds, and tests that can be run beside it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT = shutil.ignore_patterns("*.so", "__pycache__", ".*", "build", "dist", "*.egg-info", "shared")
DISTIL = "distill builtin --prior random:tiny --algorithm dm --iterations 1 --steps 1 --width 4 --ipc 1"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment that sees the packages of the running one, but for an editable ld3m."""
    path = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    packages = next((path / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return path


@pytest.mark.slow
def test_an_sdist_made_without_the_extension_builds_it_and_has_the_tests(environment, tmp_path):
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET", "LD3M_BACKEND")}
    variables |= {"OMP_NUM_THREADS": "1", "LD3M_CUDA": "0"}

    def run(folder: Path, *command: object, **more: str) -> str:
        command = [str(environment / "bin" / "python"), *map(str, command)]
        done = subprocess.run(command, cwd=folder, env=variables | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    shutil.copytree(ROOT, tree, ignore=LEFT)
    elsewhere.mkdir()
    run(tree, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, LD3M_EXT="0")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("ld3m-*/")
    for path in [*tree.rglob("tests/**/*"), *tree.rglob("benchmarks/*.py"), tree / "CHANGELOG.md"]:
        assert path.is_dir() or (unpacked / path.relative_to(tree)).is_file(), path

    run(unpacked, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", ".", LD3M_EXT="1")
    place = run(elsewhere, "-c", "import ld3m, ld3m._C; print(ld3m.__file__)")
    assert Path(place.strip()).is_relative_to(environment)
    run(elsewhere, "-m", "ld3m", *DISTIL.split(), "--evaluate", "none", "--quiet", "--out", "run")
    assert (elsewhere / "run" / "distilled.safetensors").is_file()

    def collected(folder: Path) -> set[str]:
        names = run(folder, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider").splitlines()
        return {name for name in names if "::" in name}

    assert len(collected(unpacked)) > 1000 and collected(unpacked) == collected(tree)
