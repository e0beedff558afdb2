"""The generation explorer in JupyterLab: a step, another branch, and back again.

A learner types a prompt, steps, takes another candidate than the one that was drawn,
goes back, and sees the text, the tree and the KV cache change in the picture.
"""

from __future__ import annotations

import re

from tests.browser.jupyterlab import (
    code_cells,
    needs_a_browser,
    run_all,
    says,
    shows,
)
from tests.notebooks.course import METADATA, NOTEBOOKS, read

pytestmark = needs_a_browser

CODE = "from folovllm_lite import widgets\nwidgets.GenerationExplorer()"


def press(explorer, name: str) -> None:
    explorer.get_by_role("button", name=name, exact=True).click()


def candidates(explorer) -> list[str]:
    """What the buttons of the next tokens say."""
    texts = explorer.get_by_role("button").all_inner_texts()
    return [text for text in texts if re.search(r" <?\d+%$", text)]


def test_step_another_branch_and_back(explorer):
    shows(explorer, "4 tokens of the prompt, 0 generated")
    shows(explorer, "4 of 128 slots hold a token")
    press(explorer, "10 steps")
    shows(explorer, "4 tokens of the prompt, 10 generated")
    shows(explorer, "14 of 128 slots hold a token")
    shows(explorer, "1 branch, 10 tokens")

    press(explorer, "Back")
    says(explorer, "nothing was computed")
    shows(explorer, "4 tokens of the prompt, 9 generated")
    shows(explorer, "the model has run 14 tokens")  # as many as before
    shows(explorer, "in the tree already")

    second = candidates(explorer)[1]
    press(explorer, second)
    says(explorer, f"Took “{second.rpartition(' ')[0]}”")
    shows(explorer, "2 branches, 11 tokens")
    shows(explorer, "the model has run 15 tokens")

    ends = explorer.locator("select")
    ends.select_option(index=0)
    says(explorer, "Another branch: the model ran 1 token")
    press(explorer, "To the prompt")
    shows(explorer, "4 tokens of the prompt, 0 generated")
    press(explorer, "Step")
    shows(explorer, "4 tokens of the prompt, 1 generated")
    shows(explorer, "2 branches, 11 tokens")  # the seed draws the same token again


def test_all_of_it_is_seen_at_once(explorer):
    """On a laptop's screen: nothing below the fold, the dials beside the picture."""
    explorer.page.set_viewport_size({"width": 1440, "height": 900})
    press(explorer, "10 steps")
    shows(explorer, "10 generated")
    explorer.scroll_into_view_if_needed()
    picture, dial = (
        explorer.locator(name).first.bounding_box() for name in ("svg", ".noUi-handle")
    )
    assert picture["x"] > dial["x"] + dial["width"]
    assert picture["y"] >= 0 and picture["y"] + picture["height"] <= 900
    assert explorer.bounding_box()["height"] <= 740
    # What is below a button when it is pressed stays where it is.
    before = explorer.get_by_role("button", name="Step", exact=True).bounding_box()
    press(explorer, "Step")
    shows(explorer, "11 generated")
    after = explorer.get_by_role("button", name="Step", exact=True).bounding_box()
    assert before == after


def test_another_prompt_and_a_bad_one(explorer):
    box = explorer.locator("input[type=text]").first
    box.fill("从前，有一个小女孩叫小红")
    box.press("Enter")
    says(explorer, "A new prompt")
    press(explorer, "Step")
    shows(explorer, "12 tokens of the prompt, 1 generated")
    box.fill("")
    box.press("Enter")
    says(explorer, "The prompt is empty")
    shows(explorer, "12 tokens of the prompt, 1 generated")


def test_a_dial_changes_what_may_follow(explorer):
    press(explorer, "10 steps")
    shows(explorer, "all 1,536 tokens can be drawn")
    handle = explorer.locator(".noUi-handle").first
    handle.focus()
    for _ in range(3):
        handle.press("ArrowLeft")
    says(explorer, "nothing was computed")
    top_k = explorer.locator(".noUi-handle").nth(2)
    top_k.focus()
    top_k.press("ArrowLeft")
    shows(explorer, "100 tokens of 1,536 can be drawn; removed: top_k 1,436")


def test_the_explorer_of_notebook_09(lab, page):
    """Its cells up to the explorer are run; a candidate is taken, and taken back."""
    made = read(NOTEBOOKS / "09_generation_loop.ipynb")
    sources = ["".join(cell["source"]) for cell in made["cells"]]
    (at,) = [
        i for i, text in enumerate(sources) if "widgets.GenerationExplorer(" in text
    ]
    made.update(cells=made["cells"][: at + 1], metadata=METADATA)
    run_all(page, lab(made), code_cells(made))
    box = page.locator(".folo-explorer").first
    box.locator("svg").wait_for(timeout=30_000)
    box.scroll_into_view_if_needed()
    before = box.locator("svg").text_content()
    chosen = candidates(box)[1]
    press(box, chosen)
    says(box, f"Took “{chosen.rpartition(' ')[0]}”")
    assert box.locator("svg").text_content() != before
    press(box, "Back")
    says(box, "nothing was computed")
    shows(box, "in the tree already")
    press(box, "Step")
    says(box, "Drew “")
