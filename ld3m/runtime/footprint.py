"""The costs of one image: bytes and floating-point operations, counted on the networks as they are.

Nothing is estimated from a network's structure: each part of an iteration is run on one or two images, on the device of
the prior, and what its operations allocate is counted. On the meta device that takes neither memory nor weights.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Pass:
    """Bytes of a forward pass and the backward pass after it, beyond what was there before.

    Args:
        held: between the two, the output included.
        forward: at most in the forward pass.
        peak: at most in both.
        flops: of the forward pass.
    """

    held: int
    forward: int
    peak: int
    flops: int


class Ledger(TorchDispatchMode):
    """Bytes of the tensors that operations inside the block have made and that are still alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_address(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor.untyped_storage()) not in given | self._alive:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = _address(storage), storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class _Largest(TorchDispatchMode):
    """The most elements of a tensor that operations inside the block return."""

    elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


class CpuLedger(Ledger):
    """The same, with what a CPU's kernels take for themselves, as far as it is large."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if function is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.now + _reordered(args[0], args[1], result))
        return result


class CudaLedger:
    """The same from the allocator of a CUDA device, which also sees what kernels take for themselves."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "CudaLedger":
        self._before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device) - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self._before


def footprint(call: Callable[[], Tensor], device: torch.device) -> Pass:
    """Count the forward pass `call` and a backward pass from its result."""

    def go_back(output: Tensor) -> None:
        output.backward(torch.ones_like(output))

    with torch.enable_grad(), _ledger(lambda: go_back(call()), device) as count:
        with FlopCounterMode(display=False) as flops:
            output = call()
        held, forward = count.now, count.peak
        go_back(output)
    return Pass(held, forward, count.peak, flops.get_total_flops())


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Count the most bytes that `call` takes at once."""
    with _ledger(call, device) as count:
        call()
    return count.peak


@torch.no_grad()
def largest_result(call: Callable[[], object]) -> int:
    """Count the elements of the largest tensor that an operation of `call` returns."""
    with _Largest() as count:
        call()
    return count.elements


def saved_bytes(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Count the bytes autograd keeps for the backward pass of `call`, the module's weights and buffers left out."""
    weights = {_address(t.untyped_storage()) for t in (*module.parameters(), *module.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if _address(storage) not in weights:
            held[_address(storage)] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()  # alive while counting, so that no two saved tensors share an address
    del output
    return sum(held.values())


def size_of(*modules: nn.Module) -> int:
    """Return the bytes of the modules' weights and buffers."""
    tensors = {_address(t.untyped_storage()): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def _address(storage: torch.UntypedStorage) -> int:
    """Return what tells a storage from the others that are alive, also on the meta device."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


def _reordered(images: Tensor, weight: Tensor, result: Tensor) -> int:
    """Return what a CPU's convolution copies into a layout of its own: its input or its result, the larger one.

    So oneDNN does with kernels of more than one pixel and images in the plain layout; in other cases it depends.
    """
    is_plain = images.is_contiguous() and math.prod(weight.shape[2:]) > 1
    return max(images.nbytes, result.nbytes) if is_plain else 0


def _ledger(work: Callable[[], object], device: torch.device) -> Ledger | CudaLedger:
    """Return what counts `work`, all of it: backward passes have a thread, and so workspaces, of their own."""
    if device.type != "cuda":
        return CpuLedger() if device.type == "cpu" else Ledger()
    work()  # makes what the first time on a GPU leaves behind, such as workspaces
    return CudaLedger(device)
