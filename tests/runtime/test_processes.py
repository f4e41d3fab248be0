"""Several processes: what a single one makes of all of it, shares, errors that travel, a group of two."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ld3m.errors import ConfigError, MemoryBudgetError, NumericsError, ProcessError
from ld3m.runtime import processes
from ld3m.runtime.signals import HeldBack

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_hold_every_unit_once_in_its_order(count):
    units = list(range(20))
    shares = [processes.share(units, index, count, cost=lambda unit: unit % 5) for index in range(count)]
    assert sorted(unit for share in shares for unit in share) == units
    assert all(share == sorted(share) for share in shares)
    loads = [sum(unit % 5 for unit in share) for share in shares]
    assert max(loads) - min(loads) <= 4  # no more than the heaviest


def test_the_heaviest_goes_first_to_the_least_loaded():
    cost = {"a": 1.0, "b": 5.0, "c": 4.0, "d": 1.0}.__getitem__
    assert processes.share("abcd", 0, 2, cost) == ["b", "d"]  # 5, then c and a to the other, then equal loads
    assert processes.share("abcd", 1, 2, cost) == ["a", "c"]


def test_more_parts_than_units_leave_some_empty():
    assert [processes.share([1, 2], index, 3) for index in range(3)] == [[1], [2], []]


def test_a_single_process_exchanges_nothing():
    images, rows = torch.rand(3, 2), [torch.arange(3)]
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.gather("x") == ["x"]
    assert processes.from_main(lambda: 3) == 3
    assert processes.exchange([1, 2.5], None) == ([[1, 2.5]], None)
    assert processes.gather_images(images, [3]) is images
    assert torch.equal(processes.gather_rows(images, rows), images)
    assert processes.own_rows(5) == slice(0, 5)
    assert processes.start(30) is False  # without the environment of torchrun


@pytest.mark.parametrize(
    "error, kind",
    [
        (NumericsError("a"), NumericsError),
        (MemoryError("b"), MemoryError),
        (RuntimeError("CUDA error: out of memory"), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError("c"), RuntimeError),
    ],
)
def test_errors_travel_as_what_they_are(error, kind):
    assert type(processes.portable(error)) is kind
    assert str(error) in str(processes.portable(error))


def test_signals_are_held_back_until_they_may_come():
    came = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with HeldBack(True) as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == []
            assert signals.attempt(lambda: len(came)) == (1, None)
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(came) == 1
        assert came == [signal.SIGTERM] * 2
        assert isinstance(HeldBack(True).attempt(lambda: 1 // 0)[1], ZeroDivisionError)
        with pytest.raises(ProcessError), HeldBack(True) as signals:
            signals.attempt(_lose)
    finally:
        signal.signal(signal.SIGTERM, former)


def _lose() -> None:
    raise ProcessError("gone")


WORKER = """
import os, sys, torch
from ld3m.errors import ConfigError, MemoryBudgetError, NumericsError, ProcessError
from ld3m.runtime import processes as p
assert p.start()
me = p.rank()
def raised(kind, work):
    try: work()
    except kind as error: return str(error)
def refuse(): raise NumericsError("no")
assert p.gather(me) == [0, 1]
assert p.from_main(lambda: me) == 0
assert raised(NumericsError, lambda: p.from_main(refuse)) == "no"
assert "process 0" in raised(ConfigError, lambda: p.require_same({"data": me}))
assert p.exchange([me, 2.0], None) == ([[0, 2], [1, 2]], None)
error = p.exchange([0], MemoryError("full") if me else NumericsError("nan"))[1]
assert type(error) is NumericsError and str(error) == "nan", error
assert type(p.exchange([0], MemoryError("full") if me else None)[1]) is MemoryError
assert type(p.exchange([0], KeyboardInterrupt() if me else NumericsError("nan"))[1]) is KeyboardInterrupt
own = (torch.arange(6.0).view(3, 2) + 10 * me)[: 3 - me]
rows = [torch.tensor([0, 2, 4]), torch.tensor([1, 3])]
whole = p.gather_rows(own, rows)
assert (whole is None) == bool(me)
if not me: assert whole.tolist() == [[0, 1], [10, 11], [2, 3], [12, 13], [4, 5]]
leaf = own.clone().requires_grad_()
images = p.gather_images(leaf, [3, 2])
assert images.shape == (5, 2)
(images * torch.arange(5.0)[:, None]).sum().backward()
assert leaf.grad[:, 0].tolist() == ([0, 1, 2], [3, 4])[me]
value = torch.tensor([2.0 + me])
p.sum_weighted([value], (0.25, 0.75)[me])
assert value.item() == 0.25 * 2 + 0.75 * 3
assert sum(p.gather(p.own_rows(5).stop - p.own_rows(5).start)) == 5
assert sum(p.gather(p.is_first_to_fail())) == 1
with p.alone(): assert p.world_size() == 1 and p.from_main(lambda: me) == me
if me: os._exit(9)
assert "is gone" in raised(ProcessError, lambda: p.gather(1, "answer"))
print("all is well")
"""


def test_a_group_of_two(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    with_port = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(29_000 + os.getpid() % 900)}
    with_port |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, tmp_path / "worker.py"],
            env=with_port | {"RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    (out, said), (_, other) = (process.communicate(timeout=120) for process in both)
    assert both[1].returncode == 9, other
    assert "all is well" in out, said


def test_a_command_for_one_process_is_refused_in_several(ld3m_command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert ld3m_command("info") == (2, "", "ld3m: error: ld3m info runs in one process; start it without torchrun\n")


def test_errors_that_are_raised_everywhere_have_one_argument():
    assert all(str(kind("why")) == "why" for kind in (ConfigError, MemoryBudgetError, NumericsError, ProcessError))
