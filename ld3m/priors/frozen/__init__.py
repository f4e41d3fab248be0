"""Frozen networks without what a gradient in their inputs alone does not need; see `Prior.streamline`."""

from ld3m.priors.frozen.execution import Execution
from ld3m.priors.frozen.streamlined import Streamlined

__all__ = ["Execution", "Streamlined"]
