"""The language inside of kernels, which Triton compiles: Python's types say nothing there."""

from typing import Any as constexpr

def __getattr__(name: str) -> constexpr: ...
