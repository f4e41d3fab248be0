"""The mutants that the score is taken on: each a small change that still parses, none of words."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = '''"""Text."""
def f(x, seed, low=1):
    """More text."""
    if x > 2 and not low:
        raise ValueError("no more than 2")
    self.count = max(x, low) + 3
    draw = seeds.generator(seed, "noise", x)
    return network.eval().requires_grad_(False), g(x, low, scale=-1)
'''


def load():
    spec = importlib.util.spec_from_file_location("mutants", Path(__file__).with_name("mutants.py"))
    module = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutants_of_every_kind():
    found = load().mutants_of("ld3m/room/f.py", SOURCE.encode())
    changed = {(mutant.old, mutant.new) for mutant in found}
    assert {
        ("x > 2", "(x >= 2)"), ("x > 2 and not low", "(x > 2 or not low)"), ("not low", "low"), ("2", "3"), ("1", "2"),
        ("x > 2 and not low", "(not (x > 2 and (not low)))"), ("max", "min"), ("max(x, low) + 3", "(max(x, low) - 3)"),
        ("self.count = max(x, low) + 3", "pass"), ('raise ValueError("no more than 2")', "pass"), ("-1", "0"),
        ('seeds.generator(seed, "noise", x)', "seeds.generator(seed, x)"), ("network.eval()", "network"),
        ("network.eval().requires_grad_(False)", "network.eval()"), ("g(x, low, scale=-1)", "g(low, x, scale=-1)"),
        ("g(x, low, scale=-1)", "g(x, low)"), ("False", "True"),
    } <= changed  # fmt: skip
    assert not any("text" in old.lower() for old, _ in changed)
    assert {(mutant.room, mutant.function) for mutant in found} == {("room", "f")}
    for mutant in found:
        text = mutant.apply(SOURCE.encode()).decode()
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(SOURCE)), mutant


@pytest.mark.parametrize("order", [1, -1])
def test_the_score_is_that_of_all_rooms(order, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    from tests.mutate import report

    weak = [{"room": "weak", "fate": "survived"}] * 20
    assert report([*weak, {"room": "strong", "fate": "killed"}][::order]) == 1
    assert "all                 1 of   21 killed" in capsys.readouterr().out
    assert report([{"room": "strong", "fate": "killed"}] * 99 + weak[:1]) == 0
