"""A prior trained in two processes is that of one but for rounding, and twice the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.mark.slow
def test_two_processes_train_the_prior_of_one(tmp_path):
    from training_worker import train

    threads = torch.get_num_threads()
    train(tmp_path / "one")
    torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    for name in ("two", "again"):
        done = subprocess.run(
            [*command, str(HERE / "training_worker.py"), str(tmp_path / name)],
            env=environment, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert not done.returncode, done.stderr
    for phase in ("first-stage", "denoiser"):
        one, two = (
            torch.tensor(json.loads((tmp_path / name / f"{phase}-loss.json").read_text())) for name in ("one", "two")
        )
        assert len(one) == 20
        torch.testing.assert_close(two, one, rtol=1e-4, atol=0)
        weights = [(tmp_path / name / f"{phase}.safetensors").read_bytes() for name in ("two", "again")]
        assert weights[0] == weights[1]
