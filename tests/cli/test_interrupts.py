"""Signals, sent to processes."""

import signal
import subprocess
import sys
import time

import pytest

from ld3m import cli
from ld3m.cli.interrupts import Interrupts

# A command that waits, and then keeps its state for a moment; what it raises is an argument. It is given all the
# time it needs, since under load a process may stand still for seconds.
HOLD = """
import sys, time
from ld3m import cli
from ld3m.cli import interrupts

interrupts._PATIENCE = 600

class Hold:
    @staticmethod
    def call(argv, prog):
        try:
            print("ready", flush=True)
            try:
                time.sleep(600)
            except KeyboardInterrupt:
                if argv != ["KeyboardInterrupt"]:
                    raise getattr(cli, argv[0], None) or getattr(__builtins__, argv[0])("of a library")
                raise
        finally:
            print("came", flush=True)
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
    process.send_signal(signals[0])
    if len(set(signals)) > 1:  # of several that wait, the lowest number would be the first
        assert process.stdout.readline() == "came\n"
    for number in signals[1:]:
        process.send_signal(number)
        time.sleep(0.01)
    while process.poll() is None:  # until the process has ended, long after the command
        process.send_signal(signals[-1])
        time.sleep(0.02)
    out, err = process.communicate()
    out = out.removeprefix("came\n")
    assert (process.returncode, out, err) == (status, "kept\n", "\ninterrupted\n")


@pytest.mark.parametrize("raised", ["ValueError", "OSError", "Ld3mError"])
def test_what_a_library_makes_of_an_interrupt_is_one(raised):
    process = start(raised=raised)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "came\nkept\n")
    assert err.endswith("\ninterrupted\n") and "Traceback" not in err


def test_a_command_that_does_not_end_is_ended_by_another_signal():
    process = start(HOLD.replace("_PATIENCE = 600", "_PATIENCE = 0.1").replace("time.sleep(0.3)", "time.sleep(600)"))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "came\n"
    while process.poll() is None:
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")


def test_what_was_ignored_stays_so():
    """As under nohup."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + HOLD.replace("sleep(600)", "sleep(0.5)")
    process = start(code)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "came\nkept\n", "")


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
