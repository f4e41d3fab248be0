"""Signals, sent to processes."""

import signal
import subprocess
import sys
import time

import pytest

from ld3m import cli
from ld3m.cli.interrupts import Interrupts

# A command that waits, and then keeps its state for a moment; what it raises is an argument.
HOLD = """
import sys, time
from ld3m import cli

class Hold:
    @staticmethod
    def call(argv, prog):
        try:
            print("ready", flush=True)
            try:
                time.sleep(20)
            except KeyboardInterrupt:
                if argv != ["KeyboardInterrupt"]:
                    raise getattr(cli, argv[0], None) or getattr(__builtins__, argv[0])("of a library")
                raise
        finally:
            time.sleep(0.3)
            print("kept", flush=True)

cli.COMMANDS["hold"] = Hold, ""
sys.exit(cli.main(["hold", *sys.argv[1:]]))
"""


def heed():
    """Undo what the tests themselves may have been started with: nohup and a shell's `&` ignore signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(code=HOLD, raised="KeyboardInterrupt"):
    words = [sys.executable, "-c", code, raised]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, preexec_fn=heed, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT] * 2, 130),
        ([signal.SIGINT] * 5, 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP] * 2, 129),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], 143),
    ],
    ids=lambda value: "+".join(one.name for one in value) if isinstance(value, list) else None,
)
def test_the_state_is_kept_and_no_traceback_is_shown(signals, status):
    process = start()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.01)
    while process.poll() is None:  # until the process has ended, long after the command
        process.send_signal(signals[-1])
        time.sleep(0.02)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (status, "kept\n", "\ninterrupted\n")


@pytest.mark.parametrize("raised", ["ValueError", "OSError", "Ld3mError"])
def test_what_a_library_makes_of_an_interrupt_is_one(raised):
    process = start(raised=raised)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "kept\n")
    assert err.endswith("\ninterrupted\n") and "Traceback" not in err


def test_a_command_that_does_not_end_is_ended_by_another_signal():
    patience = "from ld3m.cli import interrupts; interrupts._PATIENCE = 0.1\n"
    process = start(patience + HOLD.replace("time.sleep(0.3)", "time.sleep(20)"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")


def test_what_was_ignored_stays_so():
    """As under nohup."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + HOLD.replace("sleep(20)", "sleep(0.5)")
    process = start(code)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "kept\n", "")


def test_handlers_are_those_of_before_afterwards(ld3m_command):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Interrupts() as interrupts:
        assert signal.getsignal(signal.SIGTERM) == interrupts._take
    assert ld3m_command("info --nonsense")[0] == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_fault_without_a_signal_is_shown(monkeypatch):
    def call(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.InfoCommand, "call", call)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])
