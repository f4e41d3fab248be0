"""Many trainings: side by side on the cores of a CPU, one after the other on an accelerator.

A training of a small network on ten images keeps one core busy and hardly two, so N cores run N trainings with one
thread each. What a training draws is its own, so the order in which trainings run changes nothing.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

_PIXELS_IN_FLIGHT = 2**24  # of all batches that are trained on at the same time: bounds the memory


@dataclass(frozen=True)
class Training:
    """Which set trains which network, and the how many-th time."""

    set: str
    network: str
    repeat: int


class Cancelled(Exception):
    """Raised inside a training when another one has failed or the user has interrupted."""


def num_workers(num_trainings: int, batch_pixels: int, device: torch.device) -> int:
    """Return how many trainings run side by side."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), num_trainings, _PIXELS_IN_FLIGHT // max(1, batch_pixels)))


def run(
    trainings: Sequence[Training],
    work: Callable[[Training, Callable[[], None]], float],
    finished: Callable[[Training, float], None],
    workers: int,
) -> None:
    """Do `work(training, each_epoch)` for all; call `finished(training, accuracy)`, in this thread, after each.

    Work has to call `each_epoch` now and then: it raises where the run has been interrupted.
    """
    if workers == 1:
        for training in trainings:
            finished(training, work(training, lambda: None))
        return
    stop = threading.Event()

    def each_epoch() -> None:
        if stop.is_set():
            raise Cancelled

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        pending = {pool.submit(work, training, each_epoch): training for training in trainings}
        for future in as_completed(pending):
            finished(pending[future], future.result())
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
