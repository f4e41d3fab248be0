"""Many trainings: side by side on the cores of a CPU; on an accelerator one job after the other, each many at once.

A training of a small network on ten images keeps one core busy and hardly two, so N cores run N trainings with one
thread each. An accelerator is idle most of such a training: there the repeats of a network are one job. What a training
draws is its own, so neither order nor company changes anything.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from ld3m.runtime import processes

_PIXELS_IN_FLIGHT = 2**24  # of all batches that are trained on at the same time: bounds the memory


@dataclass(frozen=True)
class Training:
    """A training by its set, network, number among the repeats, variant of the protocol, and halvings of the rate."""

    set: str
    network: str
    repeat: int
    variant: str = "own"
    halvings: int = 0


Job = tuple[Training, ...]


class Cancelled(Exception):
    """Raised inside a training when another one has failed or the user has interrupted."""


def num_together(batch_pixels: int) -> int:
    """Return how many trainings may be under way at the same time, by memory."""
    return max(1, _PIXELS_IN_FLIGHT // max(1, batch_pixels))


def num_workers(num_jobs: int, batch_pixels: int, device: torch.device) -> int:
    """Return how many jobs run side by side."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), num_jobs, num_together(batch_pixels)))


def jobs_of(trainings: Sequence[Training], most: int) -> list[Job]:
    """Gather the repeats of each network on each set into jobs of `most` at the most."""
    groups: dict[tuple[object, ...], list[Training]] = {}
    for training in trainings:
        kind = training.set, training.network, training.variant, training.halvings, training.repeat // most
        groups.setdefault(kind, []).append(training)
    return [tuple(group) for group in groups.values()]


def share_out(
    jobs: Sequence[Job],
    work: Callable[[Job, Callable[[], None]], Sequence[list[float] | None]],
    finished: Callable[[Training, list[float] | None], None],
    workers: int,
    beside: dict[Training, Any],
) -> None:
    """Run jobs in all processes, as many at a time as they have workers together; each notes what all have done.

    Args:
        beside: what each process keeps of its own trainings beside their accuracies; afterwards, of all.
    """
    count = processes.world_size()
    if count == 1:
        run(jobs, work, finished, workers)
        return
    jobs = sorted(jobs, key=lambda job: job[0].network)  # those that take equally long together
    for first in range(0, len(jobs), workers * count):
        done: dict[Training, list[float] | None] = {}
        own = processes.share(jobs[first : first + workers * count], processes.rank(), count)
        run(own, work, done.__setitem__, workers)
        kept = {training: beside[training] for training in done if training in beside}
        for part, others in processes.gather((done, kept), "end their trainings"):
            beside.update(others)
            for training, accuracies in part.items():
                finished(training, accuracies)


def run(
    jobs: Sequence[Job],
    work: Callable[[Job, Callable[[], None]], Sequence[list[float] | None]],
    finished: Callable[[Training, list[float] | None], None],
    workers: int,
) -> None:
    """Do `work(job, each_epoch)` for all; call `finished(training, accuracies)`, in this thread, for its trainings.

    None for accuracies stands for a training that diverged.

    Work has to call `each_epoch` now and then: it raises where the run has been interrupted.
    """

    def note(job: Job, outcomes: Sequence[list[float] | None]) -> None:
        for training, accuracies in zip(job, outcomes, strict=True):
            finished(training, accuracies)

    if workers == 1:
        for job in jobs:
            note(job, work(job, lambda: None))
        return
    stop = threading.Event()

    def each_epoch() -> None:
        if stop.is_set():
            raise Cancelled

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        pending = {pool.submit(work, job, each_epoch): job for job in jobs}
        for future in as_completed(pending):
            note(pending[future], future.result())
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
