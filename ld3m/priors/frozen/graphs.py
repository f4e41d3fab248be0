"""A denoiser's calls and their vector-Jacobian products as CUDA graphs: one launch in place of hundreds.

A slot is one captured call together with the captured product that reads its activations. An evaluation that is kept
for the backward pass holds its slot until it is dropped; so with nothing kept one slot serves all steps of a chain, the
timestep entering as a row of a table, and there are never more slots than evaluations kept at once.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (latents, row, conditioning) -> predictions
Inputs = tuple[Tensor, Tensor, Tensor | None]
Recorder = Callable[..., tuple[Callable[[], object], ...]]

_WARM_UP = 3  # runs before a capture: libraries choose algorithms and kernels are compiled in the first


class CudaRecorder:
    """Captures functions as CUDA graphs; those of one call share a pool of memory, and no two calls do.

    What a function has freed when its capture ends is given to the next capture in the same pool. So within a slot the
    product takes the place of the call's temporaries, never that of its activations, which stay allocated: right as
    long as the call is replayed before the product. Another slot in that pool would put activations there, to be
    overwritten when the first slot is replayed while they are still to be read.

    Warm-ups and captures run on one stream: what a library or autograd keeps for a stream is then there before the
    first capture, and no capture waits for another stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)

    def __call__(
        self, *functions: Callable[[], object], forget: Callable[[], None]
    ) -> tuple[Callable[[], object], ...]:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP):
                    for function in functions:
                        function()
                    forget()
            current.wait_stream(self._stream)
            pool, graphs = torch.cuda.graph_pool_handle(), []
            for function in functions:
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], pool=pool, stream=self._stream):
                    function()
        return tuple(graph.replay for graph in graphs)


class GraphedDenoiser:
    """Calls of a denoiser out of recorded slots.

    Args:
        call: the denoiser, a pure function of tensors on one device.
        record: makes replays of functions, to be replayed in the order given; what they leave in attributes is
            overwritten by each replay. It calls `forget` after each trial run, so that no two are held at once.
    """

    def __init__(self, call: Call, record: Recorder) -> None:
        self._call, self._record = call, record
        self._free: dict[tuple, list[_Slot]] = defaultdict(list)
        self.num_slots = 0

    def evaluate(
        self, latents: Tensor, row: Tensor, conditioning: Tensor | None, wants: tuple[bool, bool]
    ) -> "GraphedCall":
        """Make a call like `Prior.evaluate`, with the timestep's row beside the latents."""
        inputs = (latents, row, conditioning)
        key = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        if not self._free[key]:
            self._free[key].append(_Slot(self._call, inputs, self._record))
            self.num_slots += 1
        return GraphedCall(self._free[key], inputs, wants)

    def release(self) -> None:
        """Let go of all slots with their activations; one that an evaluation holds goes with it."""
        self._free.clear()
        self.num_slots = 0


class GraphedCall:
    """A `DenoiserCall` out of a slot, given back when it is dropped, or at once where nothing more is wanted of it."""

    def __init__(self, free: "list[_Slot]", inputs: Inputs, wants: tuple[bool, bool]) -> None:
        self._free, self._wants = free, wants
        slot = free.pop()
        self._slot: _Slot | None = slot
        self.predictions = slot.predict(*inputs)
        if not any(wants):
            self._give_back()

    def vjp(self, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        assert self._slot is not None  # held as long as a gradient is wanted
        latents, conditioning = self._slot.pull_back(cotangent)
        return latents if self._wants[0] else None, conditioning if self._wants[1] else None

    def _give_back(self) -> None:
        if self._slot is not None:
            self._free.append(self._slot)
        self._slot = None

    __del__ = _give_back


class _Slot:
    """Inputs, outputs and activations at fixed addresses, and the two replays between them."""

    @torch.no_grad()
    def __init__(self, call: Call, inputs: Inputs, record: Recorder) -> None:
        self._call = call
        latents, row, conditioning = inputs
        latents, row = latents.detach().clone(), row.detach().clone()
        conditioning = None if conditioning is None else conditioning.detach().clone()
        self._inputs: Inputs = latents, row, conditioning
        self._wanted = [x.requires_grad_() for x in (latents, conditioning) if x is not None]
        self._cotangent = torch.zeros_like(latents)
        self._predictions: Tensor | None = None
        self._grads: tuple[Tensor, ...] | None = None
        self._replay_call, self._replay_vjp = record(self._forward, self._backward, forget=self._forget)

    def predict(self, *inputs: Tensor | None) -> Tensor:
        """Replay the call on latents, row and conditioning like the recorded ones; return a copy of the prediction."""
        self._fill(self._inputs, inputs)
        self._replay_call()
        assert self._predictions is not None  # of the call that was replayed
        return self._predictions.detach().clone()

    def pull_back(self, cotangent: Tensor) -> tuple[Tensor, Tensor | None]:
        """Replay the vector-Jacobian product of the last call, in the latents and in the conditioning."""
        self._fill((self._cotangent,), (cotangent,))
        self._replay_vjp()
        assert self._grads is not None  # of the product that was replayed
        latents, *conditioning = (grad.clone() for grad in self._grads)
        return latents, conditioning[0] if conditioning else None

    @staticmethod
    @torch.no_grad()
    def _fill(places: tuple[Tensor | None, ...], values: tuple[Tensor | None, ...]) -> None:
        for place, value in zip(places, values, strict=True):
            if place is not None and value is not None:
                place.copy_(value)

    @torch.enable_grad()
    def _forward(self) -> None:
        self._predictions = self._call(*self._inputs)

    def _backward(self) -> None:
        assert self._predictions is not None
        # The graph is retained: its activations stay allocated, so that the product's own tensors get other places.
        self._grads = torch.autograd.grad(
            self._predictions, self._wanted, self._cotangent, retain_graph=True, materialize_grads=True
        )

    def _forget(self) -> None:
        self._predictions = self._grads = None
