"""Checks of single values: choices, counts, numbers. Each raises one sentence that names the setting or argument.

`error` is the class that is raised: ConfigError for settings, InputError for arguments of a function of tensors.
"""

import difflib
import math
from collections.abc import Iterable
from typing import TypeGuard

from ld3m.errors import ConfigError, Ld3mError

_LARGEST = 3e38  # float32 ends at 3.4e38


def one_of(value: object, argument: str, valid: Iterable[str]) -> None:
    """Raise unless `value` is one of the valid names; the nearest one is suggested."""
    names = tuple(valid)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{argument} is one of {', '.join(names)}; got {value!r}{hint}")


def is_count(value: object, least: int = 1, most: float = math.inf) -> TypeGuard[int]:
    """Whether a value is a whole number from `least` to `most`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_count(value: object, argument: str, least: int = 1, reason: str = "", most: int = 10**9) -> None:
    """Raise unless a value is a whole number within bounds; the reason for the lower one is added to the message."""
    if not is_count(value, least):
        raise ConfigError(f"{argument} is a whole number, at least {least}{reason}; got {value!r}")
    if value > most:
        raise ConfigError(f"{argument} is a whole number, at most {most:,}; got {value if value < 10**20 else 'more'}")


def check_steps(value: object, least: int = 1, error: type[Ld3mError] = ConfigError) -> None:
    """Raise unless a value is a number of steps that a chain can have."""
    if not is_count(value, least, 1000):
        raise error(f"steps is a whole number from {least} to 1000, got {value!r}")


def check_epochs(value: object, argument: str) -> None:
    """Raise unless a value is a possible length of a training."""
    check_count(value, argument, 2, " (one warms up, one cools down)")


def check_positive(value: float, argument: str) -> None:
    """Raise unless a number is above 0 and finite, in single precision too."""
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{argument} is a number above 0, got {value!r}")
    if value > _LARGEST:
        raise ConfigError(f"{argument} is a number of at most {_LARGEST:g}, got {value!r}")


def check_above_zero(**values: float) -> None:
    """Raise unless all of these settings are above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value}")


def check_finite(value: float, argument: str, error: type[Ld3mError] = ConfigError) -> None:
    """Raise for NaN and infinite numbers, and those that are so in single precision."""
    if not (math.isfinite(value) and abs(value) <= _LARGEST):
        raise error(f"{argument} is a finite number, got {value!r}")


def check_fraction(value: float, argument: str, error: type[Ld3mError] = ConfigError) -> None:
    """Raise unless a number is from 0 to 1."""
    if not 0 <= value <= 1:
        raise error(f"{argument} is a fraction from 0 to 1, got {value!r}")
