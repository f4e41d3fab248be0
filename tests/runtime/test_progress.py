"""Progress: lines in a log file, a bar on a terminal."""

import sys

import pytest

from ld3m.runtime import progress
from ld3m.runtime.progress import progress_bar, time_text


def test_a_log_file_gets_a_line_at_the_start_and_the_end(capsys):
    bar = progress_bar(range(500), "work", total=500)
    for k in bar:
        bar.set_postfix(loss=f"{k}")
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert "\r" not in err
    assert [line.partition(",")[0] for line in lines] == ["work: 0 of 500", "work: 500 of 500"]
    assert lines[-1].endswith(", loss=499")


def test_lines_come_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress_bar(name="work", total=3, initial=1) as bar:
        bar.update()
        bar.set_postfix_str("here")
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines][:3] == [f"work: {k} of 3" for k in (1, 2, 3)]


def test_nothing_is_said_where_nobody_asks(capsys):
    assert list(progress_bar(range(3), "work", show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress_bar(range(3), "work"))
    err = capsys.readouterr().err
    assert "\r" in err and "work:   0%" in err


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")])
def test_times_are_said_in_their_unit(seconds, text):
    assert time_text(seconds) == text
