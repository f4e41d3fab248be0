"""Calls of which each line is a type error."""

import ld3m

ld3m.distill(ipc="x")
ld3m.distill(itterations=3)
ld3m.distill(injection="x1")
ld3m.sample_dataset(steps="many")
ld3m.evaluate("run", "builtin", labels="softer")
