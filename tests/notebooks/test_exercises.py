"""Every exercise is open in its lesson and solved in its solution.

A stub that already passes teaches nothing, and an exercise without a solution leaves a
learner alone. nbval runs both notebooks; here it is compared what they hold.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.notebooks.course import NOTEBOOKS, joined, read

LESSONS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path.name[:2] != "00"]


def exercises(path: Path) -> dict[str, dict]:
    """Heading ("1. Trace: what is left?") -> the cell that calls checks, below it."""
    found: dict[str, dict] = {}
    heading = None
    for cell in read(path)["cells"]:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            for line in source.splitlines():
                if re.match(r"#{1,2} ", line):
                    heading = None
                elif re.match(r"### \d\. ", line):
                    heading = line.removeprefix("### ").strip()
        elif heading and "checks." in source:
            assert heading not in found, f"{path.name}: two judged cells in {heading!r}"
            found[heading] = cell
    return found


def judged(cell: dict) -> set[str]:
    """The names that the cell's checks calls judge: `checks.config(blocks=blocks)`."""
    return {
        keyword.arg
        for node in ast.walk(ast.parse(cell["source"]))
        if isinstance(node, ast.Call) and "checks." in ast.unparse(node.func)
        for keyword in node.keywords
    }


def printed(cell: dict) -> str:
    return "".join(joined(output.get("text", "")) for output in cell["outputs"])


def unsolved(cell: dict) -> bool:
    """Whether what the learner owns still says that it is to be written."""
    return "raise NotImplementedError" in cell["source"]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lessons_exercises_are_open(lesson):
    found = exercises(lesson)
    assert [heading[:2] for heading in found] == ["1.", "2.", "3."]
    for heading, cell in found.items():
        assert unsolved(cell), f"{heading}: the stub raises NotImplementedError"
        assert judged(cell), f"{heading}: checks judges the learner's object by name"
        (error,) = [o for o in cell["outputs"] if o["output_type"] == "error"]
        assert error["ename"] == "CheckFailed", f"{heading}: {error['ename']}"
        out = printed(cell)
        assert "✗" in out and "not written yet" in out, f"{heading}: says what to do"
        assert "properties hold." not in out


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_solution_solves_every_exercise(lesson):
    path = NOTEBOOKS / "solutions" / lesson.name
    assert path.exists(), f"{lesson.name} has exercises and no solution: {path}"
    solved, asked = exercises(path), exercises(lesson)
    assert list(solved) == list(asked), "the headings are those of the lesson"
    for heading, cell in solved.items():
        assert not unsolved(cell) and "NotImplementedError" not in cell["source"]
        assert judged(cell) == judged(asked[heading]), f"{heading}: judges the same"
        out = printed(cell)
        assert "properties hold." in out and "✗" not in out, f"{heading}: is green"
