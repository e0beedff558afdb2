"""The course in its writing form: what is the learner's to write is blank.

One source, two forms. A cell's tag `yours:apply_top_k` says that the definition is the
learner's: it keeps its signature and docstring, and its body becomes a stub. A cell
tagged `answer` would give something away: prose is folded, code is left out. One tagged
`reading` is for the reading form alone: a stub, say, of what is blank further down.
Below the last part of each piece follows the suite that judges it.
"""

import ast
import copy
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from folovllm_lite import lab
from folovllm_lite.mine.pieces import (
    adds_to,
    blanks_of,
    final_cells,
    joined,
    members,
    module_of,
    names_of,
)

_NOTE = """\
> **The writing form.** Some definitions are blank: they are yours. Write each where it
> says so, and run the cell with `checks` below it. Later notebooks import the finished
> package, so you may leave any of them out. `make mine` makes an engine of what you
> wrote."""
_FOLD = "<details><summary>How it is done</summary>\n\n{}\n\n</details>"


def writing_form(notebook: dict) -> dict:
    """A notebook of the course with blanks, a suite below each, and no outputs."""
    notebook = copy.deepcopy(notebook)
    notebook["metadata"]["folovllm_lite"] = {"form": "writing"}
    last = _last_parts(notebook)
    cells = []
    for index, cell in enumerate(notebook["cells"]):
        cell["source"] = joined(cell["source"])
        tags = cell.get("metadata", {}).get("tags", [])
        if "reading" in tags:
            continue
        if cell["cell_type"] == "code":
            if "answer" in tags:
                continue
            cell.update(outputs=[], execution_count=None)
            blanks = blanks_of(cell)
            if blanks:
                cell["source"] = blanked(cell["source"], blanks)
                cell["metadata"].pop("jupyter", None)  # what is to be written is shown
        elif "answer" in tags:
            cell["source"] = _FOLD.format(cell["source"])
        cells.append(cell)
        if last.get(index):
            check = _check(notebook, index, module_of(cell), last[index])
            cells += [check] if "checks." in check["source"] else []
    if any(map(blanks_of, cells)):
        cells.insert(1, _markdown("writing-form", _NOTE))
    notebook["cells"] = cells
    return notebook


def blanked(source: str, names: Iterable[str]) -> str:
    """A cell whose definitions `names` are stubs: `apply_top_k`, `Scheduler.schedule`.

    Raises:
        ValueError: the cell doesn't define one of them as a function.
    """
    lines, left = source.splitlines(), set(names)
    found = []
    for node in ast.parse(source).body:
        owner = adds_to(node)
        if isinstance(node, ast.ClassDef):
            items = members(node).items()
            found += [(f"{node.name}.{name}", x) for name, each in items for x in each]
        else:
            found += [
                (f"{owner}.{name}" if owner else name, node) for name in names_of(node)
            ]
    for name, node in reversed(found):
        if name in left and isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node) is not None
            body = node.body[docstring:]
            if not body or body[0].lineno == node.lineno:
                continue
            start = node.body[0].end_lineno if docstring else _above(body[0], lines)
            indent = " " * body[0].col_offset
            stub = f'{indent}raise NotImplementedError("write {node.name}")'
            lines[start : node.end_lineno] = [stub]
            left.discard(name)
    if left:
        raise ValueError(f"no function {', '.join(sorted(left))} in this cell")
    return "\n".join(lines)


def _above(node: ast.stmt, lines: list[str]) -> int:
    """The index of a statement's first line, comments above it included."""
    start = node.lineno - 1
    while lines[start - 1].strip().startswith("#"):
        start -= 1
    return start


def _last_parts(notebook: dict) -> dict[int, list[str]]:
    """Index of a cell -> the pieces with blanks that are complete after it."""
    asked = {
        name.partition(".")[0] for cell in notebook["cells"] for name in blanks_of(cell)
    }
    last: dict[int, list[str]] = {}
    for name, index in _ends(notebook).items():
        if name in asked:
            last.setdefault(index, []).append(name)
    return last


def _ends(notebook: dict, only: str = "") -> dict[str, int]:
    """Each definition of the final cells -> the index of the cell of its last part."""
    found: dict[str, int] = {}
    for index, module, source in final_cells(notebook):
        for node in ast.parse(source).body if only in ("", module) else ():
            for name in [adds_to(node)] if adds_to(node) else names_of(node):
                found[name] = index
    return found


def _check(notebook: dict, index: int, module: str, names: list[str]) -> dict:
    """The cell that judges the pieces that the cell at `index` completes.

    A piece that no property is about by its name is judged by those that use it: all of
    its module that the notebook has completed by then.
    """
    from folovllm_lite import checks
    from folovllm_lite.mine.judge import CONTEXTS, Suite

    home = import_module(f"folovllm_lite.{module}")
    there = [name for name, end in _ends(notebook, module).items() if end <= index]
    suites = {
        name: suite.judges()
        for name, suite in vars(checks).items()
        if isinstance(suite, Suite) and suite.module is home
    }
    calls: list[str] = []
    for asked in (names, there):
        for name, judged in suites.items():
            given = ", ".join(f"{piece}={piece}" for piece in asked if piece in judged)
            calls += [f"checks.{name}({given})"] if given else []
        contexts = set(asked) & set(CONTEXTS.get(module, ()))
        calls += [f"checks.contexts({piece})" for piece in contexts]
        if calls:
            break
    source = "\n".join(["from folovllm_lite import checks\n", *calls])
    cell = notebook["cells"][index]
    return {
        "cell_type": "code",
        "id": f"{cell['id']}-checks"[:64],
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def _markdown(name: str, source: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def write(out: Path = lab.COPIES, course: Path = lab.COURSE) -> tuple[list, list]:
    """Write the lessons in their writing form; what a learner has changed is kept.

    Args:
        out: the folder; copies of the course in it that nobody changed make room.
        course: the notebooks.

    Returns:
        The names of those written, and of those kept.

    Raises:
        LabError: there are no notebooks, or they can't be written.
    """
    names = sorted(path.name for path in course.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        raise lab.LabError(f"there are no notebooks in {course}")
    record = lab.read_record(out, lab.WORKBOOK)
    copies = lab.read_record(out)
    written, kept = [], []
    for name in names:
        data = (course / name).read_bytes()
        text = json.dumps(writing_form(json.loads(data)), indent=1, ensure_ascii=False)
        file = out / name
        if file.exists():
            known = {lab.cells(data), copies.get(name, {}).get("cells")}
            known.add(record.get(name, {}).get("cells"))
            known.discard(None)  # of no record, and of a file that is no notebook
            if lab.cells(file.read_bytes()) not in known:
                kept.append(name)
                continue
        made = (text + "\n").encode()
        lab.write(file, made)
        record[name], copies[name] = lab.entry(made), lab.entry(data)
        written.append(name)
    lab.write_record(out, record, lab.WORKBOOK)
    lab.write_record(out, copies)
    return written, kept
