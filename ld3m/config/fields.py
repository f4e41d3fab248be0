"""Configs from named settings and from YAML, and back; a config is a frozen dataclass of plain values."""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast

import yaml

from ld3m.config import bounded_yaml
from ld3m.config.checks import one_of
from ld3m.errors import ConfigError

_MAX_BYTES = 2**20
_SHOWN, _MAX_TEXT = 100, 4096


@dataclass(frozen=True)
class Settings:
    """Base of every config: lists, as a file has them, become tuples, and choices are checked by their `Literal`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            if issubclass(type(value), list):
                object.__setattr__(self, field.name, tuple(value))
            if isinstance(value, str) and ("\0" in value or len(value) > _MAX_TEXT):
                raise ConfigError(f"{field.name} is a text of at most {_MAX_TEXT:,} characters, none of them a NUL")
            if value is not None and (choices := choices_of(field.type)):
                one_of(value, field.name, choices)


Config = TypeVar("Config", bound=Settings)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the words of a `Literal`, which None may stand beside; nothing for other types."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    for kind in typing.get_args(annotation) if _is_union(annotation) else ():
        if choices := choices_of(kind):
            return choices
    return ()


def unset() -> Any:
    """Stand as default of a field that a resolved config must be given: its base has a default."""
    raise TypeError("a setting is missing; resolve makes such a config")


def build(settings: Mapping[str, object], base: Config) -> Config:
    """Make a config from named settings on top of `base`; unknown names and wrong types are refused."""
    known = {field.name: field.type for field in fields(base)}
    checked: dict[str, Any] = {}
    for name, given in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            kind = type(base).__name__.removeprefix("Resolved").removesuffix("Config").lower()
            raise ConfigError(f"{name[:_SHOWN]!r} is not a setting of {kind}{hint}")
        value = checked[name] = _number(_plain(given), known[name])
        if not fits(value, known[name]):
            raise ConfigError(f"{name} is {_spelled(known[name])}, got {_shortened(value)}")
    return replace(base, **checked)


def differences(stored: Config, given: Config) -> list[str]:
    """List "name stored → given" for every setting in which two configs differ."""
    pairs = [(field.name, getattr(stored, field.name), getattr(given, field.name)) for field in fields(stored)]
    return [f"{name} {old!r} → {new!r}" for name, old, new in pairs if old != new]


def read_yaml(path: Path) -> dict[str, object]:
    """Read settings from a YAML file of plain values; nothing in it is executed."""
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise ConfigError(f"config {path} is no file but a device or a pipe; check the path")
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"config {path} is no file of settings: it has more than {_MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:  # not UTF-8, or a NUL in the path
        if isinstance(error, ConfigError):
            raise
        shown = str(path).replace("\0", "\\0")
        raise ConfigError(f"config {shown} cannot be read ({error}); check the path") from error
    content = bounded_yaml.parse(text, f"config {path}")
    if not isinstance(content, dict):
        raise ConfigError(f"config {path} holds names and values (name: value), got {type(content).__name__}")
    settings = cast("dict[object, object]", content)
    return {str(name).replace("-", "_"): value for name, value in settings.items()}


def to_yaml(config: Settings, **more: object) -> str:
    """Return a config, and what else belongs beside it, as YAML."""
    settings = {**more, **to_plain(config)}
    return yaml.safe_dump(settings, sort_keys=False)  # pyright: ignore[reportUnknownMemberType]


def to_plain(config: Settings) -> dict[str, object]:
    """Return a config's settings by name, as a file of settings has them: lists for tuples."""
    settings: dict[str, Any] = dataclasses.asdict(config)
    return {k: list(cast("tuple[object, ...]", v)) if type(v) is tuple else v for k, v in settings.items()}


def fits(value: object, annotation: Any) -> bool:
    """Whether a value has the type of a field; a YAML file has lists for tuples, and writes 3.0 as 3."""
    if _is_union(annotation):
        return any(fits(value, kind) for kind in typing.get_args(annotation))
    if choices_of(annotation):
        return isinstance(value, str)  # which word it is, the config checks
    if typing.get_origin(annotation) is tuple:
        (kind, _) = typing.get_args(annotation)
        return isinstance(value, tuple | list) and all(fits(item, kind) for item in cast("list[object]", value))
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)


def _plain(value: Any) -> object:
    """Spell a path, a torch device or dtype, or a NumPy number as a file of settings does."""
    if isinstance(value, tuple | list):
        items = cast("list[object]", value)
        return type(items)(map(_plain, items))
    if isinstance(value, Path) or type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 1):
        return value.item()
    return value


def _number(value: object, annotation: object) -> object:
    """Read a text such as 1e-3, which YAML takes for a word, where a number and no text is asked for."""
    if isinstance(value, str) and fits(0.5, annotation) and not fits("", annotation):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, UnionType)


def _spelled(annotation: Any) -> str:
    """Return a type as messages have it: a choice is a str."""
    if _is_union(annotation):
        return " | ".join(map(_spelled, typing.get_args(annotation)))
    if choices_of(annotation):
        return "str"
    return "None" if annotation is NoneType else annotation.__name__ if type(annotation) is type else str(annotation)
