"""Bring notebooks up to date: package code into `pkg:` cells, then execute and save.

    python -m tests.notebooks.build [--sync-only] [notebook ...]      (make notebooks)
    python -m tests.notebooks.build --minutes [notebook ...]

A second run leaves no difference: ids are kept, and what changes from one machine or
one run to the next (versions, timings, widget state) is not saved. A notebook whose
cell fails is left as it was. `--minutes` writes what the first reading takes into the
title cards, executes nothing, and prints what the minutes consist of.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

from folovllm_lite.mine.pieces import (
    FINAL,
    PKG,
    adds_to,
    class_text,
    definitions,
    lines_of,
    members,
    method_text,
    module_file,
    names_of,
)
from tests.notebooks.course import (
    CELL_SECONDS,
    ENVIRONMENT,
    METADATA,
    NOTEBOOK_SECONDS,
    PACKAGE,
    UNTAUGHT,
    cell_metadata,
    joined,
    lesson_of,
    notebooks,
    read,
)
from tests.notebooks.drift import pkg_cells
from tests.notebooks.lint import CARD, Cell, first_reading, rounded

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def synced(cell_source: str, module_source: str, split: set[str] = frozenset()) -> str:
    """The cell with each definition replaced by the module's; the rest stays.

    A new cell can start as a list of stubs: `class SamplingParams: ...`. For a class
    that comes in parts: `class Engine:` over `def __init__(self): ...`, and in other
    cells `@adds_to(Engine)` over `def step(self): ...`.

    Args:
        cell_source: the cell's.
        module_source: the module's.
        split: the classes that come in parts. Of them a cell keeps the members that it
            has, and gets no others.
    """
    theirs = definitions(module_source)
    module_lines = module_source.splitlines()
    lines = cell_source.splitlines()
    for node in reversed(ast.parse(cell_source).body):
        owner, name = adds_to(node), next(iter(names_of(node)), None)
        first, last = lines_of(node)
        if owner:
            parts = members(theirs[owner]) if owner in theirs else {}
            if name in parts:
                lines[first:last] = method_text(owner, parts[name], module_lines)
        elif name in theirs and name in split:
            keep = set(members(node))
            lines[first:last] = class_text(theirs[name], module_lines, keep)
        elif name in theirs:
            start, end = lines_of(theirs[name])
            lines[first:last] = module_lines[start:end]
    return "\n".join(lines)


def sync(notebook: dict, package: Path = PACKAGE) -> None:
    """Write the package's code into the notebook's `pkg:` cells, each with its mark."""
    split = defaultdict(set)  # module -> its classes that come in parts
    for key in UNTAUGHT:
        if key.count(".") == 2:
            split[key.partition(".")[0]].add(key.split(".")[1])
    for _, module, source in pkg_cells(notebook):
        split[module] |= set(filter(None, map(adds_to, ast.parse(source).body)))
    for cell in notebook["cells"]:
        for tag in cell.get("metadata", {}).get("tags", []):
            module = tag.removeprefix(PKG)
            file = tag.startswith(PKG) and module_file(module, package)
            if file:
                source = file.read_text(encoding="utf-8")
                text = synced(cell["source"], source, split[module])
                if text.partition("\n")[0] != FINAL + module:
                    text = f"{FINAL}{module}\n{text}"
                cell["source"] = text


def write_minutes(notebook: dict, path: Path) -> float | None:
    """Write the first reading's minutes into a lesson's title card; None elsewhere."""
    if lesson_of(path) is None or path.parent.name == "solutions":
        return None
    cells = [Cell(index, raw) for index, raw in enumerate(notebook["cells"])]
    minutes = first_reading(cells).minutes
    title, card = notebook["cells"][0], rf"\g<1>{rounded(minutes)}\g<2>"
    title["source"] = CARD.sub(card, title["source"], count=1)
    return minutes


def tidy(notebook: dict) -> None:
    """Drop what differs between runs and machines; number cells from 1 to N."""
    notebook.update(metadata=METADATA, nbformat=4, nbformat_minor=5)
    taken = {cell.get("id") for cell in notebook["cells"]}
    count = 0
    for index, cell in enumerate(notebook["cells"]):
        if not cell.get("id"):
            # Drawn from the place, not at random; kept from then on.
            while (name := f"cell-{index:02}") in taken:
                index += 100
            cell["id"] = name
            taken.add(name)
        tags = cell.get("metadata", {}).get("tags")
        cell["metadata"] = cell_metadata(tags or [])
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = merged_streams(cell.get("outputs", []))
            for output in cell["outputs"]:
                output.get("data", {}).pop(WIDGET_VIEW, None)
                if "execution_count" in output:
                    output["execution_count"] = count


def merged_streams(outputs: list[dict]) -> list[dict]:
    """Neighbouring pieces of one stream as one: the kernel cuts them by the clock."""
    merged: list[dict] = []
    for output in outputs:
        if "text" in output:
            output["text"] = joined(output["text"])
            if merged and merged[-1].get("name") == output["name"]:
                merged[-1]["text"] += output["text"]
                continue
        merged.append(output)
    return merged


def execute(notebook: dict, folder: Path) -> dict:
    """The notebook after running its cells in `folder`, skipped ones as they were."""
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.from_dict(notebook)
    NotebookClient(
        node,
        kernel_name="python3",
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(folder)}},
        skip_cells_with_tag="nbval-skip",
        store_widget_state=False,
        record_timing=False,
    ).execute()
    return json.loads(nbformat.writes(node))


def save(notebook: dict, path: Path) -> None:
    """Write as nbformat does: sorted keys and lines as lists keep diffs small."""
    import nbformat

    text = nbformat.writes(nbformat.from_dict(notebook)) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def build(path: Path, sync_only: bool = False) -> float:
    """Sync, execute and save one notebook; returns the seconds it ran."""
    notebook = read(path)
    sync(notebook)
    write_minutes(notebook, path)
    start = time.perf_counter()
    if not sync_only:
        tidy(notebook)
        notebook = execute(notebook, path.parent)
        tidy(notebook)
    save(notebook, path)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line names, or all; 1 when a notebook failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks.build")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--sync-only", action="store_true", help="don't execute")
    parser.add_argument("--minutes", action="store_true", help="only the title cards")
    options = parser.parse_args(arguments)
    if options.minutes:
        for path in options.notebooks or notebooks():
            notebook = read(path)
            if write_minutes(notebook, path) is not None:
                save(notebook, path)
                cells = [Cell(i, raw) for i, raw in enumerate(notebook["cells"])]
                print(f"{path.name}: {first_reading(cells)}")
        return 0
    os.environ.update(ENVIRONMENT)
    status = 0
    for path in options.notebooks or notebooks():
        print(f"{path.name} ... ", end="", flush=True)
        try:
            seconds = build(path, options.sync_only)
        except Exception as error:  # one broken notebook doesn't stop the others
            print(f"failed, left as it was\n{error}", file=sys.stderr)
            status = 1
            continue
        print(f"{seconds:.0f} s")
        if seconds > NOTEBOOK_SECONDS:
            print(f"  over {NOTEBOOK_SECONDS} s: show the same with less work")
    return status


if __name__ == "__main__":
    sys.exit(main())
