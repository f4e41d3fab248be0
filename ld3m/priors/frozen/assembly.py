"""The frozen networks that run in place of a prior's own modules, where those have counterparts."""

import logging
import weakref

import torch
from torch import nn

from ld3m.errors import ConfigError
from ld3m.priors.architecture import DiffusersModule
from ld3m.priors.frozen.execution import ExecutionConfig
from ld3m.priors.frozen.graphs import CudaRecorder, GraphedDenoiser
from ld3m.priors.frozen.networks import FrozenDecoder, FrozenDenoiser
from ld3m.priors.frozen.supported import obstacle

logger = logging.getLogger(__name__)

_GRAPHS = weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[GraphedDenoiser]]()  # by whose weights they read


class FrozenNetworks:
    """Frozen denoiser, frozen decoder and captured graphs; each None where the module itself is to run.

    Args:
        execution: None leaves all modules as they are.
    """

    denoiser: FrozenDenoiser | None = None
    decoder: FrozenDecoder | None = None
    graphs: GraphedDenoiser | None = None

    def __init__(
        self, denoiser: DiffusersModule, first_stage: DiffusersModule, execution: ExecutionConfig | None
    ) -> None:
        self.execution = execution
        if execution is None:
            for module in (denoiser, first_stage):
                _set_format(module, is_channels_last=False)
            return
        device = next(denoiser.parameters()).device
        decided = execution.on(device)
        if reason := obstacle(denoiser):
            logger.info("the denoiser runs as it is: %s", reason)
            given = {"cuda_graphs": execution.cuda_graphs, "attention": execution.attention != "auto"}
            if forced := [name for name, is_given in given.items() if is_given]:
                raise ConfigError(
                    f"{' and '.join(forced)} needs a U-Net with a frozen counterpart ({reason}); leave it out"
                )
        else:
            _set_format(denoiser, bool(decided.channels_last))
            self.denoiser = FrozenDenoiser(denoiser, decided)
            if decided.cuda_graphs:
                self.graphs = GraphedDenoiser(self.denoiser, CudaRecorder(device))
                _GRAPHS.setdefault(denoiser, weakref.WeakSet()).add(self.graphs)
        if reason := obstacle(first_stage.decoder):
            logger.info("the decoder runs as it is: %s", reason)
        else:
            _set_format(first_stage, bool(decided.channels_last))
            self.decoder = FrozenDecoder(first_stage, decided)


def _set_format(module: DiffusersModule, is_channels_last: bool) -> None:
    """Lay out the weights; where that moves them, graphs that were captured with them, of any prior, are released."""
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    places = [weight.data_ptr() for weight in module.parameters()]
    nn.Module.to(module, memory_format=layout)  # pyright: ignore[reportCallIssue]  # torch types it with a tensor alone
    if places != [weight.data_ptr() for weight in module.parameters()]:
        for graphs in _GRAPHS.get(module, ()):
            graphs.release()
