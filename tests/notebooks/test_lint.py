"""The repository's notebooks keep the rules, and every rule bites."""

from __future__ import annotations

import re

import pytest

from tests.notebooks.course import NOTEBOOKS, ROOT, cell_metadata, notebooks, read
from tests.notebooks.lint import (
    HYGIENE,
    SECTIONS,
    Cell,
    first_reading,
    lint,
    rounded,
)
from tests.notebooks.made_up import (
    ERROR,
    code,
    lesson_cells,
    markdown,
    notebook,
    prose,
    stream,
    tour_cells,
    write,
)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_notebook_keeps_the_rules(path):
    problems = lint(path)
    assert not problems, "\n" + "\n".join(problems)


def test_a_good_lesson_and_a_good_tour_pass(tmp_path):
    lesson = write(tmp_path / "03_sampler.ipynb", notebook(lesson_cells()))
    assert lint(lesson, long=()) == []
    tour = write(tmp_path / "00_tour.ipynb", notebook(tour_cells()))
    assert lint(tour, long=()) == []


def test_the_tour_may_leave_out_what_a_lesson_needs(tmp_path):
    problems = lint(write(tmp_path / "03_sampler.ipynb", notebook(tour_cells())))
    needed = [section for section in SECTIONS if not section.optional]
    missing = [section.title for section in needed if section.tour is None]
    for title in missing:
        assert any(f"section missing: '## {title}'" in text for text in problems)


def test_a_solution_keeps_the_hygiene_and_needs_no_sections(tmp_path):
    path = tmp_path / "solutions" / "03_sampler.ipynb"
    assert lint(write(path, notebook([code("x = 1")]))) == []
    assert len(lint(write(path, notebook([code("x = 1" + " " * 90)])))) == 1


def find(cells, start):
    """The index of the cell whose source starts so."""
    return next(i for i, cell in enumerate(cells) if cell["source"].startswith(start))


def on_cells(change):
    """A breakage that edits the list of cells before they are numbered."""

    def broken():
        cells = lesson_cells()
        change(cells)
        return notebook(cells)

    return broken


def on_notebook(change):
    """A breakage of the finished notebook."""

    def broken():
        made = notebook(lesson_cells())
        change(made)
        return made

    return broken


def edit(start, old, new):
    def change(cells):
        cell = cells[find(cells, start)]
        assert old in cell["source"]
        cell["source"] = cell["source"].replace(old, new)

    return on_cells(change)


def drop(start):
    return on_cells(lambda cells: cells.pop(find(cells, start)))


def add(cell, before="## Plug in"):
    return on_cells(lambda cells: cells.insert(find(cells, before), cell))


def html(text):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": text}}


VIEW = "application/vnd.jupyter.widget-view+json"
QUESTION = (
    "<details><summary>Interview: why ranks?</summary>\n\nranks\n\n</details>\n\n"
)
SKIM = cell_metadata(["skim"])
IGNORED = "# the clock\n# NBVAL_IGNORE_OUTPUT\nx = 1"

# What is broken, and words of the message that must come of it.
BROKEN = {
    "widget state": (
        on_notebook(lambda made: made["metadata"].update(widgets={})),
        "widget state",
    ),
    "another kernel": (
        on_notebook(
            lambda made: made["metadata"].update(kernelspec={"name": "my-env"})
        ),
        "the metadata isn't",
    ),
    "an old format": (
        on_notebook(lambda made: made.update(nbformat_minor=4)),
        "format isn't 4.5",
    ),
    "timings in a cell": (
        on_notebook(lambda made: made["cells"][3]["metadata"].update(execution={})),
        "metadata ['execution']",
    ),
    "no id": (
        on_notebook(lambda made: made["cells"][3].pop("id")),
        "cell 3 has no id",
    ),
    "one id twice": (
        on_notebook(lambda made: made["cells"][3].update(id="cell-01")),
        "an earlier cell has this id",
    ),
    "a cell not run": (
        on_notebook(lambda made: made["cells"][3].update(execution_count=None)),
        "count None, not 1",
    ),
    "cells run out of order": (
        on_notebook(lambda made: made["cells"][5].update(execution_count=7)),
        "count 7, not 2",
    ),
    "an output of an earlier run": (
        add(code("x", outputs=({**html("1"), "execution_count": 99},))),
        "its output has another count",
    ),
    "an empty cell": (add(code("")), "is empty"),
    "stderr": (
        add(code("x = 1", outputs=(stream("UserWarning: old\n", "stderr"),))),
        "UserWarning: old",
    ),
    "an error nobody announced": (
        add(code("1 / 0", outputs=(ERROR,))),
        "ends in an error",
    ),
    "a stub that raises nothing": (
        add(code("x = 1", "raises-exception")),
        "raises nothing",
    ),
    "a widget view": (
        add(code("x", outputs=({**html("w"), "data": {VIEW: {}}},))),
        "stores a widget view",
    ),
    "a marker with its reason behind it": (
        add(code("# why\n# NBVAL_IGNORE_OUTPUT: the clock\nx = 1")),
        "is no marker",
    ),
    "a marker in lower case": (
        add(code("# why\n# nbval_ignore_output\nx = 1")),
        "is no marker",
    ),
    "a marker after code": (
        add(code("# why\nx = 1  # NBVAL_IGNORE_OUTPUT")),
        "is no marker",
    ),
    "a marker of an older nbval": (
        add(code("# why\n# PYTEST_VALIDATE_IGNORE_OUTPUT\nx = 1")),
        "is no marker",
    ),
    "a blank that isn't there": (
        on_notebook(
            lambda made: made["cells"][find(made["cells"], "# final")]["metadata"][
                "tags"
            ].append("yours:drew")
        ),
        "no function drew in this cell",
    ),
    "a blank outside the final cells": (
        add(code("def f(x):\n    return x", "yours:f")),
        "is no final cell",
    ),
    "a marker without a reason": (
        add(code("# NBVAL_IGNORE_OUTPUT\nx = 1")),
        "say why",
    ),
    "a tag misspelt": (add(code("x = 1", "raise-exception")), "unknown tag"),
    "too much ignored": (
        on_cells(lambda cells: cells.extend(code(IGNORED) for _ in range(3))),
        "3 cells are ignored or skipped",
    ),
    "a remote image in markdown": (
        add(markdown("![map](https://example.org/map.png)")),
        "remote image",
    ),
    "a remote image in HTML": (
        add(markdown('<img width="9" src="//example.org/map.png">')),
        "remote image",
    ),
    "a remote image in an output": (
        add(code("x", outputs=(html("<img src='http://example.org/a.png'>"),))),
        "remote image",
    ),
    "a dead link": (add(markdown("[see](../docs/gone.md)")), "isn't there"),
    "a long line": (add(code("x = 1  # " + "." * 80)), "has 89 columns"),
    "a large notebook": (
        add(code("x", outputs=(stream("." * 400_000),))),
        "at most 400",
    ),
    "no title": (drop("# 03"), "title card"),
    "no minutes": (edit("# 03", "5 minutes", "soon"), "how long it takes"),
    "minutes in another form": (
        edit("# 03", "**Time:**", "Time:"),
        "has no '**Time:**",
    ),
    "minutes that are a guess": (
        edit("# 03", "5 minutes", "25 minutes"),
        "'**Time:** 25 minutes', and it is 3 minutes: 222 words, ",
    ),
    "more than an hour": (
        edit("## Plug in", "## Plug in", "## Plug in\n" + "**Predict** it. " * 60),
        "at most 60 minutes",
    ),
    "a final cell without its mark": (
        edit("# final", "# final: folovllm_lite.sampler\n", ""),
        "doesn't begin with '# final: folovllm_lite.sampler'",
    ),
    "a final cell that claims another module": (
        edit("# final", "lite.sampler", "lite.request"),
        "doesn't begin with",
    ),
    "collapsed code that nobody announces": (
        add(code("x = 8", "skim")),
        "a sentence before it says what it does",
    ),
    "prose to skim": (
        on_cells(lambda cells: cells.append({**markdown("Aside."), "metadata": SKIM})),
        "fold it in <details>",
    ),
    "code to skim that isn't collapsed": (
        on_notebook(
            lambda made: [
                cell["metadata"].pop("jupyter", None) for cell in made["cells"]
            ]
        ),
        "metadata ['tags']",
    ),
    "two goals": (edit("## Goals", "- say what it costs", ""), "lists 2 goals"),
    "six goals": (edit("## Goals", "- draw", "- a\n- b\n- c\n- draw"), "lists 6 goals"),
    "no setup cell": (drop("import torch"), "the cell with the imports"),
    "no seed": (edit("import torch", "torch.manual_seed(0);", ""), "sets the seed"),
    "a short why": (edit("## Why", prose(10), prose(2)), "150 to 300"),
    "a long why": (edit("## Why", prose(150), prose(301)), "150 to 300"),
    "a why that measures nothing": (drop("print(2 + 2)"), "Why measures"),
    "no picture": (drop("x = 1"), "drawn by code"),
    "nothing by hand": (drop("x = 2"), "small enough to print"),
    "no question": (edit("## By hand", "?", "."), "question to predict"),
    "no final cell": (drop("# final"), "Build ends in cells tagged pkg"),
    "a long build cell": (
        edit("def naive", "return 0", "return 0\n" + "x = 1\n" * 30),
        "at most 30",
    ),
    "a build cell without prose": (
        edit("## Build", prose(40), prose(10)),
        "40 to 120",
    ),
    "two build cells in a row": (add(code("x = 7"), "Then it"), "follows 0 words"),
    "nothing proved": (drop("from folovllm_lite import checks\nchecks.s"), "Prove it"),
    "nothing plugged in": (drop("x = 3"), "Plug in has no code"),
    "nothing counted": (drop("x = 4"), "Cost has no code"),
    "no file of vLLM": (edit("## In vLLM", "vllm/", ""), "names the file"),
    "two exercises": (drop("### Exercise 2"), "2 exercises"),
    "no hints": (edit("### Exercise 1", "<details>", ""), "no hints"),
    "no stub": (
        on_notebook(
            lambda made: [
                cell.update(metadata={}, outputs=[])
                for cell in made["cells"]
                if cell["source"].startswith(("def pick", "from folovllm_lite"))
            ]
        ),
        "exercise 1 has no stub",
    ),
    "nobody judges": (
        on_cells(
            lambda cells: [
                cell.update(source="x = 5")
                for cell in cells
                if cell["source"].endswith("checks.sampler(pick)")
            ]
        ),
        "no checks call",
    ),
    "answers in the open": (edit("## Recap", "<details>", ""), "0 folded answers"),
    "two questions": (edit("## Recap", QUESTION, ""), "2 folded answers"),
    "four questions": (edit("## Recap", QUESTION, 2 * QUESTION), "4 folded answers"),
    "a question without an answer": (
        edit("## Recap", "\n\nranks", ""),
        "question 2 has no answer that can be read",
    ),
    "a fold without a question": (
        edit("## Recap", "<summary>Interview: why ranks?</summary>", ""),
        "question 2 has no answer that can be read",
    ),
    "a fold that doesn't end": (
        edit("## Recap", "raw logits\n\n</details>", "raw logits"),
        "question 3 has no answer that can be read",
    ),
    "an answer that GitHub would show raw": (
        edit("## Recap", "</summary>\n\nnoise", "</summary>\nnoise"),
        "question 1 has no answer that can be read",
    ),
    "Markdown in a summary": (
        edit("## Recap", "why ranks", "why `ranks`"),
        "question 2 has Markdown in its <summary>",
    ),
    "no way on": (edit("## Recap", ".ipynb", ""), "links to the next"),
    "a section of its own": (add(markdown("## By the way")), "is no section"),
    "sections swapped": (
        on_cells(
            lambda cells: cells.insert(
                find(cells, "## Goals"), cells.pop(find(cells, "## Cost"))
            )
        ),
        "comes after",
    ),
    "a section missing": (drop("## Cost"), "section missing: '## Cost'"),
    "skipped outside its section": (
        add(code("x = 1", "nbval-skip")),
        "outside 'On a GPU'",
    ),
    "an empty GPU section": (
        on_cells(lambda cells: cells.append(markdown("## On a GPU"))),
        "On a GPU has no code",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rule_bites(tmp_path, name):
    make, message = BROKEN[name]
    problems = lint(write(tmp_path / "03_sampler.ipynb", make()), long=())
    assert any(message in problem for problem in problems), problems
    assert all(problem.startswith("03_sampler.ipynb: ") for problem in problems)


def test_a_lesson_that_keeps_the_rules_leaves_the_list(tmp_path):
    path = write(tmp_path / "03_sampler.ipynb", notebook(lesson_cells()))
    (problem,) = lint(path, long={"03_sampler.ipynb"})
    assert "which keeps the rules: remove the entry" in problem
    made = notebook(lesson_cells())
    made["cells"][0]["source"] = "# 03\n**Time:** 25 minutes"
    assert lint(write(path, made), long={"03_sampler.ipynb"}) == []


def test_the_readme_tells_the_hours_of_all_cards():
    """It said 10 hours of exercises when the cards had come to 14."""
    reading = writing = 0
    for path in NOTEBOOKS.glob("*.ipynb"):
        card = " ".join(read(path)["cells"][0]["source"].split())
        reading += int(re.search(r"\*\*Time:\*\* (\d+) minutes", card)[1])
        own = re.search(r"about (\d+) (?:more )?for \*your turn\*", card)
        writing += int(own[1]) if own else 0
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.search(
        r"takes about (\d+) hours, and what you write yourself about (\d+) more", text
    )
    assert [int(told[1]), int(told[2])] == [
        pytest.approx(minutes / 60, abs=0.75) for minutes in (reading, writing)
    ]


def test_what_a_first_reader_meets():
    def minutes(*cells):
        return first_reading([Cell(i, raw) for i, raw in enumerate(cells)]).minutes

    assert minutes(markdown(prose(240))) == 2
    assert minutes(code("x = 1\n\n" * 24)) == 2, "blank lines take no time"
    assert minutes(code("x = 1\n" * 24, "skim")) == 0
    assert minutes(markdown("**Predict:** a < b, or a > b?")) == 1 + 6 / 120
    folded = f"<details><summary>Hint</summary>\n\n{prose(99)}\n\n</details>"
    assert minutes(markdown(folded)) == 0
    for apart in ("## Exercises", "## On a GPU: who waits?"):
        cells = markdown(f"{apart}\n{prose(240)}"), code("x = 1\n" * 24)
        assert minutes(*cells) == 0
        assert minutes(*cells, markdown(f"## Recap\n{prose(240)}")) == 2
    assert [rounded(x) for x in (0.1, 5, 5.1, 59)] == [5, 5, 10, 60]


def test_every_rule_has_a_breakage():
    """So that a rule added later comes with the notebook that it refuses."""
    import ast
    import inspect

    from tests.notebooks import lint as module

    tree = ast.parse(inspect.getsource(module))
    yields = sum(isinstance(node, ast.Yield) for node in ast.walk(tree))
    assert len(BROKEN) >= yields, f"{yields} messages, {len(BROKEN)} breakages"
    assert len(HYGIENE) == 8


def test_a_name_outside_the_course(tmp_path):
    (problem,) = lint(write(tmp_path / "99_extra.ipynb", notebook([code("x = 1")])))
    assert "no notebook of the course has this name" in problem


def test_tour_setup_needs_imports(tmp_path):
    cells = [cell for cell in tour_cells() if "import" not in cell["source"]]
    path = write(tmp_path / "00_tour.ipynb", notebook(cells))
    (problem,) = lint(path, long=())
    assert "the cell with the imports" in problem
