"""What stands in for a prior's own modules, as far as they have lean counterparts."""

import logging

import torch
from torch import nn

from ld3m.errors import ConfigError
from ld3m.priors.frozen.execution import Execution
from ld3m.priors.frozen.graphs import CudaRecorder, GraphedDenoiser
from ld3m.priors.frozen.networks import LeanDecoder, LeanDenoiser
from ld3m.priors.frozen.supported import obstacle

logger = logging.getLogger(__name__)


class Streamlined:
    """Lean denoiser, lean decoder and captured graphs; each None where the module itself is to run.

    Args:
        execution: None leaves all modules as they are.
    """

    def __init__(self, denoiser: nn.Module, first_stage: nn.Module, execution: Execution | None) -> None:
        self.execution, self.denoiser, self.decoder, self.graphs = execution, None, None, None
        if execution is None:
            for module in (denoiser, first_stage):
                _set_format(module, is_channels_last=False)
            return
        device = next(denoiser.parameters()).device
        execution = execution.on(device)
        if reason := obstacle(denoiser):
            logger.info("the denoiser runs as it is: %s", reason)
            given = {"cuda_graphs": self.execution.cuda_graphs, "attention": self.execution.attention != "auto"}
            if forced := [name for name, is_given in given.items() if is_given]:
                raise ConfigError(
                    f"{' and '.join(forced)} needs a U-Net with a lean counterpart ({reason}); leave it out"
                )
        else:
            _set_format(denoiser, execution.channels_last)
            self.denoiser = LeanDenoiser(denoiser, execution)
            self.graphs = GraphedDenoiser(self.denoiser, CudaRecorder(device)) if execution.cuda_graphs else None
        if reason := obstacle(first_stage.decoder):
            logger.info("the decoder runs as it is: %s", reason)
        else:
            _set_format(first_stage, execution.channels_last)
            self.decoder = LeanDecoder(first_stage, execution)


def _set_format(module: nn.Module, is_channels_last: bool) -> None:
    nn.Module.to(module, memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)
