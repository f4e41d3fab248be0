"""The execution of a frozen prior's networks: its switches, each with an off position."""

from dataclasses import dataclass, replace

import torch

from ld3m.errors import ConfigError
from ld3m.priors.frozen.attention import BACKENDS


@dataclass(frozen=True)
class ExecutionConfig:
    """Switches of `Prior.set_execution`, all exact to rounding. None means: on, or for `cuda_graphs` on a GPU alone.

    Args:
        attention: "auto" (by device and shape), "sdpa", "xformers" or "bmm" (two products and a softmax).
        single_token: cross-attention over one token as one vector per sample, computed once a chain.
        time_table: time embedding and projections of all timesteps, tabulated once.
        keep_less: convolutions and GEGLU keep nothing, or their input alone, for the backward pass.
        fused_norm: GroupNorm, with SiLU or alone, as the op `ld3m.ops.group_norm_silu`, which keeps its input alone.
        channels_last: weights and activations in that memory format.
        compile: torch.compile of the residual and transformer blocks, one by one.
        cuda_graphs: calls of the denoiser and their vector-Jacobian products replayed as CUDA graphs.
    """

    attention: str = "auto"
    single_token: bool = True
    time_table: bool = True
    keep_less: bool = True
    fused_norm: bool | None = None
    channels_last: bool | None = None
    compile: bool = False
    cuda_graphs: bool | None = None

    def __post_init__(self) -> None:
        if self.attention not in BACKENDS:
            raise ConfigError(f"attention is one of {', '.join(BACKENDS)}; got {self.attention!r}")

    def on(self, device: torch.device) -> "ExecutionConfig":
        """Return the switches with every None decided by the device."""
        if self.cuda_graphs and device.type != "cuda":
            raise ConfigError(f"cuda_graphs needs a prior on cuda, it is on {device.type}; leave cuda_graphs out")
        decided = {"fused_norm": True, "channels_last": True, "cuda_graphs": device.type == "cuda"}
        return replace(self, **{name: value for name, value in decided.items() if getattr(self, name) is None})
