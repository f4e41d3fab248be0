"""What README shows: its commands parse, its Python names exist."""

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
def test_commands_parse(command):
    name = next(name for name in cli._PARSED if command.startswith(name))
    parsed = cli._parse(cli._PARSED[name], shlex.split(command.removeprefix(name)))
    for option in re.findall(r"--([a-z-]+)", command):
        given = option.replace("-", "_")
        assert hasattr(parsed, given) or any(hasattr(part, given) for part in vars(parsed).values()), option


def test_python_blocks_name_what_there_is():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "README.md", "exec")
        for name in re.findall(r"\bld3m\.(\w+)\(", block):
            assert callable(getattr(ld3m, name)), name
