"""A made-up lesson that every rule accepts, for tests that then break one thing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.notebooks.course import METADATA, cell_metadata

GOALS = "## Goals\n- read a row of logits\n- draw from it\n- say what it costs"
FINAL = "# final: folovllm_lite.sampler\ndef draw(logits):\n    return 0"
STUB = "def pick(logits):\n    raise NotImplementedError('write pick first')\npick([1])"
JUDGE = "from folovllm_lite import checks\nchecks.sampler(pick)"
ERROR = {
    "output_type": "error",
    "ename": "NotImplementedError",
    "evalue": "write pick first",
    "traceback": ["NotImplementedError: write pick first"],
}


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, *tags: str, outputs: tuple[dict, ...] = ()) -> dict:
    return {
        "cell_type": "code",
        "metadata": cell_metadata(list(tags)),
        "source": source,
        "outputs": [dict(output) for output in outputs],
    }


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def prose(count: int) -> str:
    return " ".join(["word"] * count)


def notebook(cells: list[dict]) -> dict:
    """Cells as an executed notebook, with ids, counts and metadata as `build` does."""
    count = 0
    for index, cell in enumerate(cells):
        cell.setdefault("id", f"cell-{index:02}")
        if cell["cell_type"] == "code":
            count += 1
            cell.setdefault("execution_count", count)
    return {
        "cells": cells,
        "metadata": dict(METADATA),
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def lesson_cells() -> list[dict]:
    """Lesson 03 in small: every section, with the least that each must hold."""
    exercises = [markdown("## Exercises")]
    for number in (1, 2, 3):
        exercises += [
            markdown(f"### Exercise {number}\n<details>a hint</details>"),
            code(STUB, "raises-exception", outputs=(ERROR,)),
            code(JUDGE, "raises-exception", outputs=(ERROR,)),
        ]
    answers = "\n\n".join(
        f"<details><summary>Interview: why {what}?</summary>\n\n{what}\n\n</details>"
        for what in ("noise", "ranks", "raw logits")
    )
    return [
        markdown("# 03 Sampler\nWhich token comes next? **Time:** 5 minutes."),
        markdown(GOALS),
        markdown("## Setup"),
        code("import torch\ntorch.manual_seed(0);"),
        markdown(f"## Why: the obvious version is wrong\n{prose(150)}"),
        code("print(2 + 2)", outputs=(stream("4\n"),)),
        markdown("## Picture"),
        code("x = 1"),
        markdown("## By hand\nWhich row wins?"),
        code("x = 2"),
        markdown(f"## Build\n{prose(40)}"),
        code("def naive_draw(logits):\n    return 0"),
        markdown("Then it is tidied up."),
        code("x = 5", "skim"),
        code(FINAL, "pkg:folovllm_lite.sampler"),
        markdown("## Prove it"),
        code("from folovllm_lite import checks\nchecks.sampler(draw)"),
        markdown("## Plug in"),
        code("x = 3"),
        markdown("## Cost"),
        code("x = 4"),
        markdown("## In vLLM\n`vllm/v1/sample/sampler.py`"),
        *exercises,
        markdown(f"## Recap\n[next](04_requests_and_outputs.ipynb)\n{answers}"),
    ]


def tour_cells() -> list[dict]:
    """00 in small."""
    return [
        markdown("# FoloVLLM Lite\nWhat runs here? **Time:** 5 minutes."),
        markdown(GOALS),
        markdown("## Setup"),
        code("from folovllm_lite import LLM"),
        markdown("## A story, word by word"),
        code("x = 1"),
        markdown("## Picture: the next token"),
        code("x = 2"),
        markdown("## Recap\n[next](01_configs.ipynb)"),
    ]


def write(path: Path, content: dict) -> Path:
    """Save a notebook and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
