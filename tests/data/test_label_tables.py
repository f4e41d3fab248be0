"""Labels from tables beside the pictures."""

import pytest

from ld3m.data import load
from ld3m.errors import DataError
from tests.data.pictures import put

PETS = ("cat", "dog", "fox")
ROWS = [(f"{k}.png", PETS[k % 3]) for k in range(9)]


def _lines(rows, delimiter=",", header=None):
    return "\n".join(delimiter.join(row) for row in ([header] if header else []) + rows) + "\n"


TABLES = {
    "csv": ("labels.csv", _lines(ROWS, header=("file", "label"))),
    "no header": ("labels.csv", _lines(ROWS)),
    "byte order mark": ("labels.csv", "\ufeff" + _lines(ROWS, header=("file", "label"))),
    "tsv": ("x.tsv", _lines(ROWS, "\t", header=("image", "species"))),
    "semicolons": ("x.csv", _lines(ROWS, ";", header=("name", "what"))),
    "spaces": ("list.txt", _lines(ROWS, " ")),
    "without ending": ("train.csv", _lines([(f[:-4], c) for f, c in ROWS], header=("id", "breed"))),
    "with a folder": ("x.csv", _lines([(f"images/{f}", c) for f, c in ROWS], header=("path", "class"))),
    "backslash": ("x.csv", _lines([(f"images\\{f}", c) for f, c in ROWS], header=("path", "class"))),
    "more columns": ("x.csv", _lines([("7", f, c, "x") for f, c in ROWS], header=("id", "file_name", "label", "by"))),
    "label first": ("x.csv", _lines([(c, f) for f, c in ROWS], header=("label", "file"))),
    "one-hot": (
        "x.csv",
        _lines([(f, *("1.0" if c == name else "0.0" for name in PETS)) for f, c in ROWS], header=("image", *PETS)),
    ),
    "json lines": ("metadata.jsonl", "".join(f'{{"file_name": "{f}", "label": "{c}"}}\n' for f, c in ROWS)),
}


@pytest.mark.parametrize(("name", "text"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("folder", ["images/", ""])
def test_tables_of_many_kinds(tmp_path, name, text, folder):
    if not folder:
        text = text.replace("images/", "").replace("images\\", "")
    put(tmp_path / "set", [f"{folder}{k}.png" for k in range(9)])
    (tmp_path / "set" / name).write_text(text)
    data = load(tmp_path / "set", resolution=16, holdout=0)
    assert data.class_names == PETS
    put(tmp_path / "other", [f"{c}/{f}" for f, c in ROWS])
    for f, c in ROWS:
        (tmp_path / "other" / c / f).write_bytes((tmp_path / "set" / f"{folder}{f}").read_bytes())
    other = load(tmp_path / "other", resolution=16, holdout=0)
    assert (data.train.images == other.train.images).all()
    assert data.train.labels.tolist() == other.train.labels.tolist()


def test_a_table_for_each_split(tmp_path):
    for split in ("train", "test"):
        put(tmp_path, [f"{split}/{split}{k}.png" for k in range(9)])
        rows = [(f"{split}{k}.png", PETS[k % 3]) for k in range(9)]
        (tmp_path / f"{split}.csv").write_text(_lines(rows, header=("file", "label")))
    data = load(tmp_path, resolution=16)
    assert (data.class_names, len(data.train), len(data.test)) == (PETS, 9, 9)


def test_numbers_are_in_their_order(tmp_path):
    put(tmp_path, [f"{k}.png" for k in range(12)])
    (tmp_path / "x.csv").write_text(_lines([(f"{k}.png", str(k)) for k in range(12)], header=("file", "label")))
    assert load(tmp_path, resolution=8, holdout=0).class_names == tuple(map(str, range(12)))


def test_pictures_without_a_row_are_counted(tmp_path, caplog):
    put(tmp_path, [f"{k}.png" for k in range(12)])
    (tmp_path / "x.csv").write_text(_lines(ROWS, header=("file", "label")))
    assert len(load(tmp_path, resolution=8, holdout=0).train) == 9
    assert "labels of 9 pictures in it are read from x.csv; 3 that it does not name are left out" in caplog.text


def test_tables_that_are_not_clear_are_refused(tmp_path):
    put(tmp_path, [f"{k}.png" for k in range(9)])
    (tmp_path / "x.csv").write_text(_lines([(f, c, "p", "q") for f, c in ROWS], header=("file", "a", "b", "c")))
    with pytest.raises(DataError, match=r"which of its columns \['file', 'a', 'b', 'c'\] holds the labels"):
        load(tmp_path, resolution=8)
    (tmp_path / "x.csv").write_text(_lines([*ROWS, ("0.png", "fox")], header=("file", "label")))
    with pytest.raises(DataError, match=r"x.csv gives '0.png' two labels, 'cat' and 'fox'"):
        load(tmp_path, resolution=8)
