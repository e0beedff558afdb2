"""The scheduler explorer in JupyterLab: dials move by keyboard, the picture follows."""

from __future__ import annotations

from tests.browser.jupyterlab import needs_a_browser, says

pytestmark = needs_a_browser

CODE = "from folovllm_lite import widgets\nwidgets.SchedulerExplorer(budget=14)"


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
