"""The scheduler explorer in JupyterLab: dials move by keyboard, the picture follows."""

from __future__ import annotations

import nbformat
import pytest

from tests.browser import test_lab
from tests.browser.test_lab import lab, page, run_all  # noqa: F401  (fixtures)
from tests.notebooks.course import METADATA

pytestmark = test_lab.pytestmark

CODE = "from folovllm_lite import widgets\nwidgets.SchedulerExplorer(budget=14)"


@pytest.fixture
def explorer(lab, page):  # noqa: F811
    cell = nbformat.v4.new_code_cell(CODE, id="explorer")
    made = dict(nbformat.v4.new_notebook(cells=[dict(cell)], metadata=METADATA))
    run_all(page, lab(made), 1)
    box = page.locator(".folo-explorer").first
    box.locator("svg").wait_for(timeout=60_000)
    box.scroll_into_view_if_needed()
    return box


def says(explorer, words: str) -> None:
    """Wait until the line below the dials says something."""
    explorer.locator("[aria-live]").get_by_text(words).wait_for(timeout=10_000)


def test_turn_the_dials_of_a_scheduler_with_the_keyboard(explorer):
    says(explorer, "11 steps, 0 preemptions.")
    before = explorer.locator("svg").inner_html()
    handles = explorer.locator(".noUi-handle")
    budget, seqs, _, _ = (handles.nth(i) for i in range(4))
    seqs.focus()
    seqs.press("ArrowLeft")
    seqs.press("ArrowLeft")
    says(explorer, "17 steps, 0 preemptions.")
    assert explorer.locator("svg").inner_html() != before
    budget.focus()
    budget.press("ArrowLeft")
    budget.press("ArrowLeft")
    says(explorer, "let prompts be cut")
    cut = explorer.locator("input[type=checkbox]").first
    cut.focus()
    cut.press(" ")
    says(explorer, "steps, 0 preemptions.")
