"""`make lab` opens copies: what a learner changed is kept, whatever the course does."""

import json

import pytest

from folovllm_lite import lab
from folovllm_lite.__main__ import main
from tests.notebooks.course import NOTEBOOKS, ROOT
from tests.notebooks.made_up import code, markdown, notebook

NAME = "03_sampler.ipynb"
SOLUTION = "solutions/03_sampler.ipynb"


def write(folder, *cells, name=NAME):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook(list(cells))), encoding="utf-8")
    return path


@pytest.fixture
def course(tmp_path):
    """A course of a tour, a lesson and its solution."""
    folder = tmp_path / "notebooks"
    write(folder, code("x = 1"), name="00_tour.ipynb")
    write(folder, markdown("# 03"), code("x = 1"))
    write(folder, code("x = 2"), name=SOLUTION)
    return folder


@pytest.fixture
def mine(course, tmp_path):
    """The learner's copies, just made."""
    copies = tmp_path / "my"
    lab.update(course, copies)
    return copies


def edit(path, *sources):
    """What JupyterLab writes when a learner types: other cells, counts, metadata."""
    made = json.loads(path.read_text(encoding="utf-8"))
    made["metadata"]["widgets"] = {"version": 1}
    cells = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    for cell, source in zip(cells, sources, strict=True):
        cell.update(source=source.splitlines(True), execution_count=7)
    path.write_text(json.dumps(made, indent=1), encoding="utf-8")


def test_the_first_start_copies_lessons_and_solutions(course, tmp_path):
    done = lab.update(course, tmp_path / "my")
    assert done.made == ["00_tour.ipynb", NAME, SOLUTION]
    for name in done.made:
        assert (tmp_path / "my" / name).read_bytes() == (course / name).read_bytes()
    (line,) = lab.report(done, tmp_path / "my")
    assert "copy of 2 notebooks and 1 solution:" in line


def test_what_is_made_is_counted(tmp_path):
    """After a deletion it once spoke of 1 notebooks, or of 0 and their solutions."""
    for made, words in (([NAME], "copy of 1 notebook:"), ([SOLUTION], "1 solution:")):
        (line,) = lab.report(lab.Update(made, [], []), tmp_path)
        assert words in line


def test_a_second_start_changes_nothing(course, mine):
    before = {path: path.read_bytes() for path in mine.rglob("*.ipynb")}
    assert lab.update(course, mine) == lab.Update([], [], [])
    assert {path: path.read_bytes() for path in mine.rglob("*.ipynb")} == before
    assert lab.report(lab.Update([], [], [])) == []


def test_what_the_learner_changed_stays(course, mine):
    edit(mine / NAME, "x = 'mine'")
    kept = (mine / NAME).read_bytes()
    assert lab.update(course, mine) == lab.Update([], [], [])
    write(course, markdown("# 03"), code("x = 10"))
    for _ in range(2):  # it is said until the learner has decided
        done = lab.update(course, mine)
        assert done == lab.Update([], [], [NAME])
        assert (mine / NAME).read_bytes() == kept
    (line,) = lab.report(done, mine)
    assert "newer 03_sampler" in line and "make again NOTEBOOK=03_sampler" in line


def test_what_to_type_names_the_folder_and_suits_the_system(tmp_path, monkeypatch):
    copies = tmp_path / "my copies"
    assert lab.typed("again", notebook="03") == "make again NOTEBOOK=03"
    assert lab.typed("workbook", copies) == f"make workbook COPIES='{copies}'"
    monkeypatch.setattr(lab.sys, "platform", "win32")  # without make
    assert lab.typed("workbook") == "python -m folovllm_lite workbook"
    assert lab.typed("again", copies, "03") == (
        f'python -m folovllm_lite lab --again 03 --folder "{copies}"'
    )


@pytest.mark.parametrize("ran", [False, True])
def test_a_newer_version_comes_where_nothing_was_changed(course, mine, ran):
    if ran:  # outputs and counts are no change, nor is the cell that running adds
        edit(mine / NAME, "x = 1")
        made = json.loads((mine / NAME).read_text(encoding="utf-8"))
        made["cells"].append(code("") | {"id": "added"})
        (mine / NAME).write_text(json.dumps(made), encoding="utf-8")
    write(course, markdown("# 03"), code("x = 10"))
    assert lab.update(course, mine).renewed == [NAME]
    assert (mine / NAME).read_bytes() == (course / NAME).read_bytes()


def test_a_notebook_that_is_new_in_the_course_is_copied(course, mine):
    write(course, code("y"), name="04_requests.ipynb")
    assert lab.update(course, mine).made == ["04_requests.ipynb"]


def test_outputs_that_are_new_in_the_course_are_copied(course, mine):
    made = json.loads((course / NAME).read_text(encoding="utf-8"))
    made["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "x", "text": "1"}]
    (course / NAME).write_text(json.dumps(made), encoding="utf-8")
    lab.update(course, mine)
    assert (mine / NAME).read_bytes() == (course / NAME).read_bytes()


def test_a_learner_who_came_to_the_same_is_not_told_of_it(course, mine):
    edit(mine / NAME, "x = 10")
    write(course, markdown("# 03"), code("x = 10"))
    assert lab.update(course, mine).behind == []
    write(course, markdown("# 03"), code("x = 11"))
    assert lab.update(course, mine).renewed == [NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"cells": [1]}'])
def test_a_copy_that_is_no_notebook_is_kept(course, mine, text):
    (mine / NAME).write_bytes(text.encode("latin-1"))
    write(course, markdown("# 03"), code("x = 10"))
    assert lab.update(course, mine).behind == [NAME]
    assert (mine / NAME).read_bytes() == text.encode("latin-1")


def test_a_copy_that_is_no_notebook_is_put_aside(course, tmp_path):
    """Without a record it once was taken for what the course had, and was lost."""
    broken = tmp_path / "my" / NAME
    broken.parent.mkdir()
    broken.write_text("{cut off", encoding="utf-8")
    aside = lab.begin_again("03", course, tmp_path / "my")
    assert aside.read_text(encoding="utf-8") == "{cut off"


@pytest.mark.parametrize("record", ["", "[]", '{"03_sampler.ipynb": 1}', None])
def test_without_a_record_nothing_is_written_over(course, mine, record):
    edit(mine / NAME, "x = 'mine'")
    kept = (mine / NAME).read_bytes()
    if record is None:
        (mine / ".course.json").unlink()
    else:
        (mine / ".course.json").write_text(record, encoding="utf-8")
    write(course, markdown("# 03"), code("x = 10"))
    lab.update(course, mine)
    lab.update(course, mine)
    assert (mine / NAME).read_bytes() == kept


def test_a_notebook_can_be_begun_again_and_nothing_is_lost(course, mine):
    for turn in (1, 2):
        edit(mine / NAME, f"x = 'mine, {turn}'")
        kept = (mine / NAME).read_bytes()
        aside = lab.begin_again("3", course, mine)
        assert aside.name == f"03_sampler-old-{turn}.ipynb"
        assert aside.read_bytes() == kept
        assert (mine / NAME).read_bytes() == (course / NAME).read_bytes()
    assert lab.begin_again("03", course, mine) is None, "there was nothing to keep"
    edit(mine / NAME, "x = 1")  # only run
    assert lab.begin_again("03", course, mine) is None
    assert lab.find("03", mine) == NAME
    assert lab.update(course, mine) == lab.Update([], [], [])


def test_beginning_again_takes_the_newer_version(course, mine):
    edit(mine / NAME, "x = 'mine'")
    write(course, markdown("# 03"), code("x = 10"))
    assert lab.begin_again("03", course, mine).exists()
    assert lab.update(course, mine).behind == []


@pytest.mark.parametrize(
    "name",
    [
        "3", "03", "03_sampler", "03_sampler.ipynb", "my/03_sampler.ipynb",
        "notebooks/03_sampler", "./my/03_sampler.ipynb",
    ],
)  # fmt: skip
def test_a_notebook_is_found_by_what_a_learner_may_type(course, name):
    assert lab.find(name, course) == NAME
    assert lab.find("solutions/3", course) == SOLUTION


@pytest.mark.parametrize("name", ["", "9", "sampler", "/", "0"])
def test_a_name_of_no_notebook_lists_those_that_are(course, name):
    if name == "0":
        assert lab.find(name, course) == "00_tour.ipynb"
        return
    with pytest.raises(lab.LabError, match="there are 00_tour, 03_sampler"):
        lab.find(name, course)


def test_without_the_repository_it_says_where_the_notebooks_are(tmp_path):
    with pytest.raises(lab.LabError, match="come with the repository"):
        lab.update(tmp_path / "nowhere", tmp_path / "my")
    assert not (tmp_path / "my").exists()


@pytest.mark.parametrize("command", [["lab", "--again", "03"], ["workbook"]])
@pytest.mark.parametrize(
    "named", ["", " ", ".", "notebooks", "notebooks/../notebooks/x"]
)
def test_the_course_itself_is_no_place_for_copies(
    capsys, monkeypatch, tmp_path, command, named
):
    """COPIES=notebooks once wrote blanks over the course; COPIES= filled the clone."""
    clone = tmp_path / "clone"
    course = clone / "notebooks"
    before = write(course, code("x = 1")).read_bytes()
    monkeypatch.setattr(lab, "ROOT", clone)
    monkeypatch.setattr(lab, "COURSE", course)
    monkeypatch.chdir(clone)
    option = "--out" if command == ["workbook"] else "--folder"
    assert main([*command, option, named]) == 2
    words = capsys.readouterr().err
    assert ("has no name" if not named.strip() else "holds the course itself") in words
    assert (course / NAME).read_bytes() == before
    assert sorted(path.name for path in clone.rglob("*")) == [NAME, "notebooks"]


def test_a_home_is_meant_by_a_tilde(monkeypatch, tmp_path):
    """zsh leaves COPIES=~/my as it is, and a folder called ~ is a trap for rm."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert lab.folder("~/my") == tmp_path / "my"
    with pytest.raises(lab.LabError, match="~nosuchuser"):
        lab.folder("~nosuchuser/my")


def test_a_folder_that_cannot_be_written(course, tmp_path):
    (tmp_path / "my").write_text("a file", encoding="utf-8")
    with pytest.raises(lab.LabError, match="can't write .*my/00_tour.ipynb"):
        lab.update(course, tmp_path / "my")


def test_copies_are_trusted_until_somebody_else_could_have_written_them(
    course, mine, monkeypatch, tmp_path
):
    from nbformat import read
    from nbformat.sign import NotebookNotary

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    (mine / SOLUTION).write_bytes((mine / NAME).read_bytes() + b"\n")
    lab.trust(course, mine)
    notary = NotebookNotary()
    assert notary.check_signature(read(mine / NAME, as_version=4))
    edit(mine / NAME, "x = 'from a stranger'")
    lab.trust(course, mine)
    assert not notary.check_signature(read(mine / NAME, as_version=4))


def test_links_lead_to_the_same_places_from_a_copy():
    """The copies stand beside the notebooks, and their solutions below them."""
    assert lab.COURSE == NOTEBOOKS and lab.COPIES.parent == NOTEBOOKS.parent
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert f"/{lab.COPIES.name}/" in ignored


def test_jupyterlab_opens_the_copy_and_prints_its_address():
    words = lab.arguments("03_sampler.ipynb", more=["--no-browser"])
    assert f"--ServerApp.root_dir={ROOT}" in words
    assert "--LabApp.default_url=/lab/tree/my/03_sampler.ipynb" in words
    assert "--ServerApp.answer_yes=True" in words and words[-1] == "--no-browser"


def test_copies_elsewhere_are_the_whole_of_what_is_shown(tmp_path):
    words = lab.arguments("a b.ipynb", tmp_path)
    assert f"--ServerApp.root_dir={tmp_path.resolve()}" in words
    assert "--LabApp.default_url=/lab/tree/a%20b.ipynb" in words
