"""The page of interview questions says what the notebooks say."""

from __future__ import annotations

import re

import pytest

from tests.notebooks import interview
from tests.notebooks.course import COURSE, ROOT
from tests.notebooks.lint import QUESTIONS
from tests.notebooks.made_up import lesson_cells, markdown, notebook, tour_cells, write

RECAP = """## Recap: what stays

<details><summary>not a question of interviews, but folded like one</summary>

Yes.

</details>
<details>
<summary>Interview: why does
<code>n=1</code> differ, as <a href="02_sampling_params.ipynb">02</a> says?</summary>

See [06](06_transformer.ipynb#why), [below](#cost), [this](https://example.org/a.md),
[the log](../docs/dev/milestone_0.md) and ![a map](../docs/images/course_map.svg):

```python
x = rows[0](07_kv_cache.ipynb)  # code is no link
```

So `a[0](b.md)` isn't either.

</details>

**Next:** [04](04_requests_and_outputs.ipynb)"""


@pytest.fixture
def folder(tmp_path):
    """A made-up repository's notebooks, next to which the page's folder will stand."""
    tour = [*tour_cells()[:-1], markdown("## Recap\n[next](01_configs.ipynb)")]
    lesson = lesson_cells()
    lesson[-1] = markdown(RECAP)
    # A fold outside the Recap is a hint, and a section after it is no Recap.
    lesson.append(markdown("## On a GPU\n<details><summary>a hint</summary></details>"))
    write(tmp_path / "notebooks" / "00_tour.ipynb", notebook(tour))
    write(tmp_path / "notebooks" / "03_sampler.ipynb", notebook(lesson))
    return tmp_path / "notebooks"


def test_the_committed_page_is_what_the_notebooks_say():
    """It is read on GitHub, where nobody sees that a notebook has moved on."""
    written = interview.page(interview.lessons())
    committed = interview.PAGE.read_text(encoding="utf-8")
    assert committed == written, (
        f"docs/interview.md isn't what the Recaps say; run: {interview.COMMAND}"
    )


def test_every_lesson_is_on_the_page():
    for path in interview.lessons()[1:]:
        assert len(interview.questions(path)) == QUESTIONS, path.name


def test_the_pages_links_lead_on():
    text = interview.PAGE.read_text(encoding="utf-8")
    planned = {lesson.file for lesson in COURSE}
    anchors = [interview.anchor(line[3:]) for line in re.findall("^## .*", text, re.M)]
    for target in re.findall(r"\]\((?!\w+:)([^)]+)\)", re.sub(r"`[^`]*`", "", text)):
        file, _, place = target.partition("#")
        there = (interview.PAGE.parent / file).exists()
        assert there or file.rpartition("/")[2] in planned, target
        assert file or place in anchors, target


def test_questions_and_answers_are_read_from_the_recap(folder):
    assert interview.questions(folder / "00_tour.ipynb") == []
    first, second = interview.questions(folder / "03_sampler.ipynb")
    assert first == ("Not a question of interviews, but folded like one", "Yes.")
    question, answer = second
    assert question.startswith("Why does <code>n=1</code> differ, as <a href")
    assert answer.startswith("See [06]") and answer.endswith("isn't either.")


@pytest.mark.parametrize(
    "asked, shown",
    [
        ("Interview: why?", "why?"),
        ("Interview: don't ranks change?", "Don't ranks change?"),
        ("Interview: n=4 and temperature=0. Why?", "n=4 and temperature=0. Why?"),
        ("load_state_dict ran. Why?", "load_state_dict ran. Why?"),
        ("vLLM refuses it. Why?", "vLLM refuses it. Why?"),
        ("<code>n</code> is 4. Why?", "<code>n</code> is 4. Why?"),
    ],
)
def test_only_a_word_gets_a_capital(tmp_path, asked, shown):
    recap = f"## Recap\n<details><summary>{asked}</summary>\n\nSo.\n\n</details>"
    path = write(tmp_path / "03_sampler.ipynb", notebook([markdown(recap)]))
    assert interview.questions(path) == [(shown, "So.")]


def test_the_page_from_its_title_to_its_links(folder):
    paths = [folder / "00_tour.ipynb", folder / "03_sampler.ipynb"]
    text = interview.page(paths, folder.parent / "docs")
    assert text.startswith("# Interview questions\n\nThe 2 questions")
    assert interview.COMMAND in text
    assert "- [03 Sampler](#03-sampler)\n\n## 03 Sampler\n" in text
    assert "\nNotebook: [03_sampler.ipynb](../notebooks/03_sampler.ipynb)\n" in text
    assert "Tour" not in text and "a hint" not in text, "what asks nothing is left out"
    assert text.endswith("\n</details>\n") and text.count("<details>") == 2
    for link in (
        '<a href="../notebooks/02_sampling_params.ipynb">',
        "[06](../notebooks/06_transformer.ipynb#why)",
        "[below](../notebooks/03_sampler.ipynb#cost)",
        "[this](https://example.org/a.md)",
        "[the log](dev/milestone_0.md)",
        "![a map](images/course_map.svg)",
        "x = rows[0](07_kv_cache.ipynb)",
        "`a[0](b.md)`",
    ):
        assert link in " ".join(text.split()), link


def test_a_question_that_can_not_be_read_stops_the_page(folder):
    """Left out in silence, nobody would miss it."""
    path = folder / "03_sampler.ipynb"
    cells = lesson_cells()
    cells[-1]["source"] = cells[-1]["source"].replace("</details>", "", 1)
    write(path, notebook(cells))
    with pytest.raises(ValueError, match="03_sampler.ipynb: question 1 of the Recap"):
        interview.page([path], folder)


def test_anchors_are_githubs():
    heading = "05 Model loading: did all of the model arrive?"
    assert interview.anchor(heading) == "05-model-loading-did-all-of-the-model-arrive"
    assert interview.anchor("n=4 - `top_p`, vLLM's") == "n4---top_p-vllms"


def test_the_command_writes_the_file(tmp_path, capsys):
    file = tmp_path / "interview.md"
    assert interview.main([str(file)]) == 0
    assert file.read_bytes() == interview.page(interview.lessons(), tmp_path).encode()
    assert "questions" in capsys.readouterr().out


def test_make_refreshes_the_page_with_the_notebooks():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\nnotebooks: ")[2].partition("\n\n")[0]
    assert interview.COMMAND.removeprefix("python ") in recipe
