"""The block explorer in JupyterLab: dials move by keyboard, and the picture follows."""

from __future__ import annotations

import nbformat
import pytest

from tests.browser import test_lab
from tests.browser.test_lab import lab, page, run_all  # noqa: F401  (fixtures)
from tests.notebooks.course import METADATA

pytestmark = test_lab.pytestmark

CODE = "from folovllm_lite import widgets\nwidgets.BlockExplorer()"


@pytest.fixture
def explorer(lab, page):  # noqa: F811
    cell = nbformat.v4.new_code_cell(CODE, id="explorer")
    made = dict(nbformat.v4.new_notebook(cells=[dict(cell)], metadata=METADATA))
    run_all(page, lab(made), 1)
    box = page.locator(".folo-explorer").first
    box.locator("svg").wait_for(timeout=60_000)
    box.scroll_into_view_if_needed()
    return box


def shows(explorer, words: str) -> None:
    """Wait until the picture says something."""
    explorer.locator("svg").get_by_text(words).first.wait_for(timeout=10_000)


def test_step_through_a_pool_with_the_keyboard(explorer):
    shows(explorer, "after step 1 of")
    handles = explorer.locator(".noUi-handle")
    step, blocks, _, completions, _ = (handles.nth(i) for i in range(5))
    step.focus()
    step.press("ArrowRight")
    shows(explorer, "after step 2 of")
    shows(explorer, "0: A A2")  # a shared block names both of its holders
    shows(explorer, "blocks moved: copied")
    completions.focus()
    completions.press("ArrowLeft")
    explorer.locator("[aria-live]").get_by_text("blocks copied: 0").wait_for()
    shows(explorer, "0: A")
    blocks.focus()
    for _ in range(9):
        blocks.press("ArrowLeft")
    explorer.locator("[aria-live]").get_by_text("allow more").wait_for()
    shows(explorer, "after step")  # the last picture stays
