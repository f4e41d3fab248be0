"""The help: groups, defaults in words, choices; and what shells complete."""

import dataclasses
import re
import shutil
import subprocess

import pytest

from ld3m import cli, networks
from ld3m.cli import words
from ld3m.cli.form import documentation
from ld3m.config import PRESETS, DistillConfig, SampleConfig
from ld3m.evaluation import PROTOCOLS
from ld3m.matching import LOSSES
from ld3m.sampling import SELECTORS
from ld3m.selection import SELECTIONS
from ld3m.spaces import SPACES

MAIN = {
    "prior", "ipc", "iterations", "resolution", "algorithm", "space", "lr", "preset", "evaluate", "seed",
}  # fmt: skip


@pytest.fixture
def help_of(ld3m_command):
    """The help of a command with its boxes and line breaks taken out."""

    def read(command):
        status, out, _ = ld3m_command(command, "--help")
        assert status == 0
        return " ".join(re.sub(r"[│╭╮╰╯─]|_{9,}", " ", out).split())

    return read


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_default_is_none(command, help_of):
    shown = help_of(command)
    assert "None" not in shown
    assert "(default: )" not in shown


@pytest.mark.parametrize("kind", [DistillConfig, SampleConfig])
def test_every_setting_is_in_one_group(kind):
    names = [name for group in words.GROUPS[kind.__name__].values() for name in group]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(kind))


def test_the_ten_that_matter_come_first(help_of):
    titles = re.split(r" (\w+) options ", help_of("distill"))
    groups = dict(zip(titles[1::2], titles[2::2], strict=True))
    assert list(groups) == ["main", "start", "matching", "chain", "mtt", "glad", "images", "machine"]
    assert {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]*)", groups["main"])} == MAIN
    assert "--unroll" in groups["mtt"] and "--layer" in groups["glad"]


def test_presets_are_said(help_of):
    shown = help_of("distill")
    for name, preset in PRESETS.items():
        assert re.search(rf"Optimiser steps\. \(default: by preset: [^)]*\b{preset['iterations']}\b", shown), name
    assert "Steps T of the reverse chain, 1 to 1000. (default: by preset: 10)" in shown
    assert "(default: by preset: dc 0.3, dm 0.3, mtt 100; paper: dc 0.001, dm 0.01, mtt 10; released:" in shown


def test_choices_are_shown(help_of):
    shown = help_of("distill").replace(", ", ",")
    for table in (SPACES, LOSSES, [*networks.NETWORKS]):
        assert f"{{{','.join(table)}}}" in shown.replace(" ", ""), table
    assert "--evaluate {glad-hard,quick,minimax-hard,dc,dsa,none}" in shown
    assert f"--protocol {{{','.join(PROTOCOLS)}}}" in help_of("evaluate")
    assert f"--selector {{{','.join(SELECTORS)}}}" in help_of("sample")
    assert f"--by {{{','.join(SELECTIONS)}}}" in help_of("select")
    assert "--format {imagefolder,safetensors}" in help_of("export")


def test_what_stands_below_a_field_is_its_help():
    found = documentation(DistillConfig)
    assert found["ipc"] == "Images per class to make."  # of the base
    assert found["space"].endswith('"random:stylegan-32" or a .safetensors file; "pixel"s.')  # on one line
    assert set(found) == {field.name for field in dataclasses.fields(DistillConfig)}


@pytest.mark.parametrize("command", ["", "distill", "prior train", "prior"])
def test_help_is_a_word_as_well(command, ld3m_command):
    assert ld3m_command("help", command) == ld3m_command(command, "--help")


COMPLETED = {
    "": [*dict.fromkeys(name.partition(" ")[0] for name in cli.COMMANDS), "help"],
    "dist": ["distill"],
    "prior ": [name.partition(" ")[2] for name in cli.COMMANDS if name.startswith("prior ")],
    "distill --space ": list(SPACES),
    "distill --inj": ["--injection"],
    "prior train --kl": ["--kl-weight"],
    "export --format s": ["safetensors"],
    "sample --selector ": list(SELECTORS),
    "select --by ": list(SELECTIONS),
}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_a_shell_completes_commands_options_and_choices(ld3m_command):
    status, script, _ = ld3m_command("completion bash")
    assert status == 0
    lines = [script]
    for typed in COMPLETED:
        given = ["ld3m", *typed.split(" ")]
        quoted = " ".join(f"'{word}'" for word in given)
        lines.append(f'COMP_WORDS=({quoted}); COMP_CWORD={len(given) - 1}; _ld3m; echo "${{COMPREPLY[*]}}"')
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == list(COMPLETED.values())
    assert ld3m_command("completion zsh")[1] == "autoload -U +X bashcompinit && bashcompinit\n" + script


@pytest.mark.parametrize("command", ["distill", "sample", "evaluate", "experts", "teacher", "prior train"])
def test_every_command_that_reads_data_narrows_them(command, help_of):
    shown = help_of(command)
    assert "--classes STR" in shown and "--per-class INT" in shown and "--per-class-seed INT" in shown
