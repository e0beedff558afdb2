"""The command that syncs, executes and saves notebooks."""

from __future__ import annotations

import json
import os

import pytest

from tests.notebooks import build
from tests.notebooks.course import METADATA, read
from tests.notebooks.drift import cell_drift
from tests.notebooks.lint import lint
from tests.notebooks.made_up import code, markdown, notebook, stream, write


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """`main` sets the notebooks' environment; take it back afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


MODULE = '''import torch


@torch.no_grad()
def draw(logits):
    """Draw."""
    return logits.argmax()  # the largest


LIMIT = 4
'''


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "folovllm_lite"
    folder.mkdir()
    (folder / "sampler.py").write_text(MODULE, encoding="utf-8")
    return folder


def test_sync_fills_stubs_and_keeps_the_rest(package):
    stub = "import torch\n\n# the final form\ndef draw(): ...\n\n\nLIMIT = 0"
    made = notebook([code(stub, "pkg:folovllm_lite.sampler"), code("LIMIT = 0")])
    assert list(cell_drift(made, package))
    build.sync(made, package)
    assert list(cell_drift(made, package)) == []
    assert made["cells"][0]["source"] == (
        "# final: folovllm_lite.sampler\nimport torch\n\n# the final form\n"
        + MODULE.split("\n\n\n", 1)[1].rstrip()
    )
    again = json.loads(json.dumps(made))
    build.sync(again, package)
    assert again == made, "the mark is written once"
    assert made["cells"][1]["source"] == "LIMIT = 0"


ENGINE = '''@dataclass
class Engine:
    """Steps.

    Args:
        limit: of steps.
    """

    limit: int
    # counts
    done: int = 0

    @property
    def finished(self) -> bool:
        """Whether
        all is done.
        """
        return self.done == self.limit

    # a step
    def step(self):
        self.done += 1

    def note(self):
        return """two
        lines"""


def run(): ...
'''

PARTS = [
    """class Engine:
    done: int
    limit: int
""",
    """def step(self): ...""",
    """@adds_to(Engine)
def step(self): ...


@adds_to(Engine)
def finished(self): ...""",
]


def test_a_class_in_parts_is_synced_method_by_method(package):
    (package / "sampler.py").write_text(ENGINE, encoding="utf-8")
    first, _, rest = PARTS
    tag = "pkg:folovllm_lite.sampler"
    made = notebook([code(first, tag), code(rest, tag), code(first)])
    build.sync(made, package)
    mark = "# final: folovllm_lite.sampler\n"
    assert made["cells"][0]["source"] == mark + ENGINE.partition("\n\n    @prop")[0]
    assert made["cells"][1]["source"] == mark + (
        "@adds_to(Engine)\ndef step(self):\n    self.done += 1\n\n\n"
        "@adds_to(Engine)\n@property\ndef finished(self) -> bool:\n"
        '    """Whether\n    all is done.\n    """\n'
        "    return self.done == self.limit"
    )
    assert list(cell_drift(made, package)) == []
    assert made["cells"][2]["source"] == first, "no final cell: left alone"
    # With the rest in the first part, nothing is lost; and a change arrives.
    made["cells"][0]["source"] += "\n\n    def note(self): ..."
    (package / "sampler.py").write_text(
        ENGINE.replace("+= 1", "+= 2"), encoding="utf-8"
    )
    build.sync(made, package)
    assert 'return """two\n        lines"""' in made["cells"][0]["source"]
    assert "self.done += 2" in made["cells"][1]["source"]
    assert list(cell_drift(made, package)) == []


def test_a_method_that_indentation_would_change_is_refused(package):
    (package / "sampler.py").write_text(ENGINE, encoding="utf-8")
    stub = "@adds_to(Engine)\ndef note(self): ..."
    made = notebook([code(stub, "pkg:folovllm_lite.sampler")])
    with pytest.raises(ValueError, match="note holds a string of several lines"):
        build.sync(made, package)


def test_minutes_go_into_the_card(tmp_path, capsys):
    cells = [markdown("# 03\n**Time:** 45\nminutes."), markdown("**Predict** it. " * 7)]
    path = write(tmp_path / "03_sampler.ipynb", notebook(cells))
    solution = write(tmp_path / "solutions" / "03_sampler.ipynb", notebook(cells))
    before = solution.read_bytes()
    assert build.main(["--minutes", str(path), str(solution)]) == 0
    title = read(path)["cells"][0]["source"]
    assert title == "# 03\n**Time:** 10\nminutes."
    assert capsys.readouterr().out == (
        "03_sampler.ipynb: 7 minutes: 17 words, 0 lines of code, 7 predictions\n"
    )
    assert solution.read_bytes() == before


def test_tidy_gives_ids_and_drops_what_varies():
    cells = [
        {**code("x", outputs=(stream("a"), stream("b"))), "execution_count": 7},
        {**markdown("text"), "metadata": {"trusted": True}},
        {**code("y"), "metadata": {"tags": ["skim"], "jupyter": {}}},
    ]
    cells[0]["outputs"].append(
        {
            "output_type": "execute_result",
            "execution_count": 7,
            "metadata": {},
            "data": {build.WIDGET_VIEW: {"model_id": "4f2a"}, "text/plain": "Box()"},
        }
    )
    made = {"cells": cells, "metadata": {"widgets": {}}, "nbformat": 4}
    build.tidy(made)
    assert [cell["id"] for cell in cells] == ["cell-00", "cell-01", "cell-02"]
    assert cells[2]["metadata"]["jupyter"] == {"source_hidden": True}
    assert cells[1]["metadata"] == {}
    text, result = cells[0]["outputs"]
    assert text["text"] == "ab"
    assert result["data"] == {"text/plain": "Box()"}
    assert cells[0]["execution_count"] == result["execution_count"] == 1
    assert made["metadata"] == METADATA
    # A cell put in front gets an id that no other cell has; the others keep theirs.
    cells.insert(0, markdown("new"))
    build.tidy(made)
    ids = [cell["id"] for cell in cells]
    assert ids[1:] == ["cell-00", "cell-01", "cell-02"] and len(set(ids)) == 4


RUNS = """import os
import sys
print(os.environ["PYTHONHASHSEED"], hash("word") == hash("word"))
sys.stdout.flush()
print(os.path.basename(os.getcwd()))"""
WIDGET = "import ipywidgets\nipywidgets.IntSlider(3)"


def test_a_second_run_leaves_no_difference(tmp_path, capsys):
    cells = [
        code(RUNS),
        code(WIDGET),
        code("'on a GPU'", "nbval-skip", outputs=(stream("H100, 2026-01-01\n"),)),
        code("1 / 0", "raises-exception"),
    ]
    path = write(tmp_path / "solutions" / "03_sampler.ipynb", notebook(cells))
    assert build.main([str(path)]) == 0
    first = path.read_bytes()
    made = json.loads(first)
    texts = ["".join(c["outputs"][0].get("text", "")) for c in made["cells"]]
    assert texts[0] == "0 True\nsolutions\n"
    assert texts[2] == "H100, 2026-01-01\n", "a skipped cell keeps its output"
    assert "IntSlider" in str(made["cells"][1]["outputs"][0]["data"]["text/plain"])
    assert lint(path) == []
    assert build.main([str(path)]) == 0
    assert path.read_bytes() == first
    assert capsys.readouterr().err == ""


def test_a_failing_notebook_is_left_as_it_was(tmp_path, capsys):
    made = notebook([code("print('no count yet')"), code("1 / 0")])
    path = write(tmp_path / "03_sampler.ipynb", made)
    before = path.read_bytes()
    assert build.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err
