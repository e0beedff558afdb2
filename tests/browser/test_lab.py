"""The first thing a learner does: `make lab`, then Run All in the tour."""

from __future__ import annotations

from tests.browser.jupyterlab import (
    code_cells,
    figure_sizes,
    needs_a_browser,
    outputs,
    run_all,
)
from tests.notebooks.course import NOTEBOOKS, read

pytestmark = needs_a_browser


def test_the_tour_runs_from_top_to_bottom(lab, page):
    """A story is written, a figure is drawn, and nothing complains."""
    path = NOTEBOOKS / "00_tour.ipynb"
    notebook = read(path)
    run_all(page, lab(notebook), code_cells(notebook))
    stderr = page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
    assert stderr.all_inner_texts() == []
    error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert error.all_inner_texts() == []
    stories = [text for text in outputs(page) if "Once upon a time" in text]
    assert stories and max(map(len, stories)) > 200, "no story in the outputs"
    assert any(width > 200 and height > 100 for width, height in figure_sizes(page))
