"""The same code twice, kept equal: the package, and the notebooks that teach it.

`drift(path)` compares a notebook's `pkg:` cells with the package and looks at what it
imports; `untaught()` finds what the package has and no notebook teaches, and
`taught_twice()` what stands in two places. What is compared are pieces, as
`folovllm_lite.mine.pieces` takes a module or a cell apart.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from folovllm_lite.mine.pieces import (
    PKG,
    definitions,
    module_file,
    names_of,
    pieces,
    pieces_of,
)
from tests.notebooks.course import (
    COURSE,
    HELPERS,
    NOTEBOOKS,
    PACKAGE,
    UNTAUGHT,
    Lesson,
    lesson_of,
    read,
)


def modules(package: Path = PACKAGE) -> list[str]:
    """The names of the package's modules; a subpackage counts as one."""
    files = [file.stem for file in package.glob("*.py") if file.stem != "__init__"]
    folders = [file.parent.name for file in package.glob("*/__init__.py")]
    return sorted(files + folders)


def python(source: str) -> str:
    """A code cell as plain Python, IPython's own syntax (%magic, name?) translated."""
    return TransformerManager().transform_cell(source)


def pkg_cells(notebook: dict) -> Iterator[tuple[str, str, str]]:
    """Each `pkg:` cell as (where, module, source)."""
    for index, cell in enumerate(notebook["cells"]):
        for tag in cell.get("metadata", {}).get("tags", []):
            if tag.startswith(PKG):
                where = f"cell {index} (id {cell.get('id')})"
                yield where, tag.removeprefix(PKG), cell["source"]


def cell_drift(notebook: dict, package: Path = PACKAGE) -> Iterator[str]:
    """Every `pkg:` cell defines what its module defines, comments aside."""
    for where, module, source in pkg_cells(notebook):
        file = module_file(module, package)
        if file is None:
            yield f"{where} is tagged {PKG}{module}, and there is no such module"
            continue
        ours = pieces(file.read_text(encoding="utf-8"))
        for node in ast.parse(source).body:
            if not names_of(node) and not isinstance(node, ast.Import | ast.ImportFrom):
                code = ast.unparse(node).splitlines()[0]
                yield f"{where} does more than define: move {code!r} to another cell"
            found = pieces_of(node)
            if isinstance(node, ast.ClassDef) and node.name not in ours:
                found = {node.name: ""}  # its members say nothing more
            for name, text in found.items():
                if name not in ours:
                    yield f"{where} defines {name}, which {module} doesn't have"
                elif text != ours[name]:
                    yield (
                        f"{where} defines {name} otherwise than {module}: "
                        "change the package, then `make sync`"
                    )
            order = [name for name in found if name in ours]
            if order != [name for name in ours if name in found]:
                yield (
                    f"{where} has the members of {node.name} in another order than "
                    f"{module}: `make sync`"
                )


@cache
def _defined(source: str) -> tuple[str, ...]:
    """The names of `definitions`; every cell asks for those of all modules."""
    return tuple(definitions(source))


def imported_modules(source: str, package: Path = PACKAGE) -> Iterator[str]:
    """The modules of the package that a code cell reaches, by any spelling.

    `from folovllm_lite import LLM` reaches the module that defines LLM.
    """
    home = {
        name: module
        for module in modules(package)
        if (file := module_file(module, package))
        for name in _defined(file.read_text(encoding="utf-8"))
    }
    known = set(modules(package))
    tree = ast.parse(python(source))
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                parts = item.name.split(".")
                if parts[0] == "folovllm_lite":
                    aliases.add(item.asname or "folovllm_lite")
                    yield from parts[1:2]
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "folovllm_lite" and len(parts) > 1:
                yield parts[1]
            elif parts[0] == "folovllm_lite":
                for item in node.names:
                    name = item.name
                    yield name if name in known else home.get(name, name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in aliases:
                yield node.attr if node.attr in known else home.get(node.attr, "")


def taught_before(lesson: Lesson) -> set[str]:
    """The modules whose first lesson comes before this one."""
    return {
        module
        for other in COURSE
        if other.number < lesson.number
        for module in other.teaches
    }


def import_drift(
    notebook: dict, lesson: Lesson, solution: bool, package: Path = PACKAGE
) -> Iterator[str]:
    """A lesson imports only what was taught before it; a solution, its lesson too."""
    if lesson.number == 0:
        return
    allowed = taught_before(lesson) | set(HELPERS) | {""}
    if solution:
        allowed |= set(lesson.teaches)
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        for module in sorted(set(imported_modules(cell["source"], package)) - allowed):
            number = next((x.number for x in COURSE if module in x.teaches), None)
            when = "never taught" if number is None else f"taught in {number:02}"
            yield (
                f"cell {index} (id {cell.get('id')}) imports folovllm_lite.{module}, "
                f"which is {when}: build on earlier modules only"
            )


def drift(path: Path, package: Path = PACKAGE) -> list[str]:
    """All in which the notebook at `path` differs from the package and the order."""
    notebook = read(path)
    problems = list(cell_drift(notebook, package))
    lesson = lesson_of(path)
    if lesson is not None:
        solution = path.parent.name == "solutions"
        problems += import_drift(notebook, lesson, solution, package)
    return [f"{path.name}: {problem}" for problem in problems]


def taught(folder: Path) -> dict[str, list[str]]:
    """Every piece that the lessons' `pkg:` cells define -> where they do."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*.ipynb")):
        for where, module, source in pkg_cells(read(path)):
            for node in ast.parse(source).body:
                for name in pieces_of(node):
                    found[f"{module}.{name}"].append(f"{path.name}, {where}")
    return found


def taught_twice(folder: Path = NOTEBOOKS) -> list[str]:
    """Pieces that stand in more than one final cell."""
    return [
        f"{name} stands in {' and in '.join(places)}: one piece, one final cell"
        for name, places in taught(folder).items()
        if len(places) > 1
    ]


def untaught(
    folder: Path = NOTEBOOKS,
    package: Path = PACKAGE,
    allowed: dict[str, int | str] = UNTAUGHT,
) -> list[str]:
    """Pieces that no notebook teaches, and entries of the list that are stale.

    Whoever teaches a class teaches all of it, private methods too.
    """
    there = taught(folder)
    problems = []
    used = set()
    known = set()
    for module in modules(package):
        known.add(module)
        if module in HELPERS or isinstance(allowed.get(module), str):
            used.add(module)
            continue
        for name in pieces(module_file(module, package).read_text(encoding="utf-8")):
            full = f"{module}.{name}"
            known.add(full)
            owner = full.rpartition(".")[0]
            keys = {full, module} if owner == module else {full}
            if full not in there:
                used |= keys & set(allowed)
            if owner == module:
                missing = full not in there and not name.startswith("_")
            else:  # where the class itself is missing, that is said once
                missing = full not in there and owner in there
            if missing and not keys & set(allowed):
                problems.append(
                    f"{full} is taught in no notebook: put it into a cell tagged "
                    f"{PKG}{module}, or into UNTAUGHT with a reason"
                )
    for key, reason in allowed.items():
        lesson = COURSE[reason] if isinstance(reason, int) else None
        planned = lesson is not None and not (folder / lesson.file).exists()
        if key not in used and not (planned and key not in known):
            problems.append(f"UNTAUGHT names {key}, which needs no entry: remove it")
        elif lesson is not None:
            if key.split(".")[0] not in lesson.teaches:
                problems.append(
                    f"UNTAUGHT leaves {key} to {lesson.file}, which doesn't teach it"
                )
            elif not planned:
                problems.append(f"UNTAUGHT leaves {key} to {lesson.file}, now written")
    return problems
