"""Frozen networks without what a gradient in their inputs alone does not need; see `Prior.set_execution`."""

from ld3m.priors.frozen.assembly import FrozenNetworks
from ld3m.priors.frozen.execution import ExecutionConfig
from ld3m.priors.frozen.graphs import GraphedCall

__all__ = ["ExecutionConfig", "FrozenNetworks", "GraphedCall"]
