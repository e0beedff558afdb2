"""The same code twice, kept equal: the package, and the notebooks that teach it.

`drift(path)` compares a notebook's `pkg:` cells with the package and looks at what it
imports; `untaught()` finds what the package has and no notebook teaches. Everything is
read with `ast`, nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

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

PKG = "pkg:folovllm_lite."
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def module_file(module: str, package: Path = PACKAGE) -> Path | None:
    """The file of `folovllm_lite.<module>`: `sampler`, or `tiny.grammar`."""
    base = package.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def modules(package: Path = PACKAGE) -> list[str]:
    """The names of the package's modules; a subpackage counts as one."""
    files = [file.stem for file in package.glob("*.py") if file.stem != "__init__"]
    folders = [file.parent.name for file in package.glob("*/__init__.py")]
    return sorted(files + folders)


def names_of(node: ast.stmt) -> list[str]:
    """The names that a top-level statement defines; [] for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        return []
    return [
        name.id
        for target in targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    ]


def definitions(source: str) -> dict[str, ast.stmt]:
    """Top-level name to the statement that defines it."""
    return {name: node for node in ast.parse(source).body for name in names_of(node)}


def public_names(source: str) -> list[str]:
    """The module's own names without an underscore in front."""
    return [name for name in definitions(source) if not name.startswith("_")]


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
        ours = definitions(file.read_text(encoding="utf-8"))
        for node in ast.parse(source).body:
            names = names_of(node)
            if not names and not isinstance(node, ast.Import | ast.ImportFrom):
                code = ast.unparse(node).splitlines()[0]
                yield f"{where} does more than define: move {code!r} to another cell"
            for name in names:
                if name not in ours:
                    yield f"{where} defines {name}, which {module} doesn't have"
                elif ast.dump(node) != ast.dump(ours[name]):
                    yield (
                        f"{where} defines {name} otherwise than {module}: "
                        "change the package, then `make sync`"
                    )


def imported_modules(source: str, package: Path = PACKAGE) -> Iterator[str]:
    """The modules of the package that a code cell reaches, by any spelling.

    `from folovllm_lite import LLM` reaches the module that defines LLM.
    """
    home = {
        name: module
        for module in modules(package)
        if (file := module_file(module, package))
        for name in definitions(file.read_text(encoding="utf-8"))
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


def taught_names(folder: Path) -> set[str]:
    """Every `module.name` that some `pkg:` cell of the lessons defines."""
    return {
        f"{module}.{name}"
        for path in sorted(folder.glob("*.ipynb"))
        for _, module, source in pkg_cells(read(path))
        for name in definitions(source)
    }


def untaught(
    folder: Path = NOTEBOOKS,
    package: Path = PACKAGE,
    allowed: dict[str, int | str] = UNTAUGHT,
) -> list[str]:
    """Public names that no notebook teaches, and entries of the list that are stale."""
    taught = taught_names(folder)
    problems = []
    used = set()
    for module in modules(package):
        if module in HELPERS or isinstance(allowed.get(module), str):
            used.add(module)
            continue
        source = module_file(module, package).read_text(encoding="utf-8")
        for name in public_names(source):
            full = f"{module}.{name}"
            if full in taught:
                continue
            keys = {full, module} & set(allowed)
            used |= keys
            if not keys:
                problems.append(
                    f"{full} is taught in no notebook: put it into a cell tagged "
                    f"{PKG}{module}, or into UNTAUGHT with a reason"
                )
    for key, reason in allowed.items():
        if key not in used:
            problems.append(f"UNTAUGHT names {key}, which needs no entry: remove it")
        elif isinstance(reason, int):
            lesson = COURSE[reason]
            if key.split(".")[0] not in lesson.teaches:
                problems.append(
                    f"UNTAUGHT leaves {key} to {lesson.file}, which doesn't teach it"
                )
            elif (folder / lesson.file).exists():
                problems.append(f"UNTAUGHT leaves {key} to {lesson.file}, now written")
    return problems
