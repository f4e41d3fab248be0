"""docs/architecture.md names the rooms that there are, each on one floor."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def floors() -> list[list[str]]:
    """The rooms of each floor as the page has them, from the top."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(rows)))[::-1]
    return [re.findall(r"`(\w+)`", rooms) for _, rooms in rows]


def test_every_room_has_its_floor():
    named = [room for floor in floors() for room in floor]
    rooms = [path.parent.name for path in (ROOT / "ld3m").glob("*/__init__.py") if path.parent.name != "kernels"]
    assert sorted(named) == sorted([*rooms, "errors"])


def test_every_room_has_its_page_of_the_reference():
    rooms = {path.parent.name for path in (ROOT / "ld3m").glob("*/__init__.py")} - {"kernels", "cli"}
    assert {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} == rooms | {"index", "errors"}


def test_floors_are_those_that_are_checked():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [re.findall(r"\w+", layer) for layer in checked["contracts"][0]["layers"]]
    assert list(map(sorted, floors())) == list(map(sorted, layers))
