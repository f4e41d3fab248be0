"""The memory plan of a distillation, and the costs it is made from."""

from ld3m.memory.plan import Plan, plan_memory

__all__ = ["Plan", "plan_memory"]
