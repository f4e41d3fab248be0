"""Selection of a group (D3HR) against the published scheme, which draws and stores the groups 10,000 at a time.

`python benchmarks/group_select.py [GROUPS]` compares time and peak memory of both, each in a process of its own.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ld3m.ops.group_select import WEIGHTS, group_select

SHAPES = {  # groups, images per class, coordinates: latents of the embedded prior, and of one of 256 px
    "cpu": [(10_000, 10, 192), (1000, 10, 4096)],
    "gpu": [(10_000, 10, 192), (10_000, 10, 4096), (10_000, 50, 4096), (100_000, 10, 4096)],
    "smoke": [(50, 3, 16)],
}
CHUNK = 10_000


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare."""
    for groups, ipc, dim in SHAPES[suite]:
        mean, std = statistics(dim, device)
        yield {
            "name": f"group_select/{groups}x{ipc}x{dim}",
            "mode": "fwd",
            "shape": (groups, ipc, dim),
            "dtype": "float32",
            "against": "published, groups stored by the 10,000",
            "tolerance": 0.3,  # the best of other groups
            "ours": lambda std=std, ipc=ipc, groups=groups: ours(std, ipc, groups),
            "baseline": lambda mean=mean, std=std, ipc=ipc, groups=groups: published(mean, std, ipc, groups),
            "bytes": 4 * dim,
        }


def statistics(dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Return a mean and a standard deviation, (dim,) each."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(dim, generator=draw).to(device), (torch.rand(dim, generator=draw) + 0.5).to(device)


def ours(std: Tensor, ipc: int, groups: int) -> Tensor:
    """Return the best score; the groups of the published scheme are others, so only its size compares."""
    return torch.tensor(group_select(std, ipc=ipc, groups=groups, seed=0)[1])


def published(mean: Tensor, std: Tensor, ipc: int, groups: int) -> Tensor:
    """Draw, store and score the groups chunk by chunk; return the best score."""
    dim, best = len(mean), torch.tensor(float("inf"))
    for first in range(0, groups, CHUNK):
        draw = torch.Generator(mean.device).manual_seed(12345 * (first // CHUNK + 1))
        shape = (min(CHUNK, groups - first), ipc, dim)
        drawn = torch.normal(mean.expand(shape), std.expand(shape), generator=draw)
        row_mean, row_std = drawn.mean(1), drawn.std(1)
        skewness = dim / ((dim - 1) * (dim - 2)) * ((drawn - row_mean[:, None]) / row_std[:, None]).pow(3).sum(-1)
        terms = (row_mean - mean).norm(dim=1), (row_std - std).norm(dim=1), skewness.norm(dim=1)
        scores = sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True))
        best = torch.minimum(best, scores.min().cpu())
    return best


def measure(kind: str, groups: int, ipc: int, dim: int, answer: "multiprocessing.connection.Connection") -> None:
    """Send (best score, CPU seconds, bytes above those at the start) of one selection in this process."""
    mean, std = statistics(dim, "cpu")
    group_select(std, ipc=ipc, groups=1, seed=0)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    score = ours(std, ipc, groups) if kind == "ours" else published(mean, std, ipc, groups)
    seconds = time.process_time() - started
    answer.send((float(score), seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


def main(groups: int, ipc: int = 10, dim: int = 4096) -> None:
    print(f"{groups} groups of {ipc} x {dim}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    spawn, measured = multiprocessing.get_context("spawn"), {}
    for kind in ("ours", "published"):
        here, there = spawn.Pipe()
        process = spawn.Process(target=measure, args=(kind, groups, ipc, dim, there))
        process.start()
        score, seconds, size = measured[kind] = here.recv()
        process.join()
        print(f"{kind:10} best score {score:.4f}, {seconds:.2f} s of CPU time, peak memory + {size / 2**20:.1f} MiB")
    (_, fast, small), (_, slow, large) = measured.values()
    print(f"ratio      {slow / fast:.1f} times faster, {100 * small / large:.2f} % of the memory")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
