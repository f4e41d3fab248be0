"""YAML of people and of other programs, read in bounded time and memory; nothing in it is executed."""

from typing import Any, cast

import yaml

from ld3m.errors import ConfigError

_MAX_CHARACTERS = 2**20
_MAX_DEPTH = 50
_MAX_VALUES = 20_000  # with every alias counted as what it stands for
_MAX_NUMBER, _MAX_DIGITS = 2**63, 1000
_TEXT = "tag:yaml.org,2002:str"


def parse(text: str, source: str) -> object:
    """Return the plain values of a YAML text.

    Args:
        source: what the text is called in an error.

    Raises:
        ConfigError: it is no YAML, or it is deeper, longer or larger than any file of settings.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{source} is no file of settings: it has {len(text):,} characters; check the path")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, source)
            content: object = loader.construct_document(node)  # pyright: ignore[reportUnknownMemberType]
        finally:
            loader.dispose()
    except _TooDeep as error:
        raise ConfigError(f"{source} is nested deeper than {_MAX_DEPTH} levels; write it flat") from error
    # Beside YAML's own errors: dates and numbers that are none, keys that are lists.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source} is not plain YAML: {' '.join(str(error).split())[:200]}") from error
    _check_numbers(content, source)
    return content


class _TooDeep(Exception):
    """Stops the composition, which calls itself for every level."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, that stops at a depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _TooDeep
        node: Any = super().compose_node(parent, index)  # pyright: ignore[reportUnknownMemberType]
        self.depth -= 1
        return node


def _count(node: Any, known: dict[int, int], source: str) -> int:
    """Return how many values a node stands for; raise where they are too many, or it holds itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise ConfigError(f"{source} has a value that holds itself by an alias; write it out")
        return known[id(node)]
    known[id(node)] = 0  # until it has been counted
    if node.tag != _TEXT and isinstance(node, yaml.ScalarNode) and len(node.value) > _MAX_DIGITS:
        raise ConfigError(f"{source} has a number of {len(node.value):,} characters; write one that fits")
    children: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        children = cast("list[Any]", node.value)
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in cast("list[tuple[Any, Any]]", node.value) for part in pair]
    total = 1
    for child in children:
        total += _count(child, known, source)
        if total > _MAX_VALUES:
            raise ConfigError(f"{source} stands for more than {_MAX_VALUES:,} values; it is no file of settings")
    known[id(node)] = total
    return total


def _check_numbers(value: object, source: str) -> None:
    if isinstance(value, dict):
        for pair in cast("dict[object, object]", value).items():
            _check_numbers(list(pair), source)
    elif isinstance(value, list | tuple | set):
        for item in cast("list[object]", value):
            _check_numbers(item, source)
    elif isinstance(value, int) and abs(value) >= _MAX_NUMBER:
        raise ConfigError(f"{source} has a whole number of more than 64 bits; write one that fits")
