"""What the doctor finds, and that nothing it finds is an error."""

from dataclasses import replace

import pytest

from ld3m.cli.doctor import Machine, findings, look
from ld3m.ops import backends

FINE = Machine("", "", True, ("NVIDIA H200",), "13.0", 8, 8, False, 32 * 10**9, ("datasets", "xformers"))


def of(machine, subject):
    (found,) = (one for one in findings(machine) if one.subject == subject)
    return found


def test_a_machine_that_lacks_nothing_has_nothing_to_do():
    assert all((one.state, one.remedy) == ("good", "") for one in findings(FINE))


@pytest.mark.parametrize(
    ("changes", "subject", "state", "words", "remedy"),
    [
        ({"not_native": "no _C (x); reinstall"}, "native", "slow", "no _C (x)", "compiler"),
        ({"has_triton": False}, "Triton", "slow", "not installed", "pip install triton"),
        ({"no_native_cuda": "built without CUDA; reinstall it"}, "CUDA ops", "slow", "built without", "reinstall it"),
        ({"threads": 1}, "threads", "slow", "1 of 8 cores", "OMP_NUM_THREADS"),
        ({"threads": 1, "cores": 1}, "threads", "slow", "1 core", "second"),
        ({"gpus": (), "has_bfloat16": True}, "bfloat16", "slow", "computes in bfloat16", "--dtype bfloat16"),
        ({"gpus": ()}, "GPU", "absent", "CUDA 13.0 and sees no GPU or no driver", "driver"),
        ({"gpus": (), "cuda": None}, "GPU", "absent", "CPU build", "CUDA build"),
        ({"memory": 2 * 10**9}, "memory", "slow", "2.0 GB", "--memory-budget"),
        ({"extras": ()}, "datasets", "absent", "hf:NAME", "pip install"),
    ],
)  # fmt: skip
def test_what_is_slow_is_said_with_what_to_do(changes, subject, state, words, remedy):
    found = of(replace(FINE, **changes), subject)
    assert (found.state, words in found.words, remedy in found.remedy) == (state, True, True), found


def test_triton_is_not_missed_without_a_gpu():
    assert "Triton" not in [one.subject for one in findings(replace(FINE, gpus=(), has_triton=False))]


def test_the_command_says_it_of_this_machine(ld3m_command, monkeypatch):
    status, out, err = ld3m_command("doctor")
    assert (status, err) == (0, "")
    assert [one.words for one in findings(look()) if one.words not in out] == []
    monkeypatch.setattr(backends, "_not_built", "ld3m._C cannot be imported (no compiler); reinstall it")
    status, out, _ = ld3m_command("doctor")
    assert status == 0
    assert "slow    native" in out and "do: install a C++ compiler" in out and "cost time here" in out


def test_no_driver_is_no_old_driver(ld3m_command):
    assert "0.0" not in ld3m_command("info")[1].partition("backends")[2].partition("triton:")[0]
