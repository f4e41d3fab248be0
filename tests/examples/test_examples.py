"""The scripts of examples/ run from any folder, in processes of their own, and do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def example(tmp_path):
    """Run a script with one thread in an empty folder; return what it printed."""

    def run(name: str) -> str:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
        script = ROOT / "examples" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_all_examples_are_tested():
    assert EXAMPLES == ["chain_in_own_loss", "one_op", "own_folder", "own_prior"]


def test_own_folder(example, tmp_path):
    assert "3 images of disk, square, stripes" in example("own_folder")
    assert sorted(
        path.relative_to(tmp_path / "distilled").as_posix() for path in tmp_path.glob("distilled/*/*.png")
    ) == [
        "disk/0.png",
        "square/0.png",
        "stripes/0.png",
    ]


def test_own_prior(example, tmp_path):
    assert "images (10, 3, 16, 16) through prior/prior" in example("own_prior")
    assert (tmp_path / "prior" / "prior" / "model_index.json").is_file()
    assert (tmp_path / "runs" / "own-prior" / "distilled.safetensors").is_file()


def test_chain_in_own_loss(example):
    first, last = map(float, re.findall(r"loss at \w+ ([\d.]+)", example("chain_in_own_loss")))
    assert last < first / 3


def test_one_op(example):
    differences = [
        float(number) for number in re.findall(r"largest difference.* ([\d.e+-]+)$", example("one_op"), re.M)
    ]
    assert len(differences) == 2 and max(differences) < 1e-5
