"""What README shows: its commands parse, its Python names exist."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path

import pytest

import ld3m
from ld3m import cli

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|`|&& )ld3m ((?:prior )?[a-z]+ [^`\n]*--[^`\n]*)", TEXT, re.MULTILINE)))


def test_there_are_commands():
    assert {command.split()[0] for command in COMMANDS} >= {"distill", "evaluate", "export", "prior", "info"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_read_as_they_look(command):
    name = next(name for name in cli._PARSED if command.startswith(name))
    words = shlex.split(command.removeprefix(name))
    parsed = vars(cli._parse(cli._PARSED[name], words))
    for part in filter(dataclasses.is_dataclass, tuple(parsed.values())):
        parsed |= vars(part)
    places = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    assert [str(parsed[key]) for key in ("run", "data") if key in parsed][: len(places)] == places
    for position, word in enumerate(words):
        if word.startswith("--"):
            value = parsed[word.removeprefix("--").replace("-", "_")]
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            assert list(map(str, values)) == words[position + 1 : position + 1 + len(values)], word


def test_python_blocks_name_what_there_is():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "README.md", "exec")
        for name in re.findall(r"\bld3m\.(\w+)\(", block):
            assert callable(getattr(ld3m, name)), name
