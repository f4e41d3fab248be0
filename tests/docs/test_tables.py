"""The measured tables of README and docs/ are those of benchmarks/results."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def writer():
    spec = importlib.util.spec_from_file_location("benchmarks_readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_show_what_was_measured(writer):
    for page in writer.pages():
        assert writer.filled(page) == page.read_text(encoding="utf-8"), f"{page}: run python benchmarks/readme.py"


def test_every_table_has_its_place(writer):
    text = "".join(page.read_text(encoding="utf-8") for page in writer.pages())
    for name in writer.TABLES:
        assert text.count(writer.BEGIN.format(name)) == text.count(writer.END.format(name)) >= 1, name


def test_tables_are_written_anew(writer, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "methods.md", tmp_path / "docs" / "methods.md")
    (tmp_path / "README.md").write_text("no table\n", encoding="utf-8")
    page = tmp_path / "docs" / "methods.md"
    whole = page.read_text(encoding="utf-8")
    page.write_text(whole.replace("| moments |", "| elsewhere |"), encoding="utf-8")
    monkeypatch.setattr(writer, "ROOT", tmp_path)
    writer.main()
    assert "| moments |" in whole and page.read_text(encoding="utf-8") == whole
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "no table\n"
