"""`python benchmarks/compare.py`: sets made, evaluated, and gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare.py"


@pytest.mark.slow
def test_a_table_grows_by_a_network_and_keeps_what_is_there(tmp_path):
    def compare(*networks: str) -> tuple[dict, str, str]:
        command = [sys.executable, str(SCRIPT), "spaces", "iterations=1", "--variants", "pixel", "autoencoder"]
        command += ["--repeats", "2", "--results", str(tmp_path), "--networks", *networks]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        name = "spaces-iterations1"
        return json.loads((tmp_path / f"{name}.json").read_text()), (tmp_path / f"{name}.md").read_text(), done.stdout

    first, table, _ = compare("ConvNet-w0.06")
    assert list(first["accuracies"]) == ["random real", "k-means real", "pixel", "autoencoder"]
    assert all(len(row["ConvNet-w0.06"]) == 2 for row in first["accuracies"].values())
    assert table.count("\n| ") == 5 and " ± " in table
    progress = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluation-progress.json")}
    assert len(progress) == 2
    again, _, printed = compare("ConvNet-w0.06")
    assert again["accuracies"] == first["accuracies"] and printed.count("ConvNet-w0.06, ") == 2
    assert progress == {path: path.stat().st_mtime_ns for path in progress}  # nothing was trained again
    more, _, _ = compare("ConvNet-w0.06", "VGG11-w0.06")
    for name, row in more["accuracies"].items():
        assert row["ConvNet-w0.06"] == first["accuracies"][name]["ConvNet-w0.06"]
        assert len(row["VGG11-w0.06"]) == 2
