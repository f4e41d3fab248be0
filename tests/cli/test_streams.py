"""Standard streams that are closed, full, or whose reader has gone: work goes on, and nothing is a traceback."""

import os
import subprocess
import sys

import pytest

import ld3m

DISTILL = (
    "distill DATA --prior random:tiny --class-ids 0 1 2 --iterations 2 --steps 1 --width 4 --resolution 16 "
    "--device cpu --evaluate none --out RUN"
)
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def run(line, redirected, **words):
    """Return the exit status of a command line in a shell, with its streams redirected."""
    words = [words.get(word, word) for word in line.split()]
    command = " ".join([sys.executable, "-m", "ld3m", *map(str, words), redirected])
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # else nothing is left to the end
    shell = ["bash", "-c", f"set -o pipefail; {command}"]
    process = subprocess.run(shell, env=variables, capture_output=True, text=True)
    assert "Traceback" not in process.stderr + process.stdout
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    "redirected",
    [
        pytest.param("2>/dev/full", marks=FULL),
        pytest.param("2>&-", marks=pytest.mark.slow),
        "2>&- >&-",
        "2> >(head -c 1 >/dev/null)",
        pytest.param("2>/dev/full >/dev/null", marks=[FULL, pytest.mark.slow]),
    ],
)
def test_what_cannot_be_said_stops_no_work(redirected, coloured_folder, tmp_path):
    assert run(DISTILL, redirected, DATA=coloured_folder, RUN=tmp_path / "run")[0] == 0
    assert len(ld3m.load(tmp_path / "run")) == 3


@FULL
def test_a_result_that_cannot_be_printed_is_said(coloured_folder, tmp_path):
    status, _, err = run(DISTILL, ">/dev/full", DATA=coloured_folder, RUN=tmp_path / "run")
    assert status == 2 and err.endswith("the room on the disk\n")
    assert len(ld3m.load(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("line", "redirected", "status"),
    [
        ("info", "| head -n 1", 0),
        pytest.param("distill --help", "| head -n 1", 0, marks=pytest.mark.slow),
        pytest.param("info", ">&-", 0, marks=pytest.mark.slow),
        pytest.param("info", ">/dev/full", 2, marks=FULL),
        pytest.param("distill --nonsense", "2>/dev/full", 2, marks=FULL),
        ("distill --nonsense", "2>&-", 2),
    ],
)
def test_short_commands(line, redirected, status):
    assert run(line, redirected)[0] == status


def test_characters_that_the_terminal_lacks_are_spelt(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    status, _, err = run("distill DATA --out RUN", "", DATA=tmp_path / "café", RUN=tmp_path / "run")
    assert status == 2 and "caf\\xe9" in err
