"""Mutation score: how many small faults in the source the tests notice.

    python -m tests.mutate --modules evaluation/comparison memory --sample 20 --seed 0 --json score.json

One mutant at a time is written into a private copy of the tree; the tests that call its function run until one fails.
Every mutant has a process of its own, forked from one that has imported torch already. Which test calls which function
is found once, by running the rooms' tests under a tracer; `--work FOLDER` keeps that, and the copy, for another call.
"""

import argparse
import ast
import contextlib
import copy
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
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

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
_NEGATED = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
_COMPARED = _NEGATED | {other: one for one, other in _NEGATED.items()}
_COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_COMPUTED |= {ast.Mod: ast.Mult, ast.Pow: ast.Mult}
_RENAMED = {"max": "min", "any": "all", "amax": "amin", "argmax": "argmin", "ceil": "floor"}
_RENAMED |= {other: one for one, other in _RENAMED.items()}
_DROPPED = {"eval", "train", "requires_grad_", "detach", "clone", "double", "abs", "square", "sqrt", "clamp", "copy"}
_DROPPED |= {"clamp_min", "clamp_max", "strip", "lower", "round", "resolve"}
_SEEDED = {"generator", "derive", "scoped_global_rng", "_generator"}


@dataclass(frozen=True)
class Mutant:
    """A fault: `old`, which stands at these bytes of the file, becomes `new`."""

    path: str
    function: str
    line: int
    start: int
    end: int
    old: str
    new: str

    @property
    def room(self) -> str:
        return Path(self.path).parts[1].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.path}::{self.function}: {' '.join(self.old.split())} → {self.new}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


class _Mutator(ast.NodeVisitor):
    """Collects the mutants of a module; docstrings, annotations, messages and decorators are left alone."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source, self.found, self.scope = path, source, [], []
        lengths = [len(line) for line in source.splitlines(keepends=True)]
        self.starts = [sum(lengths[:k]) for k in range(len(lengths) + 1)]
        self.visit(ast.parse(source))

    def add(self, node: ast.AST, new: ast.AST | str) -> None:
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        is_plain = isinstance(new, str | ast.Constant | ast.Call | ast.Name | ast.Attribute | ast.keyword)
        text = new if isinstance(new, str) else ast.unparse(new) if is_plain else f"({ast.unparse(new)})"
        name = ".".join(self.scope[: 1 + (bool(self.scope) and self.scope[0][0].lstrip("_").isupper())]) or "module"
        old = self.source[start:end].decode()
        self.found.append(Mutant(self.path, name, node.lineno, start, end, old, text))

    def changed(self, node: ast.AST, **fields: object) -> ast.AST:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    def _scoped(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self.scope.append(node.name)
        if isinstance(node, ast.FunctionDef):
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                self.visit(default)
        for child in node.body:
            self.visit(child)
        self.scope.pop()

    visit_FunctionDef = visit_ClassDef = _scoped

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(node, "pass")

    def visit_Assert(self, node: ast.Assert) -> None: ...

    visit_Import = visit_ImportFrom = visit_JoinedStr = visit_Assert

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self.add(node, "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(node, "pass")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            if "logger." not in ast.unparse(node.value.func):
                self.add(node, "pass")
                self.visit(node.value)
        elif not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_If(self, node: ast.If | ast.IfExp | ast.While) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.add(node.test, ast.UnaryOp(ast.Not(), node.test))
            self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if item.optional_vars is None and isinstance(item.context_expr, ast.Call):
                self.add(item.context_expr, "__import__('contextlib').nullcontext()")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        other = _COMPARED.get(type(node.ops[0]))
        if len(node.ops) == 1 and other:
            self.add(node, self.changed(node, ops=[other()]))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right))
        if (other := _COMPUTED.get(type(node.op))) and not texts:
            self.add(node, self.changed(node, op=other()))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.add(node, self.changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And()))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            self.add(node, ast.Constant(1 - node.operand.value))
            return
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(node, node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, ast.Constant(not node.value))
        elif isinstance(node.value, int | float):
            self.add(node, ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _RENAMED:
            slot = {"attr": _RENAMED[name]} if isinstance(node.func, ast.Attribute) else {"id": _RENAMED[name]}
            self.add(node.func, self.changed(node.func, **slot))
        if name in _DROPPED and isinstance(node.func, ast.Attribute):
            self.add(node, node.func.value)
        if name == "sorted" and not node.keywords:
            self.add(node.func, "list")
        plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
        if plain and len(node.args) > 1 and name not in ("isinstance", "getattr", "hasattr", "zip", "max", "min"):
            self.add(node, self.changed(node, args=[node.args[1], node.args[0], *node.args[2:]]))
        if name in _SEEDED:
            for k in range(1, len(node.args)):
                self.add(node, self.changed(node, args=node.args[:k] + node.args[k + 1 :]))
        for k, keyword in enumerate(node.keywords):
            if keyword.arg and keyword.arg != "strict":
                self.add(node, self.changed(node, keywords=node.keywords[:k] + node.keywords[k + 1 :]))
        self.generic_visit(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Return the mutants of a module of this path (`ld3m/…`), in the order of its lines."""
    return sorted(_Mutator(path, source).found, key=lambda mutant: (mutant.start, mutant.end, mutant.new))


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
    share = 1.0
    for room, counts in rooms.items():
        missed, total = sum(counts[fate] for fate in MISSED), sum(counts.values()) - counts["equivalent"]
        share = 1 - missed / total if total else 1.0
        print(f"{room:16} {total - missed:4} of {total:4} killed, {100 * share:5.1f} %  {dict(counts)}")
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main())
