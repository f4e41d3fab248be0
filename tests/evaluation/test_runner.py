"""Trainings side by side: the same results in any order, no thread count left behind, errors that come through."""

import threading
import time

import pytest
import torch

from ld3m.evaluation.runner import Cancelled, Training, num_workers, run

JOBS = [(Training("set", "net", repeat),) for repeat in range(7)]


def results(workers):
    got = {}
    run(JOBS, lambda job, _: [[job[0].repeat * 10.0]], lambda training, scores: got.update({training: scores}), workers)
    return got


def test_any_number_of_workers_does_all_the_work():
    assert results(1) == results(3) == {training: [training.repeat * 10.0] for (training,) in JOBS}


def test_workers_share_the_threads_and_give_them_back():
    torch.set_num_threads(5)
    inside = []
    run(JOBS, lambda job, _: inside.append(torch.get_num_threads()) or [[0.0]], lambda *_: None, 2)
    assert inside == [2] * len(JOBS)
    assert torch.get_num_threads() == 5


def test_results_are_noted_in_the_calling_thread():
    threads = set()
    run(JOBS, lambda job, _: [[0.0]], lambda *_: threads.add(threading.get_ident()), 3)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_comes_through_and_stops_the_others(workers):
    started, cancelled = [], []

    def work(job, each_epoch):
        started.append(job)
        if job[0].repeat == 1:
            raise ValueError("one is bad")
        try:
            for _ in range(200 if workers == 2 else 1):
                each_epoch()
                time.sleep(0.01)
        except Cancelled:
            cancelled.append(job)
            raise
        return [[0.0]]

    with pytest.raises(ValueError, match="one is bad"):
        run(JOBS, work, lambda *_: None, workers)
    assert len(started) < len(JOBS)
    assert bool(cancelled) == (workers == 2)


def test_number_of_workers_is_bound_by_cores_trainings_memory_and_device(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    cpu = torch.device("cpu")
    assert num_workers(100, 10 * 32**2, cpu) == 8
    assert num_workers(3, 10 * 32**2, cpu) == 3
    assert num_workers(100, 100 * 256**2, cpu) == 2
    assert num_workers(100, 10**9, cpu) == num_workers(0, 0, cpu) == 1
    assert num_workers(100, 10 * 32**2, torch.device("cuda")) == 1
