"""Mutation score: how many small faults in the source the tests notice.

    python -m tests.mutate --modules evaluation/comparison memory --sample 20 --seed 0 --json score.json

One mutant at a time is written into a private copy of the tree; the tests that call its function run until one fails.
Every mutant has a process of its own, forked from one that has imported torch already. Which test calls which function
is found once, by running the rooms' tests under a tracer; `--work FOLDER` keeps that, and the copy, for another call.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.mutants import Mutant, mutants_of

ROOT, MISSED = Path(__file__).parents[1], ("survived", "untested")
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
_PRELOADED = [
    "torch.func",
    "PIL.Image",
    "safetensors.torch",
    "yaml",
    "tqdm.auto",
    "hypothesis",
    "diffusers",
    "datasets",
]


def modules_of(names: list[str], root: Path = ROOT) -> list[str]:
    """Return the paths of modules and of all modules of rooms; "all" names every one."""
    paths = {path.relative_to(root).as_posix() for path in (root / "ld3m").rglob("*.py")}
    found = {n: [p for p in paths if n == "all" or p == f"ld3m/{n}.py" or p.startswith(f"ld3m/{n}/")] for n in names}
    if unknown := [name for name, own in found.items() if not own]:
        raise SystemExit(f"no module or room of ld3m: {', '.join(unknown)}")
    return sorted({path for own in found.values() for path in own if not path.startswith("ld3m/kernels/")})


class _Tracer:
    """A pytest plugin that notes time and called functions of a test, those of shared fixtures for all their users."""

    def __init__(self) -> None:
        self.called, self.seconds, self.passed = defaultdict(set), Counter(), set()
        self.fixtures, self.users, self.bucket = defaultdict(set), {}, set()

    def trace(self, frame, event: str, argument: object) -> None:
        self.bucket.add(frame.f_code)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.bucket, self.users[item.nodeid], started = self.called[item.nodeid], item.fixturenames, time.process_time()
        sys.settrace(self.trace)
        threading.settrace(self.trace)
        yield
        sys.settrace(None)
        threading.settrace(None)
        self.seconds[item.nodeid] = time.process_time() - started

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        outer = self.bucket
        if fixturedef.scope != "function":
            self.bucket = self.fixtures[fixturedef.argname]
        yield
        self.bucket = outer

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def facts(self, root: Path) -> dict[str, dict[str, object]]:
        def names(codes) -> list[str]:
            own = [c for c in codes if c.co_filename.startswith(f"{root}/ld3m/")]
            return sorted(
                {f"{c.co_filename[len(str(root)) + 1 :]}::{c.co_qualname.split('.<locals>')[0]}" for c in own}
            )

        calls = {n: self.called[n].union(*(self.fixtures[f] for f in self.users[n])) for n in sorted(self.passed)}
        return {n: {"seconds": self.seconds[n], "calls": names(codes)} for n, codes in calls.items()}


class _Judge:
    """A pytest plugin that runs chosen tests in their order, and names the first that fails."""

    def __init__(self, chosen: list[str], seconds: dict[str, float], budget: float) -> None:
        self.order, self.seconds, self.budget = {name: k for k, name in enumerate(chosen)}, seconds, budget
        self.failed = ""

    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        if time.process_time() > self.budget:
            item.session.shouldstop = "enough"
        signal.setitimer(signal.ITIMER_PROF, 10 + 5 * self.seconds.get(item.nodeid, 0.0))
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report) -> None:
        self.pytest_runtest_logreport(report)


def forked(root: Path, call: Callable[[], object], timeout: float) -> object:
    """Return what `call` gives in a process of its own in the folder `root`; None when it dies or takes too long."""
    answer = root / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        with contextlib.suppress(BaseException):
            os.chdir(root)
            sys.path[:] = [str(root), *(place for place in sys.path if place not in ("", str(ROOT)))]
            for name in [name for name in sys.modules if name.split(".")[0] in ("ld3m", "tests")]:
                del sys.modules[name]
            os.environ["PYTHONPATH"] = str(root)
            with (root / "output.txt").open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            answer.write_text(json.dumps(call()))
        os._exit(0)
    deadline = time.monotonic() + timeout
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests started
    return json.loads(answer.read_text()) if answer.exists() else None


def _pytest(root: Path, paths: list[str], plugin: object, *more: str) -> int:
    fixed = ["-q", "-p", "no:cacheprovider", "--rootdir", str(root), "-c", str(root / "pyproject.toml")]
    return int(pytest.main([*fixed, *more, *(str(root / path) for path in paths)], plugins=[plugin]))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _copy_changed(source: str, target: str) -> None:
    if not Path(target).exists() or Path(source).read_bytes() != Path(target).read_bytes():
        shutil.copy2(source, target)


class Score:
    """The private copy of the tree, which test calls what, and the fate of mutants in it."""

    def __init__(self, work: Path, timeout: float, budget: float) -> None:
        self.root, self.timeout, self.budget, self.tests, self.stamp = work / "tree", timeout, budget, {}, time.time()
        left_out = shutil.ignore_patterns(".git", "__pycache__", "reference", "build", "*.egg-info", "runs.*")
        shutil.copytree(ROOT, self.root, ignore=left_out, copy_function=_copy_changed, dirs_exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (self.root / "tests" / "reference").symlink_to(ROOT / "tests" / "reference")

    def trace(self, room: str) -> None:
        """Find out what the tests of a room call, unless that is known of the files as they are."""
        known, folder = self.root.parent / f"{room}.json", self.root / "tests" / room
        found = json.loads(known.read_text()) if known.exists() else {}
        digests = {p.relative_to(self.root).as_posix(): _digest(p) for p in sorted(folder.rglob("test_*.py"))}
        found = {name: facts for name, facts in found.items() if facts["digest"] == digests.get(name)}
        if left := [name for name in digests if name not in found]:
            tracer = _Tracer()
            facts = forked(self.root, lambda: [_pytest(self.root, left, tracer), tracer.facts(self.root)], 3600)
            for name in left if facts else ():
                own = {node: fact for node, fact in facts[1].items() if node.startswith(f"{name}::")}
                found[name] = {"digest": digests[name], "tests": own}
            known.write_text(json.dumps(found))
        for facts in found.values():
            self.tests |= facts["tests"]

    def chosen(self, mutant: Mutant) -> list[str]:
        """Return the tests to run: those that call the function, its own room's first; then the rest of their files."""
        key, own = f"{mutant.path}::{mutant.function}", f"tests/{mutant.room}/"
        direct = [n for n, facts in self.tests.items() if key in facts["calls"]]
        if not direct:  # module level, or run by other means than a call
            part = f"{mutant.path}::"
            direct = [n for n, facts in self.tests.items() if any(c.startswith(part) for c in facts["calls"])]
        files = {n.split("::")[0] for n in direct if n.startswith(own)}
        rest = [n for n in self.tests if n.split("::")[0] in files and n not in set(direct)]

        def by(name: str) -> tuple[bool, float]:
            return not name.startswith(own), self.tests[name]["seconds"]

        return sorted(direct, key=by) + sorted(rest, key=by)

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Return what became of a mutant, and which test noticed."""
        chosen, path = self.chosen(mutant), self.root / mutant.path
        if not chosen:
            return "untested", ""
        seconds = {name: self.tests[name]["seconds"] for name in chosen}
        source = path.read_bytes()

        def run() -> list[object]:
            judge = _Judge(chosen, seconds, time.process_time() + self.budget)
            files = list(dict.fromkeys(name.split("::")[0] for name in chosen))
            return [_pytest(self.root, files, judge, "-x"), judge.failed]

        try:
            self._write(path, mutant.apply(source))
            found = forked(self.root, run, self.timeout)
        finally:
            self._write(path, source)
        if found is None:
            return "timeout", ""
        return ("survived" if found[0] in (0, 2) and not found[1] else "killed"), found[1]

    def _write(self, path: Path, source: bytes) -> None:
        """Write with a time of its own, which bytecode of the same second and size does not have."""
        path.write_bytes(source)
        self.stamp += 1
        os.utime(path, (self.stamp, self.stamp))


def equivalent() -> dict[str, str]:
    """Return the mutants that change nothing that can be seen, with the reason of each."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    pairs = [line.split(" | ", 1) for line in lines if line.strip() and not line.startswith("#")]
    return {mutant: reason for mutant, reason in pairs}


def sampled(mutants: list[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """Return at most so many mutants of each room, or all."""
    rooms = defaultdict(list)
    for mutant in mutants:
        rooms[mutant.room].append(mutant)
    draw = random.Random(seed)
    return [m for own in rooms.values() for m in (own if count is None else draw.sample(own, min(count, len(own))))]


def diff(mutant: Mutant, source: bytes) -> Iterator[str]:
    """Yield the lines that a mutant changes."""
    old, new = (text.decode().splitlines() for text in (source, mutant.apply(source)))
    return (line for line in list(difflib.unified_diff(old, new, n=0, lineterm=""))[3:])


def main(arguments: list[str] | None = None) -> int:
    """Judge mutants, print their fates and the score by room; exit status 1 below 95 %."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="+", default=["all"], help='modules or rooms below ld3m/, or "all"')
    parser.add_argument("--sample", type=int, help="mutants of each room, by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--match", default="", help="only mutants whose line of text contains this")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a mutant may take in all")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of computing after which it has survived")
    parser.add_argument("--json", type=Path, help="file for all that was found")
    parser.add_argument("--work", type=Path, help="folder that keeps copy and traces for another call")
    parser.add_argument("--rooms", nargs="*", default=[], help="rooms whose tests may notice too")
    options = parser.parse_args(arguments)
    modules = modules_of(options.modules)
    known, fates = equivalent(), []
    for name in _PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() if options.work is None else contextlib.nullcontext(options.work) as work:
        score = Score(Path(work).resolve(), options.timeout, options.seconds)
        mutants = [m for path in modules for m in mutants_of(path, (score.root / path).read_bytes())]
        mutants = sampled([m for m in mutants if options.match in str(m)], options.sample, options.seed)
        for room in sorted({mutant.room for mutant in mutants} | set(options.rooms)):
            score.trace(room)
        for mutant in mutants:
            fate, test = ("equivalent", known[str(mutant)]) if str(mutant) in known else score.judge(mutant)
            fates.append(asdict(mutant) | {"room": mutant.room, "fate": fate, "by": test})
            print(f"{fate:10} {mutant.path}:{mutant.line} {mutant}  [{test}]", flush=True)
            if fate in MISSED:
                print(*diff(mutant, (score.root / mutant.path).read_bytes()), sep="\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(fates, indent=1))
    return report(fates)


def report(fates: list[dict[str, object]]) -> int:
    """Print the score by room; return 1 when less than 95 % of the mutants that are not equivalent were killed."""
    rooms = defaultdict(Counter)
    for fate in fates:
        rooms[fate["room"]][fate["fate"]] += 1
        rooms["all"][fate["fate"]] += 1
    share = dict[str, float]()
    for room, counts in rooms.items():
        missed, total = sum(counts[fate] for fate in MISSED), sum(counts.values()) - counts["equivalent"]
        share[room] = 1 - missed / total if total else 1.0
        print(f"{room:16} {total - missed:4} of {total:4} killed, {100 * share[room]:5.1f} %  {dict(counts)}")
    return int(share.get("all", 1.0) < 0.95)


if __name__ == "__main__":
    sys.exit(main())
