"""The sampling explorer in JupyterLab, with the keyboard alone.

A learner who doesn't use a mouse reaches every dial with Tab, turns it with the arrow
keys, draws with the space bar, and sees the picture change.
"""

from __future__ import annotations

import time

import pytest

from tests.browser.jupyterlab import code_cells, needs_a_browser, notebook, run_all
from tests.notebooks.course import NOTEBOOKS, read

pytestmark = needs_a_browser

CODE = "from folovllm_lite import widgets\nwidgets.SamplingExplorer()"


def focused(page) -> str:
    """What has the focus: a button's text, or the label of a dial."""
    return page.evaluate(
        """() => {
            const it = document.activeElement
            if (it.tagName == 'BUTTON') return it.innerText
            const box = it.closest('.widget-inline-hbox')
            return box ? box.querySelector('label').innerText : it.tagName
        }"""
    )


@pytest.fixture
def explorer(explorer):
    """The whole page: the keyboard goes from the explorer to what is around it."""
    return explorer.page


def tab_to(page, words: str) -> None:
    """Press Tab once, or twice where a slider's number can be typed as well."""
    here = focused(page)
    page.keyboard.press("Tab")
    if focused(page) == here:
        page.keyboard.press("Tab")
    assert words in focused(page)


def test_the_keyboard_alone_turns_every_dial(explorer):
    picture = explorer.locator(".folo-explorer svg")
    explorer.locator(".jupyter-widgets select").focus()
    assert "Continue" in focused(explorer)
    for label, key, words in (
        ("(temperature)", "ArrowRight", "temperature 1.1 gives"),
        ("(min_p)", "ArrowRight", "min_p 0.01 leaves"),
        ("(top_k)", "ArrowLeft", "top_k 100 leaves"),
        ("(top_p)", "ArrowLeft", "top_p 0.99 leaves"),
    ):
        tab_to(explorer, label)
        explorer.keyboard.press(key)
        picture.get_by_text(words).wait_for(timeout=10_000)
    for button, words in (
        ("Draw a token", "1 drawn, the last one was"),
        ("Draw 100 tokens", "101 drawn, the last one was"),
        ("Clear the tally", "Nothing drawn yet."),
    ):
        tab_to(explorer, button)
        explorer.keyboard.press("Space")
        explorer.get_by_text(words).wait_for(timeout=10_000)


def test_the_explorer_of_notebook_03(lab, page):
    """All of 03 is run; then a slider is dragged, a token drawn, the picture seen."""
    made = read(NOTEBOOKS / "03_sampler.ipynb")
    run_all(page, lab(made), code_cells(made))
    box = page.locator(".folo-explorer").first
    box.scroll_into_view_if_needed()
    picture = box.locator("svg")
    picture.wait_for(timeout=30_000)
    before = picture.inner_html()
    handle = box.locator(".noUi-handle").first
    place = handle.bounding_box()
    page.mouse.move(place["x"] + 5, place["y"] + 5)
    page.mouse.down()
    page.mouse.move(place["x"] + 120, place["y"] + 5, steps=4)
    page.mouse.up()
    start = time.perf_counter()
    page.wait_for_function(
        "([svg, old]) => svg.innerHTML != old || !svg.isConnected",
        arg=[picture.element_handle(), before],
        timeout=10_000,
    )
    print(f"\nthe picture changed {time.perf_counter() - start:.2f} s after the drag")
    assert "temperature 1 gives" not in picture.text_content()
    box.get_by_text("Draw a token").click()
    box.get_by_text("1 drawn, the last one was").wait_for(timeout=10_000)


def test_it_says_that_a_cell_is_running(lab, page):
    """Under Run All the dials are there long before anything answers them."""
    page.goto(lab(notebook(CODE, "import time; time.sleep(5)")))
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=60_000)
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    sign = page.locator(".folo-explorer").get_by_text("A cell is running")
    sign.wait_for(state="visible", timeout=60_000)
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=60_000)
    sign.wait_for(state="hidden", timeout=10_000)
