"""What a learner's notebooks define, read and not run."""

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from folovllm_lite.mine.pieces import (
    PACKAGE,
    adds_to,
    blanks_of,
    class_parts,
    final_cells,
    joined,
    lines_of,
    members,
    names_of,
    pieces,
    pieces_of,
)

# Cell magics that only watch a cell run.
_WATCHING = ("%%time", "%%timeit", "%%capture", "%%prun")
# Modules that are no part of an engine.
TOOLS = {"__init__", "__main__", "bench", "doctor", "lab", "notebook"}


class MineError(Exception):
    """What keeps an engine from being assembled, in words for the learner."""


def parts() -> list[str]:
    """The modules that an engine consists of."""
    return sorted({file.stem for file in PACKAGE.glob("*.py")} - TOOLS)


def source_of(module: str) -> str:
    """A module of the package as text."""
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def is_blank(node: ast.stmt) -> bool:
    """Whether a function is a stub: after its docstring it only raises
    NotImplementedError, or there is nothing but `...` or `pass`.
    """
    if not isinstance(node, ast.FunctionDef):
        return False
    body = node.body[ast.get_docstring(node) is not None :]
    if not body:
        return True
    (first, *more) = body
    if isinstance(first, ast.Raise) and first.exc is not None:
        raised = first.exc.func if isinstance(first.exc, ast.Call) else first.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    empty = isinstance(first, ast.Pass) or (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    )
    return empty and not more


@dataclass(frozen=True)
class Piece:
    """One definition of a final cell.

    Args:
        module, name: whose it is: `sampler`, `apply_top_k`; a member of a class is
            `Scheduler.schedule`, and the class's own name is its head.
        lines: its source, not indented.
        plain: what it says, comments and indentation aside.
        notebook, cell: where it stands; cells count from 1.
        blank: a stub.
        asked: the course asks the learner to write it.
    """

    module: str
    name: str
    lines: tuple[str, ...]
    plain: str
    notebook: str
    cell: int
    blank: bool
    asked: bool = False

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return f"{self.notebook}, cell {self.cell}"


@dataclass
class Found:
    """What the notebooks of a folder define.

    Args:
        folder: of the notebooks.
        notebooks: their names.
        writing: those in the writing form, in which a blank that was filled is the
            learner's even where it says what the package says.
        pieces: of each module, in the order of the cells.
        cells: every code cell of each notebook, for what the pieces use.
    """

    folder: Path
    notebooks: list[str] = field(default_factory=list)
    writing: set[str] = field(default_factory=set)
    pieces: dict[str, dict[str, Piece]] = field(default_factory=dict)
    cells: dict[str, list[str]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many pieces of each module are the learner's own, for `viz.my_map`."""
        return {module: len(self.yours(module)) for module in parts()}

    def yours(self, module: str) -> dict[str, Piece]:
        """The pieces of a module that are the learner's own."""
        theirs = pieces(source_of(module))
        return {
            name: piece
            for name, piece in self.pieces.get(module, {}).items()
            if not piece.blank
            and (
                piece.plain != theirs.get(name)
                or (piece.asked and piece.notebook in self.writing)
            )
        }


def find(folder: Path) -> Found:
    """Read the lessons of a folder.

    Raises:
        MineError: no notebooks, or all the places that can't be read.
    """
    found, problems = Found(folder), []
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb")) if folder.is_dir() else []
    paths = [path for path in paths if "-old-" not in path.name]
    if not paths:
        raise MineError(f"there are no notebooks of the course in {folder}")
    for path in paths:
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            cells = notebook["cells"]
            sources = [
                joined(cell["source"]) if cell["cell_type"] == "code" else ""
                for cell in cells
            ]
            form = notebook.get("metadata", {}).get("folovllm_lite", {}).get("form")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path.name} is no notebook that can be read")
            continue
        found.notebooks.append(path.name)
        found.cells[path.name] = sources
        if form == "writing":
            found.writing.add(path.name)
        for index, module, source in final_cells(notebook):
            place = f"{path.name}, cell {index + 1}"
            asked = blanks_of(cells[index])
            try:
                read = list(_pieces(module, source, path.name, index + 1, asked))
            except MineError as error:
                problems.append(f"{place}: {error}")
                continue
            for piece in read:
                # Written twice, the later counts, as when the cells are run.
                found.pieces.setdefault(module, {}).pop(piece.name, None)
                found.pieces[module][piece.name] = piece
    if problems:
        raise MineError("\n".join(problems))
    return found


def python(source: str) -> str:
    """A cell's source without the magics that only watch it run.

    Raises:
        MineError: another magic, or what isn't Python.
    """
    first, _, rest = source.lstrip().partition("\n")
    if first.startswith(_WATCHING):
        source = rest
    elif first.startswith("%%"):
        raise MineError(f"{first.split()[0]} can't be a part of an engine")
    lines = []
    for number, line in enumerate(source.splitlines(), start=1):
        if re.match(r"[%!]|\w[\w.]*\?+$", line):  # at the left, by itself: a comment
            line = f"# {line}"
        elif re.match(r"\s+[%!]", line):
            raise MineError(
                f"line {number}: {line.strip().split()[0]} can't be a part of an engine"
            )
        lines.append(line)
    source = "\n".join(lines)
    try:
        ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise MineError(f"line {error.lineno}: {error.msg}: {line}") from None
    return source


def _pieces(
    module: str, source: str, notebook: str, cell: int, asked: set[str]
) -> Iterator[Piece]:
    """The definitions of a final cell."""
    if module not in parts():
        raise MineError(f"there is no module {module}")
    source = python(source)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        owner = adds_to(node)
        texts: dict[str, list[str]] = {}
        blanks = {}
        if isinstance(node, ast.ClassDef):
            head, inside = class_parts(node, lines)
            texts[node.name] = head
            for name, text in inside.items():
                texts[f"{node.name}.{name}"] = _dedented(text)
                items = members(node)[name]
                blanks[f"{node.name}.{name}"] = all(map(is_blank, items))
        else:
            first, end = lines_of(node)
            if owner:
                # `@adds_to(...)` may take several lines; it is the first decorator.
                first = node.decorator_list[0].end_lineno
            names = [f"{owner}.{node.name}"] if owner else names_of(node)
            texts = dict.fromkeys(names, lines[first:end])
            blanks = dict.fromkeys(names, is_blank(node))
        for name, said in pieces_of(node).items():
            text = tuple(texts[name])
            blank = blanks.get(name, False)
            yield Piece(module, name, text, said, notebook, cell, blank, name in asked)


def _dedented(lines: list[str]) -> list[str]:
    """A member of a class as it reads outside; blank lines around it are gone."""
    text = textwrap.dedent("\n".join(lines)).strip("\n")
    return text.splitlines()
