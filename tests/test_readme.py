"""What README and the pages of docs/ show: their commands parse, their options, Python names and links exist."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path

import pytest
import tyro

import ld3m
from ld3m import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
# Of ld3m, ruff, pytest, benchmarks
OTHER_OPTIONS = {
    "--help",
    "--version",
    "--check",
    "--no-cov",
    "--suite",
    "--json",
    "--state",
}
KINDS = {name: kind for name, (kind, _) in cli.COMMANDS.items()}


def commands() -> list[str]:
    """Every `ld3m …` of a shell block, and of a code span that has options."""
    found = set()
    for text in TEXTS.values():
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            found |= set(re.findall(r"(?:^|&& )ld3m (.+)$", block, re.MULTILINE))
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        found |= set(re.findall(r"`ld3m ((?:prior )?[a-z]+ [^`\[]*--[^`]*)`", prose))
    return sorted(command.partition(" #")[0] for command in found)


def kind_of(command: str) -> tuple[type, list[str]]:
    """The dataclass of a command line, and the words after the command's name."""
    name = next(name for name in KINDS if re.match(rf"{name}( |$)", command))
    return KINDS[name], shlex.split(command.removeprefix(name))


def fields_of(kind: type) -> set[str]:
    """Names of a dataclass's fields, with those of its dataclasses."""
    names = set()
    for field in dataclasses.fields(kind):
        inner = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        names |= fields_of(type(inner)) if dataclasses.is_dataclass(inner) else {field.name}
    return names


def test_there_are_commands():
    assert {command.split()[0] for command in commands()} == {
        "distill", "doctor", "evaluate", "experts", "export", "info", "merge", "prior", "refine", "sample", "select",
        "teacher",
    }  # fmt: skip


@pytest.mark.parametrize("command", commands())
def test_commands_are_read_as_they_look(command):
    kind, words = kind_of(command)
    parsed = vars(tyro.cli(kind, args=words))
    for part in filter(dataclasses.is_dataclass, tuple(parsed.values())):
        parsed |= vars(part)
    places = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    assert [str(parsed[key]) for key in ("run", "set", "data") if key in parsed][: len(places)] == places
    for position, word in enumerate(words):
        if word.startswith("--"):
            value = parsed[word.removeprefix("--").replace("-", "_")]
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            assert list(map(str, values)) == words[position + 1 : position + 1 + len(values)], word


@pytest.mark.parametrize("page", TEXTS)
def test_options_that_are_named_exist(page):
    known = {f"--{name.replace('_', '-')}" for kind in KINDS.values() for name in fields_of(kind)}
    spans = re.findall(r"`[^`\n]*`", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL))
    named = {option for span in spans if "pip " not in span for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert named <= known | OTHER_OPTIONS


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if "```python" in text])
def test_python_blocks_name_what_there_is(page):
    for block in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
        compile(block, page, "exec")
        for name in re.findall(r"\bld3m\.(\w+)\(", block):
            assert callable(getattr(ld3m, name)), name


def slug(heading: str) -> str:
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in TEXTS:
        if page.startswith("docs/"):
            assert f": {page.removeprefix('docs/')}\n" in navigation, page


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 160
