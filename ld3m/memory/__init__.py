"""The memory plan of a distillation, and the costs it is made from."""

from ld3m.memory.diffusion import plan_memory
from ld3m.memory.plan import Plan

__all__ = ["Plan", "plan_memory"]
