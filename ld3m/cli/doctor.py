"""`ld3m doctor`: what is there, what is slow and why, and what to do about it."""

import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ld3m.cli.commands import Command

_EXTRAS = {"datasets": "Hugging Face data sets (hf:NAME, parquet)", "xformers": "--attention xformers"}
_LITTLE_MEMORY = 4e9


class Finding(NamedTuple):
    """What was looked at, how it is ("good", "slow" or "absent"), and where something can be done, what."""

    subject: str
    state: str
    words: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """The facts that the findings follow from.

    Args:
        not_native: why the C++ ops cannot run on the CPU, "" where they can.
        no_native_cuda: likewise on the GPU.
        gpus: names of those that torch sees.
        cuda: version that torch was built for, None for a CPU build.
        threads, cores: that torch takes, and that this process may use.
        has_bfloat16: whether the CPU computes in bfloat16.
    """

    not_native: str
    no_native_cuda: str
    has_triton: bool
    gpus: tuple[str, ...]
    cuda: str | None
    threads: int
    cores: int
    has_bfloat16: bool
    memory: int
    extras: tuple[str, ...]


@dataclass(frozen=True)
class DoctorCommand(Command):
    """Say what is there, what is slow and why, and what to do about it; ends with status 0 whatever is found."""

    def execute(self) -> None:
        import torch

        import ld3m

        print(f"ld3m {ld3m.__version__}, torch {torch.__version__}, Python {platform.python_version()}\n")
        found = list(findings(look()))
        for subject, state, words, remedy in found:
            print(f"{state:7} {subject:9} {words}" + (f"\n{'':18}do: {remedy}" if remedy else ""))
        slow = sum(one.state == "slow" for one in found)
        print(
            f"\n{slow} of {len(found)} points cost time here." if slow else "\nNothing here is slower than it need be."
        )


def look() -> Machine:
    """Gather the facts of this machine."""
    import torch

    from ld3m.memory.plan import total_memory
    from ld3m.ops import backends

    cpu = torch.device("cpu")
    has_gpu = torch.cuda.is_available()
    return Machine(
        not_native=backends.missing("native", torch.empty(0)),
        no_native_cuda=backends.missing("native", torch.empty(0, device="cuda")) if has_gpu else "",
        has_triton=backends.HAS_TRITON,
        gpus=tuple(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())) if has_gpu else (),
        cuda=torch.version.cuda,
        threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        has_bfloat16=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        memory=total_memory(cpu),
        extras=tuple(name for name in _EXTRAS if importlib.util.find_spec(name)),
    )


def findings(machine: Machine) -> Iterator[Finding]:
    """Judge the facts."""
    yield _native(machine)
    yield from _gpu(machine)
    yield _threads(machine)
    if machine.has_bfloat16 and not machine.gpus:
        words = "the CPU computes in bfloat16, which nothing uses unless it is asked for"
        yield Finding("bfloat16", "slow", words, "ld3m evaluate --dtype bfloat16 trains up to twice as fast")
    memory = f"{machine.memory / 1e9:.1f} GB"
    if machine.memory < _LITTLE_MEMORY:
        yield Finding(
            "memory",
            "slow",
            f"{memory}: activations are computed again",
            "close other programs, or see --memory-budget",
        )
    else:
        yield Finding("memory", "good", memory)
    for name, use in _EXTRAS.items():
        if name in machine.extras:
            yield Finding(name, "good", f"installed, for {use}")
        else:
            yield Finding(name, "absent", f"needed for {use} alone", f"pip install {name}")


def _native(machine: Machine) -> Finding:
    if machine.not_native:
        words = f"the C++ ops are not there, eager ones run instead: {machine.not_native.partition('; reinstall')[0]}"
        return Finding("native", "slow", words, "install a C++ compiler (apt install g++), then reinstall ld3m")
    return Finding("native", "good", "the C++ ops run on the CPU")


def _gpu(machine: Machine) -> Iterator[Finding]:
    """Judge what there is to compute on beside the CPU, and what its ops are computed by."""
    if not machine.gpus:
        if machine.cuda:
            words = f"torch is built for CUDA {machine.cuda} and sees no GPU or no driver: all runs on the CPU"
            remedy = "with an NVIDIA GPU install its driver; without one a CPU build of torch is 4 GB smaller"
            yield Finding("GPU", "absent", words, remedy)
        else:
            yield Finding(
                "GPU", "absent", "torch is a CPU build", "with an NVIDIA GPU install a CUDA build, see pytorch.org"
            )
        return
    yield Finding("GPU", "good", ", ".join(machine.gpus))
    if machine.has_triton:
        yield Finding("Triton", "good", "its kernels run on the GPU")
    else:
        yield Finding("Triton", "slow", "is not installed: more ops run eagerly on the GPU", "pip install triton")
    if machine.no_native_cuda:
        words, _, remedy = machine.no_native_cuda.rpartition("; ")
        yield Finding("CUDA ops", "slow", words, remedy)
    else:
        yield Finding("CUDA ops", "good", "run on the GPU")


def _threads(machine: Machine) -> Finding:
    if machine.threads < machine.cores:
        words = f"torch takes {machine.threads} of {machine.cores} cores"
        return Finding("threads", "slow", words, f"unset OMP_NUM_THREADS, or set it to {machine.cores}")
    if machine.cores == 1:
        return Finding("threads", "slow", "there is 1 core", "a second one would train two networks side by side")
    return Finding("threads", "good", f"torch takes all {machine.cores} cores")
