"""The block explorer in JupyterLab: dials move by keyboard, and the picture follows."""

from __future__ import annotations

from tests.browser.jupyterlab import needs_a_browser, shows

pytestmark = needs_a_browser

CODE = "from folovllm_lite import widgets\nwidgets.BlockExplorer()"


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
