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


# ----- the heart: a stub above its answer, which is folded


def heart(path: Path) -> int | None:
    """The place of the cell with the stub of "Your turn"; None without one."""
    for index, cell in enumerate(read(path)["cells"]):
        tags = cell["metadata"].get("tags", [])
        if "reading" in tags and "checks." in cell["source"]:
            return index
    return None


def run(tree: ast.Module, names: dict) -> None:
    """As a notebook runs it, without this file's `from __future__`."""
    exec(compile(tree, "a cell", "exec", dont_inherit=True), names)


def of_a_learner(cells: list[dict]) -> dict:
    """The names of a notebook in which only imports and final cells were run."""
    names = {"__name__": "a_notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            tree, tags = ast.parse(cell["source"]), cell["metadata"].get("tags", [])
            if not any(tag.startswith("pkg:") for tag in tags):
                kinds = ast.Import | ast.ImportFrom
                tree.body = [node for node in tree.body if isinstance(node, kinds)]
            run(tree, names)
    return names


@pytest.mark.parametrize(
    "lesson", [path for path in LESSONS if heart(path)], ids=lambda path: path.stem
)
def test_the_folded_answer_is_green_where_the_stub_stands(lesson, capsys):
    """Among the notebook's own classes, which are not the package's."""
    cells, index = read(lesson)["cells"], heart(lesson)
    names = of_a_learner(cells[:index])
    stub = ast.parse(cells[index]["source"]).body
    plain = {node.name for node in stub[:-1] if not node.decorator_list}
    written = next(cell for cell in cells[index + 1 :] if cell["cell_type"] == "code")
    answer = ast.parse(written["source"])
    for node in answer.body:
        if isinstance(node, ast.FunctionDef) and node.name.removeprefix("_") in plain:
            node.decorator_list, node.name = [], node.name.removeprefix("_")
    run(answer, names)
    run(ast.Module([node for node in stub if isinstance(node, ast.Expr)], []), names)
    out = capsys.readouterr().out
    assert "properties hold." in out and "✗" not in out
