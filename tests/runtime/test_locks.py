"""One owner for each place that is written, among threads and processes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ld3m.errors import ConfigError, Ld3mError
from ld3m.runtime import locks
from ld3m.runtime.locks import LOCK, acquire, release, require_free

HOLD = """
import pathlib, sys, time
from ld3m.runtime import locks
locks.acquire(pathlib.Path(sys.argv[1]), pathlib.Path("subject"))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    return tmp_path / LOCK


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).exception()


def test_the_thread_that_holds_a_lock_may_take_it_again_and_another_may_not(path):
    outer, inner = acquire(path, "x"), acquire(path, "x")
    release(inner)
    require_free(path, "x")
    assert isinstance(in_thread(lambda: acquire(path, "x")), ConfigError)
    assert isinstance(in_thread(lambda: require_free(path, "x")), ConfigError)
    release(outer)
    assert not path.exists()
    assert in_thread(lambda: release(acquire(path, "x"))) is None
    assert in_thread(lambda: require_free(path, "x")) is None
    assert not path.exists()


def test_the_message_names_the_process_that_holds_it(path, holder):
    line = rf"subject is being written by process {holder.pid} on \S+ \(.*-c .+{LOCK}\); let that end, or choose .+"
    with pytest.raises(ConfigError) as caught:
        acquire(path, "subject")
    assert re.fullmatch(line, str(caught.value))
    assert json.loads(path.read_text())["parent"] == os.getpid()


def test_a_killed_process_holds_nothing(path, holder, monkeypatch):
    """Nor does it while it is on its way out: it is waited for."""
    monkeypatch.setattr(locks, "_PATIENCE", 20.0)
    sleep = time.sleep

    def kill_then_sleep(seconds):
        holder.send_signal(signal.SIGKILL)
        sleep(seconds)

    monkeypatch.setattr(locks.time, "sleep", kill_then_sleep)
    require_free(path, "x")
    assert path.is_file()
    held = acquire(path, "x")
    assert json.loads(path.read_text())["pid"] == os.getpid()
    release(held)
    assert not path.exists()


def test_a_process_whose_parent_was_killed_is_waited_for_longer(path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_PATIENCE_WITH_ORPHANS", 0.5)
    caplog.set_level("INFO")
    start = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(child.pid, flush=True); child.wait()"
    words = [sys.executable, "-c", start, sys.executable, "-c", HOLD, str(path)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    child, _ = int(parent.stdout.readline()), parent.stdout.readline()
    try:
        assert not locks._is_orphan(locks._holder(path))
        parent.kill()
        parent.wait()
        began = time.monotonic()
        with pytest.raises(ConfigError, match=f"written by process {child} on"):
            acquire(path, "x")
        assert time.monotonic() - began > 0.5
        assert caplog.text.count(f"waiting for process {child}, which still writes x") == 1
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_forked_child_does_not_keep_its_parents_lock(path):
    held = acquire(path, "x")
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    release(held)
    try:
        assert in_thread(lambda: release(acquire(path, "x"))) is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_whose_file_was_removed_is_none(path):
    """The folder of it was removed, and perhaps made anew."""
    held = acquire(path, "x")
    path.unlink()
    with pytest.raises(Ld3mError, match="x was removed while it was written"):
        locks.require_there(held)
    again = acquire(path, "x")
    release(held)
    assert path.is_file()
    release(again)
    assert not path.exists()


def test_without_locks_of_the_file_system_a_warning_is_given(path, monkeypatch, caplog):
    def refuse(*_args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    release(acquire(path, "x"))
    assert f"{path.parent}: no locks on this file system; two commands there would not notice each other" in caplog.text
    monkeypatch.setattr(locks, "fcntl", None)
    release(acquire(path, "x"))
    assert caplog.text.count("no locks on this file system") == 2


@pytest.mark.parametrize("content", ["", "[", "[1]", '{"pid": "x", "host": 3}'])
def test_what_is_said_of_the_holder_may_be_anything(content, path, holder):
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"x is being written by process .+ on .+; let that end"):
        acquire(path, "x")


def test_many_processes_come_one_after_the_other(tmp_path):
    """Each appends a line at the start and at the end of its turn."""
    code = textwrap.dedent("""
        import pathlib, sys, time
        from ld3m.runtime import locks
        locks._PATIENCE = 30
        folder = pathlib.Path(sys.argv[1])
        for _ in range(10):
            held = locks.acquire(folder / locks.LOCK, folder)
            for word in ("begin", "end"):
                with open(folder / "log", "a") as file:
                    file.write(f"{word}\\n")
                time.sleep(0.001)
            locks.release(held)
    """)
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "begin\nend\n" * 30
    assert not (tmp_path / LOCK).exists()
