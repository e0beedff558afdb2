"""The definitions of a module or of a notebook's final cells, taken apart.

A *piece* is a function, a name with its value, the head of a class (its docstring,
bases and decorators), or one member of a class. A class may come in parts: `class
Engine` with some of its members in one cell, and methods under `@adds_to(Engine)` in
later ones. Everything is read with `ast`; nothing is imported or run.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PKG = "pkg:folovllm_lite."  # the tag of a final cell
FINAL = "# final: folovllm_lite."  # its first line
YOURS = "yours:"  # the tag of a definition that the learner writes


def module_file(module: str, package: Path = PACKAGE) -> Path | None:
    """The file of `folovllm_lite.<module>`: `sampler`, or `tiny.grammar`."""
    base = package.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines; [] for one that defines none."""
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


def adds_to(node: ast.stmt) -> str | None:
    """The class that a function's first decorator, `@adds_to(Class)`, names."""
    first, *_ = [*getattr(node, "decorator_list", []), None]
    if isinstance(node, ast.FunctionDef) and isinstance(first, ast.Call):
        if isinstance(first.func, ast.Name) and first.func.id == "adds_to":
            return ast.unparse(first.args[0])
    return None


def members(node: ast.ClassDef) -> dict[str, list[ast.stmt]]:
    """The members of a class, in order; a property and its setter have one name."""
    found = defaultdict(list)
    for item in node.body:
        empty = isinstance(item, ast.Pass)
        if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
            empty = True  # the docstring, or `...`
        if not empty:
            names = names_of(item) or [ast.unparse(item).splitlines()[0]]
            found[names[0]].append(item)
    return dict(found)


def plain(node: ast.AST) -> str:
    """A statement as text that says all but comments, places and indentation."""
    for item in ast.walk(node):
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(item, clean=False)
            if text is not None:
                item.body[0].value.value = inspect.cleandoc(text)
    return ast.dump(node)


def pieces_of(node: ast.stmt) -> dict[str, str]:
    """What a top-level statement defines: name or Class.member, to its `plain` text."""
    owner = adds_to(node)
    if owner:
        node.decorator_list.pop(0)
        return {f"{owner}.{node.name}": plain(node)}
    if not isinstance(node, ast.ClassDef):
        return dict.fromkeys(names_of(node), plain(node))
    parts = members(node)
    found = {
        f"{node.name}.{name}": " ".join(map(plain, items))
        for name, items in parts.items()
    }
    node.body = node.body[:1] if ast.get_docstring(node) is not None else []
    return {node.name: plain(node), **found}


def pieces(source: str) -> dict[str, str]:
    """All that a module or a cell defines, as `pieces_of` its statements."""
    tree = ast.parse(source)
    return {name: text for node in tree.body for name, text in pieces_of(node).items()}


# ----- the text of a piece


def lines_of(node: ast.stmt) -> tuple[int, int]:
    """First and one past the last line of a statement, decorators included."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(item.lineno for item in decorators)])
    return first - 1, node.end_lineno


def class_text(node: ast.ClassDef, lines: list[str], keep: set[str]) -> list[str]:
    """The class's lines with the members to keep, each with the comments above it."""
    head, texts = class_parts(node, lines)
    for name, text in texts.items():
        head += text if name in keep else []
    return head


def class_parts(
    node: ast.ClassDef, lines: list[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """The lines of a class's head, and those of each member with what stands above."""
    first, end = lines_of(node)
    found = [(name, item) for name, items in members(node).items() for item in items]
    found.sort(key=lambda pair: pair[1].lineno)
    start = lines_of(found[0][1])[0] if found else end
    while found and lines[start - 1].strip()[:1] in ("", "#"):
        start -= 1
    head, texts = lines[first:start], defaultdict(list)
    for name, item in found:
        texts[name] += lines[start : item.end_lineno]
        start = item.end_lineno
    return head, dict(texts)


def method_text(owner: str, items: list[ast.stmt], lines: list[str]) -> list[str]:
    """A method as it stands outside its class, under `@adds_to(owner)`."""
    (item,) = items
    first, end = lines_of(item)
    text = textwrap.dedent("\n".join(lines[first:end]))
    if plain(ast.parse(text).body[0]) != plain(item):
        raise ValueError(
            f"{owner}.{item.name} holds a string of several lines, which changes where "
            f"the method isn't indented: leave it in the cell with `class {owner}`"
        )
    return [f"@adds_to({owner})", *text.splitlines()]


def indented(lines: list[str]) -> list[str]:
    """Lines four columns further right, but for the insides of long strings that are
    no docstrings.
    """
    inside, before = set(), tokenize.NEWLINE
    text = "\n".join(lines) + "\n"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        alone = before in (tokenize.INDENT, tokenize.NEWLINE, tokenize.DEDENT)
        docstring = token.type == tokenize.STRING and alone
        if token.start[0] != token.end[0] and not docstring:
            inside |= set(range(token.start[0] + 1, token.end[0] + 1))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
    return [
        line if number in inside or not line.strip() else f"    {line}"
        for number, line in enumerate(lines, start=1)
    ]


# ----- notebooks


def joined(text: str | list[str]) -> str:
    """The text of a notebook's field, which may be stored as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def module_of(cell: dict) -> str | None:
    """The module that a final cell belongs to, by its tag or by its first line.

    JupyterLab's user can lose a tag, by splitting a cell, say; the line stays.
    """
    if cell.get("cell_type") != "code":
        return None
    for tag in cell.get("metadata", {}).get("tags", []):
        if tag.startswith(PKG):
            return tag.removeprefix(PKG)
    first = joined(cell["source"]).partition("\n")[0].strip()
    return first.removeprefix(FINAL) if first.startswith(FINAL) else None


def final_cells(notebook: dict) -> Iterator[tuple[int, str, str]]:
    """Each final cell as (index, module, source)."""
    for index, cell in enumerate(notebook["cells"]):
        module = module_of(cell)
        if module:
            yield index, module, joined(cell["source"])


def blanks_of(cell: dict) -> set[str]:
    """The definitions of a cell that the course asks the learner to write."""
    tags = cell.get("metadata", {}).get("tags", [])
    return {tag.removeprefix(YOURS) for tag in tags if tag.startswith(YOURS)}
