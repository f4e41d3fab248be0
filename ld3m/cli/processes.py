"""A command in several processes, as torchrun starts them: a group for all, and one voice."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Generator

TIMEOUT = 30.0  # minutes that one process waits for the others


def is_one_of_several() -> bool:
    """Whether this process was started together with others."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1") and "RANK" in os.environ


@contextlib.contextmanager
def joined(argv: list[str]) -> Generator[None]:
    """Be one of the processes of a group in the block, where there are several; the main one alone speaks."""
    if not is_one_of_several():
        yield
        return
    from ld3m.runtime import processes

    processes.start(_timeout(argv))
    if not processes.is_main():
        logging.getLogger("ld3m").setLevel(logging.ERROR)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    yield
    processes.stop()  # where all went well: a group that lost a process is not left in order


def complain(text: str) -> None:
    """Say what is wrong, once: the other processes fail of the same, or because of it."""
    if is_one_of_several():
        from ld3m.runtime import processes

        if not processes.is_first_to_fail():
            return
    print(text, file=sys.stderr)


def speaks() -> bool:
    """Whether this process says what all of them do."""
    return not is_one_of_several() or os.environ["RANK"] == "0"


def launcher(prog: str) -> str:
    """Return what a command line begins with that does this again."""
    if not is_one_of_several():
        return prog
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 1)} -m {prog}"


def _timeout(argv: list[str]) -> float:
    """Return --timeout of a command line: needed before the line is read, whose faults all processes are to know."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    with contextlib.suppress(argparse.ArgumentError):
        given = parser.parse_known_args(argv)[0].timeout
        return given if given > 0 else TIMEOUT
    return TIMEOUT
