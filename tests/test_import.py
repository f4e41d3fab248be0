"""`import ld3m` costs little and brings in nothing that is not used yet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ld3m

MEASURE = """
import json, sys, time
start = time.process_time()
import torch
before, between = set(sys.modules), time.process_time()
import ld3m
seconds = between - start, time.process_time() - between
print(json.dumps([*seconds, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""


@pytest.fixture(scope="module")
def measured():
    """Processor seconds of `import torch` and of `import ld3m` after it, and the packages the latter brought in."""
    root = Path(ld3m.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", MEASURE], cwd=root, capture_output=True, check=True)
    return json.loads(run.stdout)


def test_import_takes_a_tenth_of_what_torch_takes(measured):
    of_torch, own, _ = measured
    assert own < of_torch / 10


def test_import_brings_in_nothing_heavy(measured):
    heavy = {"diffusers", "triton", "PIL", "datasets", "matplotlib", "transformers", "tyro", "yaml", "torchvision"}
    *_, packages = measured
    assert "ld3m" in packages and not heavy & set(packages)


@pytest.mark.parametrize("module", ["ld3m.config.distill", "ld3m.cli"])
def test_settings_and_the_command_lines_form_need_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ld3m.__file__).parents[1]).returncode == 0


def test_public_names_are_found_when_asked_for():
    assert {"load_prior", "reverse_chain", "__version__"} <= set(dir(ld3m))
    for name in dir(ld3m):
        assert getattr(ld3m, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        ld3m.no_such_name  # noqa: B018
