"""The processes of one run, as torchrun starts them; where no torch.distributed group is initialized there is one.

Functions use a group and never make one: `start` is for the command line. Exchanges are of tensors and objects on the
CPU, which are small, and of images where they are; none of them adds anything up, so that sums have one order.
"""

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ld3m.errors import ConfigError, ProcessError
from ld3m.runtime.devices import is_out_of_memory

logger = logging.getLogger(__name__)

_SECONDS_IN_SILENCE = 60.0
_T = TypeVar("_T")
_store: Store | None = None  # of the group that `start` made
_num_alone = 0


def rank() -> int:
    """Return the number of this process, 0 for the one that writes and speaks."""
    return dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _has_group() else 1


def num_local() -> int:
    """Return the number of processes on this machine, which share its memory and cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def is_main() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Work as a single process in the block, which the others do not reach."""
    global _num_alone
    _num_alone += 1
    try:
        yield
    finally:
        _num_alone -= 1


def share(units: Sequence[_T], index: int, count: int, cost: Callable[[_T], float] = lambda unit: 1.0) -> list[_T]:
    """Return what part `index` of `count` has of the units, in their order: the heaviest first, each to the least
    loaded. It follows from the arguments alone."""
    loads, owners = [0.0] * count, [0] * len(units)
    for unit in sorted(range(len(units)), key=lambda unit: -cost(units[unit])):
        owners[unit] = loads.index(min(loads))
        loads[owners[unit]] += cost(units[unit])
    return [unit for unit, owner in zip(units, owners, strict=True) if owner == index]


def gather(value: _T, what: str = "go on") -> list[_T]:
    """Return the values of all processes, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _waiting(what):
        dist.all_gather_object(values, value)
    return values


def from_main(work: Callable[[], _T], what: str = "go on") -> _T:
    """Do the work in the main process alone; return its outcome, or raise its error, in all."""
    if world_size() == 1:
        return work()
    packet: list[Any] = [None, None]
    if is_main():
        try:
            packet[0] = work()
        except Exception as error:
            packet[1] = error
    packet[1] = packet[1] if not isinstance(packet[1], Exception) else portable(packet[1])
    with _waiting(what):
        dist.broadcast_object_list(packet)
    if packet[1] is not None:
        raise packet[1]
    return packet[0]


def exchange(values: Sequence[float], error: BaseException | None) -> tuple[list[list[float]], BaseException | None]:
    """Return the numbers of all processes, in their order, and the error that ends this for all, None for none.

    An interrupt goes before other errors, and these before memory that ran out.
    """
    if world_size() == 1:
        return [list(values)], error
    own = torch.tensor([float(error is not None), *values], dtype=torch.float64)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    with _waiting("end an iteration"):
        dist.all_gather(parts, own)
    rows = torch.stack(parts).tolist()
    if not any(row[0] for row in rows):
        return [row[1:] for row in rows], None
    errors = [found for found in gather(error and portable(error), "say what is wrong") if found is not None]
    return [], min(errors, key=_weight)


def require_same(facts: Mapping[str, object]) -> None:
    """Raise ConfigError, in all, where processes differ in what must be the same."""
    for other, theirs in enumerate(gather(dict(facts), "read the data")):
        for name, value in facts.items():
            if theirs[name] != value:
                raise ConfigError(
                    f"processes differ: {name} is {value} in process {rank()} and {theirs[name]} in process {other}; "
                    "start all from the same installation, with the same settings and data"
                )


def gather_rows(own: Tensor, rows: Sequence[Tensor]) -> Tensor | None:
    """Return the rows (N, …) of all processes, on the CPU of the main one; None elsewhere.

    Args:
        own: (n, …), of this process.
        rows: for each process, where its rows go, (n,).
    """
    own = own.detach().cpu()
    if world_size() == 1 or not own.ndim:
        return own if is_main() else None
    with _waiting("hand over their rows"):
        if not is_main():
            dist.send(own.contiguous(), 0)
            return None
        whole = own.new_empty((sum(map(len, rows)), *own.shape[1:]))
        whole[rows[0]] = own
        for sender in range(1, world_size()):  # one after the other: no more than one of them waits in memory
            part = own.new_empty((len(rows[sender]), *own.shape[1:]))
            dist.recv(part, sender)
            whole[rows[sender]] = part
    return whole


def gather_images(own: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the images (N, …) of all processes, one after the other, in all; the gradient goes to the own ones.

    Every process goes on with the same computation on all of them, so that a gradient is whole where it arises and
    nothing is summed.
    """
    return own if world_size() == 1 else _Gathered.apply(own, tuple(counts))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        first = sum(counts[: rank()])
        ctx.own = slice(first, first + len(own))
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        with _waiting("render their images"):
            dist.all_gather(parts, padded)
        whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        is_last = not own.is_contiguous() and own.is_contiguous(memory_format=torch.channels_last)
        return whole.contiguous(memory_format=torch.channels_last) if is_last else whole  # as one process has them

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cotangent[ctx.own], None


def own_rows(count: int) -> slice:
    """Return which of so many rows are this process's: one block, of as many as the others' or one more."""
    low, high = (count * number // world_size() for number in (rank(), rank() + 1))
    return slice(low, high)


def sum_weighted(tensors: Sequence[Tensor], weight: float) -> None:
    """Put Σ weight · tensor over all processes into the tensors, by one exchange; weights add up to 1."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).mul_(weight)
    with _waiting("compute their gradients"):
        dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def start(minutes: float) -> bool:
    """Make the group that torchrun's environment describes; return whether there is one to make.

    Each process gets its GPU, and its share of the cores unless OMP_NUM_THREADS says otherwise.

    Args:
        minutes: that one process waits for the others.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "RANK" not in os.environ:
        return False
    local, num_local = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    backend = "gloo"
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"{num_local} processes on a machine with {torch.cuda.device_count()} GPUs; start at most one a GPU "
                'by --nproc-per-node, or set CUDA_VISIBLE_DEVICES="" for the CPU'
            )
        torch.cuda.set_device(local)  # what "cuda" means from here on
        backend = "cuda:nccl,cpu:gloo"
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, num_local)))
    timeout = timedelta(minutes=minutes)
    try:
        _store, own, count = next(iter(rendezvous("env://", timeout=timeout)))
        group = PrefixStore("ld3m/group", _store)
        dist.init_process_group(backend, store=group, rank=own, world_size=count, timeout=timeout)
    except (RuntimeError, OSError) as error:
        raise ProcessError(f"the processes could not find each other ({_first_line(error)}); {_LOST}") from error
    return True


def stop() -> None:
    """Leave the group that `start` made."""
    if _store is not None and dist.is_initialized():
        dist.destroy_process_group()


def is_first_to_fail() -> bool:
    """Whether no other process has failed yet: the first says why, the others fail because of it."""
    if _store is None:
        return is_main()
    with contextlib.suppress(RuntimeError):
        return _store.add("ld3m/failures", 1) == 1
    return True  # the store has gone with the process that had it


def portable(error: BaseException) -> BaseException:
    """Return an error that can be sent to another process and raised there."""
    kind, text = type(error), str(error)
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt()
    if is_out_of_memory(error):
        return MemoryError(text)
    if kind.__module__ == "ld3m.errors":
        return kind(text)
    return RuntimeError(f"process {rank()}: {kind.__name__}: {text}")


_LOST = "look above for what it said, and go on by --resume, with any number of processes"


def _has_group() -> bool:
    return not _num_alone and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def _waiting(what: str) -> Generator[None]:
    """Say what is waited for when it takes long; raise ProcessError where another process is not there any more."""
    say = functools.partial(logger.info, "waiting for the other processes to %s", what)
    clock = threading.Timer(_SECONDS_IN_SILENCE, say)
    clock.daemon = True
    clock.start()
    try:
        yield
    except RuntimeError as error:
        is_late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        reason = "did not do so in time (--timeout sets it)" if is_late else "is gone"
        raise ProcessError(f"waited for the other processes to {what}, and one {reason}; {_LOST}") from error
    finally:
        clock.cancel()


def _weight(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 0
    return 2 if isinstance(error, MemoryError) else 1


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
