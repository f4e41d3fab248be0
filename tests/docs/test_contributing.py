"""Every Python block of docs/contributing.md runs as it stands: the examples of how to add something."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "contributing.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)[1:]
EXAMPLES = {
    title: block
    for title, text in zip(SECTIONS[::2], SECTIONS[1::2], strict=True)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}


@pytest.fixture
def tables() -> Iterator[None]:
    """Undo what an example adds to the tables of the package."""
    kept = [
        (value, dict(value))
        for name, module in tuple(sys.modules.items())
        if name.partition(".")[0] == "ld3m"
        for attribute, value in tuple(vars(module).items())
        if isinstance(value, dict) and attribute.isupper()
    ]
    yield
    for table, content in kept:
        table.clear()
        table.update(content)


def test_each_thing_that_can_be_added_has_an_example():
    wanted = {"space", "loss", "selector", "protocol", "network", "prior", "op"}
    assert wanted <= {title.split()[-1] for title in EXAMPLES}


@pytest.mark.parametrize("title", EXAMPLES)
def test_examples_run_as_they_stand(title, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[title], f"contributing.md, {title}", "exec"), {"__name__": "example"})
