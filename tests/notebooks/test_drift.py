"""Notebooks and package hold the same code, in the order of the course."""

from __future__ import annotations

import pytest

from tests.notebooks.course import COURSE, notebooks
from tests.notebooks.drift import drift, imported_modules, taught_twice, untaught
from tests.notebooks.made_up import code, notebook, write

SAMPLER = '''"""Module."""

import torch

EPSILON: float = 1e-5
_hidden = 1


@torch.no_grad()
def draw(logits):
    """Draw."""
    # a comment in the package
    return logits.argmax()


class Row:
    """A row."""
'''


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "folovllm_lite"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "sampler.py").write_text(SAMPLER, encoding="utf-8")
    (folder / "request.py").write_text("class Request: ...\n", encoding="utf-8")
    (folder / "config.py").write_text("class ModelConfig: ...\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_notebook_agrees_with_the_package(path):
    problems = drift(path)
    assert not problems, "\n" + "\n".join(problems)


def test_every_public_name_is_taught_or_accounted_for():
    problems = untaught()
    assert not problems, "\n" + "\n".join(problems)


def drift_of(tmp_path, package, *cells, name="03_sampler.ipynb"):
    return drift(write(tmp_path / name, notebook(list(cells))), package)


def test_equal_code_passes_whatever_its_comments(tmp_path, package):
    source = SAMPLER.replace("# a comment in the package", "# another")
    source = source.replace('"""Module."""\n', "")
    cell = code(source, "pkg:folovllm_lite.sampler")
    assert drift_of(tmp_path, package, cell) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("argmax", "argmin", "defines draw otherwise"),
        ('"""Draw."""', '"""Draws."""', "defines draw otherwise"),
        ("@torch.no_grad()\n", "", "defines draw otherwise"),
        ("1e-5", "1e-6", "defines EPSILON otherwise"),
        (": float", "", "defines EPSILON otherwise"),
        ("class Row", "class Line", "defines Line, which sampler doesn't have"),
        ("import torch", "import torch\nprint(1)", "does more than define"),
    ],
)
def test_drift_is_seen(tmp_path, package, old, new, message):
    source = SAMPLER.replace('"""Module."""\n', "").replace(old, new)
    cell = code(source, "pkg:folovllm_lite.sampler")
    (problem,) = drift_of(tmp_path, package, cell)
    assert message in problem


def test_a_tag_for_no_module(tmp_path, package):
    (problem,) = drift_of(tmp_path, package, code("x = 1", "pkg:folovllm_lite.smapler"))
    assert "no such module" in problem


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import folovllm_lite.request as r", {"request"}),
        ("from folovllm_lite.request import Request", {"request"}),
        ("from folovllm_lite import request", {"request"}),
        ("from folovllm_lite import Request", {"request"}),
        ("import folovllm_lite as f\nf.Request()", {"request"}),
        ("import folovllm_lite\nfolovllm_lite.request.Request", {"request"}),
        ("def later():\n    from folovllm_lite import Request", {"request"}),
        ("%matplotlib inline\nimport torch\ntorch.argmax?", set()),
    ],
)
def test_imports_are_seen_by_any_spelling(package, source, modules):
    assert set(imported_modules(source, package)) - {""} == modules


def test_a_lesson_imports_only_what_came_before(tmp_path, package):
    later = code("from folovllm_lite import Request")
    (problem,) = drift_of(tmp_path, package, later)
    assert "folovllm_lite.request, which is taught in 04" in problem
    own = code("from folovllm_lite import draw")
    assert drift_of(tmp_path, package, own)
    assert drift_of(tmp_path, package, own, name="solutions/03_sampler.ipynb") == []
    assert drift_of(tmp_path, package, later, name="solutions/03_sampler.ipynb")
    (problem,) = drift_of(tmp_path, package, code("import folovllm_lite.bench"))
    assert "never taught" in problem
    earlier = code("from folovllm_lite import ModelConfig, checks, viz, widgets")
    assert drift_of(tmp_path, package, earlier) == []
    assert drift_of(tmp_path, package, later, name="00_tour.ipynb") == []


PENDING = {"config": 1, "sampler": 3, "request": 4}


def test_untaught_names(tmp_path, package):
    folder = tmp_path / "notebooks"
    assert untaught(folder, package, PENDING) == []
    by_name = {"config": 1, "request": 4, "sampler.Row": 3, "sampler.draw": 3}
    (problem,) = untaught(folder, package, by_name)
    assert "sampler.EPSILON is taught in no notebook" in problem
    (problem,) = untaught(folder, package, PENDING | {"gone": "a reason"})
    assert "UNTAUGHT names gone" in problem
    (problem,) = untaught(folder, package, PENDING | {"config": 2})
    assert "02_sampling_params.ipynb, which doesn't teach it" in problem


def test_a_lesson_that_lands_empties_the_list(tmp_path, package):
    """The list can't grow stale: once 03 is written, its entry must go."""
    folder = tmp_path / "notebooks"
    part = SAMPLER.partition("class Row")[0].replace('"""Module."""\n', "")
    cell = code(part, "pkg:folovllm_lite.sampler")
    write(folder / "03_sampler.ipynb", notebook([cell]))
    (problem,) = untaught(folder, package, PENDING)
    assert "03_sampler.ipynb, now written" in problem
    (problem,) = untaught(folder, package, {"config": 1, "request": 4})
    assert "sampler.Row is taught in no notebook" in problem
    reason = {"config": 1, "request": 4, "sampler.Row": "a plain record"}
    assert untaught(folder, package, reason) == []


ENGINE = '''@dataclass
class Engine:
    """Steps."""

    limit: int
    done: int = 0

    def step(self):
        """One step.

        It counts.
        """
        self.done += 1

    def _note(self):
        return self.done
'''
FIRST = ENGINE.partition("\n    def")[0]
STEP = '''@adds_to(Engine)
def step(self):
    """One step.

    It counts.
    """
    self.done += 1  # a comment
'''
NOTE = "@adds_to(Engine)\ndef _note(self):\n    return self.done\n"


def in_parts(tmp_path, package, *sources):
    """Problems of a lesson whose final cells are these, and what isn't taught."""
    (package / "sampler.py").write_text(ENGINE, encoding="utf-8")
    folder = tmp_path / "notebooks"
    cells = [code(source, "pkg:folovllm_lite.sampler") for source in sources]
    path = write(folder / "03_sampler.ipynb", notebook(cells))
    rest = {"config": 1, "request": 4}
    return [
        *drift(path, package),
        *untaught(folder, package, rest),
        *taught_twice(folder),
    ]


@pytest.mark.parametrize(
    "sources",
    [
        (ENGINE,),
        (FIRST, STEP, NOTE),
        (FIRST, STEP + NOTE),
        (FIRST + "\n    def _note(self):\n        return self.done\n", STEP),
    ],
)
def test_a_class_may_come_in_parts(tmp_path, package, sources):
    assert in_parts(tmp_path, package, *sources) == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((FIRST, STEP), "Engine._note is taught in no notebook"),
        (
            (FIRST.replace("    done: int = 0\n", ""), STEP, NOTE),
            "Engine.done is taught",
        ),
        ((FIRST, STEP, STEP, NOTE), "Engine.step stands in 03_sampler.ipynb, cell 1"),
        ((ENGINE, NOTE), "Engine._note stands in 03_sampler.ipynb, cell 0"),
        ((ENGINE, FIRST), "sampler.Engine stands in"),
        ((FIRST, STEP.replace("+=", "-="), NOTE), "defines Engine.step otherwise"),
        ((FIRST, STEP.replace("It", "That"), NOTE), "defines Engine.step otherwise"),
        ((FIRST.replace("Steps", "Stops"), STEP, NOTE), "defines Engine otherwise"),
        ((FIRST.replace('"""Steps."""', ""), STEP, NOTE), "defines Engine otherwise"),
        ((FIRST.replace("@dataclass", ""), STEP, NOTE), "defines Engine otherwise"),
        ((FIRST, STEP, NOTE.replace("_note", "_not")), "_not, which sampler doesn't"),
        (
            (FIRST.replace("    limit: int\n", "") + "    limit: int\n", STEP, NOTE),
            "in another order",
        ),
    ],
)
def test_a_part_that_differs_is_seen(tmp_path, package, sources, message):
    problems = in_parts(tmp_path, package, *sources)
    assert any(message in problem for problem in problems), problems


def test_a_method_may_be_left_to_a_later_lesson(tmp_path, package):
    assert in_parts(tmp_path, package, FIRST, NOTE)
    folder = tmp_path / "notebooks"
    rest = {"config": 1, "request": 4}
    assert untaught(folder, package, rest | {"sampler.Engine.step": "a reason"}) == []
    (problem,) = untaught(folder, package, rest | {"sampler.Engine.step": 13})
    assert "13_chunked_prefill.ipynb, which doesn't teach it" in problem
    (problem,) = untaught(folder, package, rest | {"sampler.Engine.step": 3})
    assert "03_sampler.ipynb, now written" in problem


def test_what_is_still_to_come_may_not_be_there_yet(tmp_path, package):
    folder = tmp_path / "notebooks"
    planned = PENDING | {"gptq": 15, "sampler.later": 3}
    assert untaught(folder, package, planned) == []
    (problem,) = untaught(folder, package, planned | {"gptq.pack": "a reason"})
    assert "UNTAUGHT names gptq.pack" in problem


def test_the_repository_teaches_everything_once():
    problems = taught_twice()
    assert not problems, "\n" + "\n".join(problems)


def test_the_course_is_numbered_in_order():
    assert [lesson.number for lesson in COURSE] == list(range(len(COURSE)))
