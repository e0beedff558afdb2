"""What the tests of suites share: modules with a mistake, red lines, and solutions."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

from folovllm_lite import checks
from folovllm_lite.checks.harness import Suite
from tests.notebooks.course import NOTEBOOKS, read


def mutant(module: ModuleType, *edits: tuple[str, str]) -> dict:
    """The module's own names after edits of its source, each in one place."""
    source = inspect.getsource(module)
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times"
        source = source.replace(old, new)
    names = {"__name__": module.__name__}  # a dataclass looks for its module
    exec(compile(source, "mutant.py", "exec"), names)
    own = {
        name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for name in (node.name,)
    }
    return {name: names[name] for name in own}


def names_of(suite: Suite) -> set[str]:
    """The names of all properties."""
    return {each.holds.__name__ for each in suite.properties}


def red(suite: Suite, out: str) -> list[str]:
    """The names of the properties whose lines are red."""
    names = {each.sentence: each.holds.__name__ for each in suite.properties}
    lines = [x[2:] for x in out.splitlines() if x.startswith("✗ ")]
    return [names[line.removesuffix(" (not written yet)")] for line in lines]


def refuse(suite: Suite, pieces: dict, wanted: str, capsys) -> str:
    """See that a suite rejects pieces, the line `wanted` among the red ones."""
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        suite(pieces)
    out = capsys.readouterr().out
    assert wanted in red(suite, out), out
    assert "hint:" in out and "Traceback" not in out
    assert "AttributeError" not in out, "rejected by accident, not for its mistake"
    return out


def solutions(notebook: str, *edits: tuple[str, str]) -> dict:
    """What the solutions of a notebook define, without running their calls; after
    edits of their source, each in one place.
    """
    left = list(edits)
    names: dict = {}
    for cell in read(NOTEBOOKS / "solutions" / notebook)["cells"]:
        if cell["cell_type"] == "code":
            source = cell["source"]
            for edit in [edit for edit in left if source.count(edit[0]) == 1]:
                source = source.replace(*edit)
                left.remove(edit)
            tree = ast.parse(source)
            tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]
            exec(compile(tree, cell["id"], "exec"), names)
    assert not left, f"no solution has {left}"
    return names
