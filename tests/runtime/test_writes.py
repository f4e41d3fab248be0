"""Nothing but `runtime` writes: what changes files elsewhere does it under its guards, which word what goes wrong."""

import ast
from pathlib import Path

import pytest

import ld3m

ROOT = Path(ld3m.__file__).parent
CHANGES = {
    "write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rmdir", "rename", "replace", "remove", "rmtree",
    "touch", "link", "symlink_to", "hardlink_to", "save_file", "savez", "save_config", "save_pretrained", "dump",
    "copytree", "copyfile", "move", "memmap", "truncate",
}  # fmt: skip
GUARDS = {"clear_write_errors", "replacing", "owning", "suppress", "_keeping"}  # the last is data/cache.py's


def _name(call):
    function = call.func
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        return function.attr, owner
    return (function.id, "") if isinstance(function, ast.Name) else ("", "")


def _is_change(call):
    """Whether a call makes, changes or removes a file."""
    name, owner = _name(call)
    if name == "open" and not (call.args and ast.unparse(call.args[0]) == "os.devnull"):
        modes = [
            a for a in (*call.args, *(k.value for k in call.keywords if k.arg == "mode")) if isinstance(a, ast.Constant)
        ]
        return any(
            isinstance(m.value, str) and set(m.value) <= set("rwaxbt+") and set(m.value) & set("wax+") for m in modes
        )
    if name == "replace":
        return owner == "os"
    if name == "remove":
        return owner == "os"
    if name == "memmap":
        return not any(isinstance(a, ast.Constant) and a.value == "r" for a in call.args)
    if name == "save":
        return owner in ("torch", "np", "numpy")
    is_runtimes_own = isinstance(call.func, ast.Name) and name != "save_file"
    return name in CHANGES and not is_runtimes_own


def _guards(node):
    return {_name(item.context_expr)[0] for item in node.items if isinstance(item.context_expr, ast.Call)}


def unguarded(source):
    """Return (line, call) of what changes files without a guard around it in its function."""
    found = []

    def visit(node, is_guarded):
        if isinstance(node, ast.FunctionDef):
            is_guarded = False
        if isinstance(node, ast.With):
            is_guarded |= bool(_guards(node) & GUARDS)
        if isinstance(node, ast.Try):  # worded by the function itself
            caught = {
                name.id for h in node.handlers if h.type for name in ast.walk(h.type) if isinstance(name, ast.Name)
            }
            for part in node.body:
                visit(part, is_guarded or "OSError" in caught)
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                visit(part, is_guarded)
            return
        if isinstance(node, ast.Call) and not is_guarded and _is_change(node):
            found.append((node.lineno, ast.unparse(node)[:80]))
        for child in ast.iter_child_nodes(node):
            visit(child, is_guarded)

    visit(ast.parse(source), False)
    return found


FILES = [path for path in sorted(ROOT.rglob("*.py")) if "kernels" not in path.parts and path.parent.name != "runtime"]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_what_changes_files_stands_under_a_guard(path):
    assert unguarded(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')", "open(path, mode='ab')", "path.open('rb+')", "path.write_text('x')", "os.replace(a, b)",
        "torch.save(x, path)", "module.save_config(path)", "path.unlink(missing_ok=True)", "np.savez(path, x)",
        "np.memmap(path, np.uint8, 'r+')",
    ],
)  # fmt: skip
def test_it_is_noticed(line):
    assert unguarded(f"def f():\n    {line}") == [(2, ast.unparse(ast.parse(line)))]
    assert unguarded(f"def f():\n    with clear_write_errors(path):\n        {line}") == []
    assert unguarded(f"with clear_write_errors(path):\n    def f():\n        {line}") != []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "open(path, 'rb')",
        "np.memmap(path, np.uint8, 'r')",
        "replace(config, lr=1)",
        "'a'.replace('a', 'b')",
    ],
)
def test_what_reads_is_not(line):
    assert unguarded(line) == []
