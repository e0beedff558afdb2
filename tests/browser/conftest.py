"""What every test in JupyterLab begins with: its server, its page, an explorer."""

from __future__ import annotations

import json

import pytest

from tests.browser.jupyterlab import BROWSER, Lab, notebook, run_all, without_outputs


@pytest.fixture
def lab(tmp_path):
    """Start `make lab` on a notebook; gives a function from notebook to URL."""
    started = []

    def start(made: dict) -> str:
        path = tmp_path / "lab" / "00_tour.ipynb"
        path.parent.mkdir()
        path.write_text(json.dumps(without_outputs(made)), encoding="utf-8")
        started.append(Lab(tmp_path, COPIES=path.parent))
        return started[-1].address()

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def page(tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        yield page
        page.screenshot(path=tmp_path / "end.png")
        print(f"\nscreenshot: {tmp_path / 'end.png'}")
        browser.close()


@pytest.fixture
def explorer(lab, page, request):
    """What the CODE of the test's module shows, run and in view."""
    run_all(page, lab(notebook(request.module.CODE)), 1)
    box = page.locator(".folo-explorer").first
    box.locator("svg").wait_for(timeout=60_000)
    box.scroll_into_view_if_needed()
    return box
