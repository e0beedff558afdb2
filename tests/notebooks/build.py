"""Bring notebooks up to date: package code into `pkg:` cells, then execute and save.

    python -m tests.notebooks.build [--sync-only] [notebook ...]      (make notebooks)

A second run leaves no difference: ids are kept, and what changes from one machine or
one run to the next (versions, timings, widget state) is not saved. A notebook whose
cell fails is left as it was.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
from pathlib import Path

from tests.notebooks.course import (
    CELL_SECONDS,
    ENVIRONMENT,
    METADATA,
    NOTEBOOK_SECONDS,
    PACKAGE,
    joined,
    notebooks,
    read,
)
from tests.notebooks.drift import PKG, definitions, module_file, names_of

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def lines_of(node: ast.stmt) -> tuple[int, int]:
    """First and one past the last line of a statement, decorators included."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(item.lineno for item in decorators)])
    return first - 1, node.end_lineno


def synced(cell_source: str, module_source: str) -> str:
    """The cell with each definition replaced by the module's; the rest stays.

    A new cell can start as a list of stubs: `class SamplingParams: ...`.
    """
    theirs = definitions(module_source)
    module_lines = module_source.splitlines()
    lines = cell_source.splitlines()
    for node in reversed(ast.parse(cell_source).body):
        name = next(iter(names_of(node)), None)
        if name in theirs:
            first, last = lines_of(node)
            start, end = lines_of(theirs[name])
            lines[first:last] = module_lines[start:end]
    return "\n".join(lines)


def sync(notebook: dict, package: Path = PACKAGE) -> None:
    """Write the package's code into the notebook's `pkg:` cells."""
    for cell in notebook["cells"]:
        for tag in cell.get("metadata", {}).get("tags", []):
            file = tag.startswith(PKG) and module_file(tag.removeprefix(PKG), package)
            if file:
                source = file.read_text(encoding="utf-8")
                cell["source"] = synced(cell["source"], source)


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
        cell["metadata"] = {"tags": tags} if tags else {}
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
    options = parser.parse_args(arguments)
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
