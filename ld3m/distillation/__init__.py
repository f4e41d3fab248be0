"""Distillation: the job from settings, the loop, and what is matched in an iteration."""

from ld3m.distillation.loop import distill

__all__ = ["distill"]
