"""An engine from what a learner wrote: the package, with their definitions in it.

Every module is the package's source with the definitions of the notebooks' final cells
put in place of its own. What a notebook lacks or leaves blank comes from the package.
"""

import ast
import builtins
import json
import re
import symtable
from collections.abc import Iterable
from pathlib import Path

from folovllm_lite.mine.notebooks import (
    TOOLS,
    Found,
    MineError,
    Piece,
    parts,
    python,
    source_of,
)
from folovllm_lite.mine.pieces import (
    PACKAGE,
    adds_to,
    class_parts,
    indented,
    lines_of,
    names_of,
    pieces,
)

NAME = "my_engine"
_RECORD = ".assembled.json"  # says that the folder is ours, and what was green
_HELPERS = TOOLS | {"checks", "mine", "tiny", "viz", "widgets"}
_MODULE_NAMES = {"__name__", "__file__", "__doc__", "__path__", "__spec__"}


def module_source(module: str, found: Found, even_equal: bool = False) -> str:
    """The package's module with the learner's definitions in place of its own.

    Args:
        module: its name.
        found: what the notebooks define.
        even_equal: put in also those that say what the package's say.

    Raises:
        MineError: a definition uses what no cell of its notebook defines.
    """
    source = source_of(module)
    ours = {} if even_equal else pieces(source)
    theirs = {
        name: piece
        for name, piece in found.pieces.get(module, {}).items()
        if not piece.blank and piece.plain != ours.get(name)
    }
    if not theirs:
        return source
    lines, tree = source.splitlines(), ast.parse(source)
    known = {name for node in tree.body for name in names_of(node)}
    edits: list[tuple[int, int, list[str]]] = []
    done = set()
    for node in tree.body:
        for name in names_of(node):
            inside = {n for n in theirs if n.partition(".")[0] == name}
            if not inside:
                continue
            start, end = lines_of(node)
            if isinstance(node, ast.ClassDef):
                text = _class(node, lines, theirs)
            else:
                text = list(theirs[name].lines)
            if not done & inside:  # `a, b = 1, 2` has two names
                edits.append((start, end, text))
            done |= inside
    # A helper that the package doesn't have stands before what it came with.
    new = [p for n, p in theirs.items() if n not in done and "." not in n]
    first = min((start for start, _, _ in edits), default=len(lines))
    for piece in reversed(new):
        text = _class_alone(piece.name, theirs) or list(piece.lines)
        edits.append((first, first, [*text, "", ""]))
    for name, piece in theirs.items():
        owner = name.partition(".")[0]
        if owner != name and owner not in known and owner not in theirs:
            raise MineError(f"{piece.place}: {piece.name} adds to no class of {module}")
    for start, end, text in sorted(edits, key=lambda edit: edit[0], reverse=True):
        lines[start:end] = text
    source = "\n".join(lines) + "\n"
    return _with_imports(module, source, list(theirs.values()), found)


def _class(node: ast.ClassDef, lines: list[str], theirs: dict[str, Piece]) -> list[str]:
    """A class of the package with the learner's head and members in it."""
    head, texts = class_parts(node, lines)
    own = theirs.get(node.name)
    text = [*_trimmed(own.lines if own else head), ""]
    for name, item in texts.items():
        piece = theirs.get(f"{node.name}.{name}")
        text += _member(piece) if piece else item
    for name, piece in theirs.items():
        owner, _, member = name.partition(".")
        if owner == node.name and member and member not in texts:
            text += _member(piece)
    return text


def _trimmed(lines: Iterable[str]) -> list[str]:
    return "\n".join(lines).rstrip().splitlines()


def _member(piece: Piece) -> list[str]:
    """A learner's member as it stands in a class."""
    method = any(line.startswith(("def ", "@")) for line in piece.lines)
    return [*([""] if method else []), *indented(list(piece.lines))]


def _class_alone(name: str, theirs: dict[str, Piece]) -> list[str]:
    """A class that only the learner has; [] if `name` is none."""
    inside = [p for n, p in theirs.items() if n.startswith(f"{name}.")]
    if not inside and not any(line.startswith("class ") for line in theirs[name].lines):
        return []
    text = list(theirs[name].lines)
    for piece in inside:
        text += _member(piece)
    return text


def _with_imports(module: str, source: str, pieces: list[Piece], found: Found) -> str:
    """The source, and above its definitions what it uses of the notebook's other cells:
    imports, and functions, classes and constants by the way.
    """
    added: list[str] = []
    for _ in range(20):  # what is added may use something again
        missing = unknown_names(source)
        if not missing:
            return source
        for name in sorted(missing):
            user = next(p for p in pieces if name in "\n".join(p.lines) or added)
            text = from_notebook(name, found.cells[user.notebook])
            if text is None:
                raise MineError(
                    f"{user.place}: {user.name} uses {name}, which no cell of "
                    f"{user.notebook} imports or defines as a function, a class or a "
                    "constant"
                )
            added.append(text)
        source = below_imports(source, added[-len(missing) :])
    raise MineError(f"{module}: its definitions use each other in a circle")


def below_imports(source: str, texts: list[str]) -> str:
    """The source with statements put behind its own imports."""
    lines, tree = source.splitlines(), ast.parse(source)
    at = 0
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or docstring:
            at = node.end_lineno
        else:
            break
    lines[at:at] = [line for text in texts for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def unknown_names(source: str) -> set[str]:
    """Global names that a module reads and nobody defines."""
    table = symtable.symtable(source, "module", "exec")
    known = {s.get_name() for s in table.get_symbols() if s.is_assigned()}
    known |= {s.get_name() for s in table.get_symbols() if s.is_imported()}
    known |= {s.get_name() for s in table.get_symbols() if s.is_namespace()}
    used, left = set(), [table]
    while left:
        each = left.pop()
        left += each.get_children()
        for symbol in each.get_symbols():
            free = symbol.is_global() or each is table
            if symbol.is_referenced() and free:
                used.add(symbol.get_name())
    return used - known - set(dir(builtins)) - _MODULE_NAMES


def from_notebook(name: str, cells: Iterable[str]) -> str | None:
    """The statement of a notebook's cells that binds a name, if it can stand alone."""
    text = None
    for source in cells:
        try:
            tree = ast.parse(python(source))
        except (MineError, SyntaxError):
            continue
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for item in node.names:
                    if (item.asname or item.name.partition(".")[0]) == name:
                        node.names = [item]
                        text = ast.unparse(node)
                        break
            elif name in names_of(node) and not adds_to(node):
                constant = isinstance(node, ast.Assign) and _is_literal(node.value)
                if constant or isinstance(node, ast.FunctionDef | ast.ClassDef):
                    text = ast.unparse(node)
    return text


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def renamed(source: str, modules: Iterable[str]) -> str:
    """The source with imports from the package's `modules` pointing at each other."""
    lines, modules = source.splitlines(), set(modules)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            top, _, rest = node.module.partition(".")
            own = (
                rest.partition(".")[0] in modules
                if rest
                else not ({item.name for item in node.names} & _HELPERS)
            )
            if top == "folovllm_lite" and own:
                at = node.lineno - 1
                lines[at] = lines[at].replace(top, NAME, 1)
        elif isinstance(node, ast.Import):
            for at in range(node.lineno - 1, node.end_lineno):
                lines[at] = re.sub(
                    r"\bfolovllm_lite\.(\w+)",
                    lambda m: f"{NAME}.{m[1]}" if m[1] in modules else m[0],
                    lines[at],
                )
    return "\n".join(lines) + "\n"


def assemble(
    found: Found, out: Path, exercises: str = "", even_equal: bool = False
) -> dict[str, str]:
    """Write `my_engine` into `out`.

    Args:
        found: what the notebooks define.
        out: the folder to write it into.
        exercises: the source of one more module, `my_engine.exercises`.
        even_equal: as for `module_source`.

    Returns:
        Each module's source with the package's imports, as the suites judge it.

    Raises:
        MineError: as `module_source`; or a folder my_engine that somebody else made.
    """
    modules = parts()
    sources = {module: module_source(module, found, even_equal) for module in modules}
    folder = out / NAME
    if folder.exists() and not (folder / _RECORD).exists():
        raise MineError(f"{folder} is there and not made by this command: move it away")
    folder.mkdir(parents=True, exist_ok=True)
    init = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    files = {**sources, "__init__": init}
    if exercises:
        files["exercises"] = exercises
    for file in folder.glob("*.py"):
        if file.stem not in files:
            file.unlink()
    for module, source in files.items():
        file, data = folder / f"{module}.py", renamed(source, modules).encode()
        if not file.exists() or file.read_bytes() != data:
            file.write_bytes(data)  # what stays as it was, Numba needn't compile again
    write_record(folder, read_record(folder))
    return sources


def read_record(folder: Path) -> dict[str, str]:
    """Which modules were green, as they were then."""
    try:
        return dict(json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def write_record(folder: Path, record: dict[str, str]) -> None:
    """Write it, and with it that the folder is ours."""
    text = json.dumps(record, indent=1) + "\n"
    (folder / _RECORD).write_text(text, encoding="utf-8")
