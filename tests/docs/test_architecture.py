"""docs/architecture.md names the rooms that there are, each on one floor."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_room_has_its_floor():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = re.findall(r"^\| (\d) \| ([^|]+) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in floors] == list(range(len(floors)))[::-1]
    named = [room for _, rooms in floors for room in re.findall(r"`(\w+)`", rooms)]
    rooms = [path.parent.name for path in (ROOT / "ld3m").glob("*/__init__.py") if path.parent.name != "kernels"]
    assert sorted(named) == sorted([*rooms, "errors"])


def test_every_room_has_its_page_of_the_reference():
    rooms = {path.parent.name for path in (ROOT / "ld3m").glob("*/__init__.py")} - {"kernels", "cli"}
    assert {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} == rooms | {"index", "errors"}
