"""Mutants of a module: operators, comparisons, constants, conditions, arguments, statements and purposes of seeds."""

import ast
import copy
from dataclasses import dataclass
from pathlib import Path

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
