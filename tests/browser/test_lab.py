"""The first thing a learner does: `make lab`, then Run All in the tour.

JupyterLab is started by the Makefile itself, on a copy of the notebook without its
outputs, so that whatever is seen was made by this run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.course import METADATA, NOTEBOOKS, ROOT, read

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium or Chrome was found"),
    pytest.mark.skipif(shutil.which("make") is None, reason="no make was found"),
]

START_SECONDS = 120
RUN_SECONDS = 180

# Settings of the test's own: every cell stays in the page, also when scrolled away,
# and no question about news lies over the menus.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


# Where JupyterLab keeps state, moved so that a learner's own is neither read nor
# changed.
PRIVATE = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
)


def without_outputs(notebook: dict) -> dict:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


class Lab:
    """`make lab` in a process of its own."""

    def __init__(self, tmp_path: Path, root: Path = ROOT, **variables: object):
        for name, values in SETTINGS.items():
            file = tmp_path / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values), encoding="utf-8")
        self.log = tmp_path / "lab.log"
        # PY: the Python of this run, whether it lives in .venv or in conda.
        more = {
            "PY": sys.executable,
            "LAB_ARGS": "--no-browser --ServerApp.port_retries=50",
            **variables,
        }
        own = {name: str(tmp_path / name.lower()) for name in PRIVATE}
        own["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path / "settings")
        own["PYTHONPATH"] = str(root)
        with self.log.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                ["make", "lab", *(f"{name}={value}" for name, value in more.items())],
                cwd=root,
                env={**os.environ, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Whoever runs in the background ignores Ctrl-C, and hands that on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def address(self) -> str:
        """The address that it prints."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"^ +(http://localhost\S+)$", self.printed, re.M):
                return found[1]
            time.sleep(0.2)
        pytest.fail(f"JupyterLab gave no address:\n{self.printed[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def lab(tmp_path):
    """Start `make lab` on a notebook; gives a function from notebook to URL."""
    started = []

    def start(notebook: dict) -> str:
        path = tmp_path / "lab" / "00_tour.ipynb"
        path.parent.mkdir()
        path.write_text(json.dumps(without_outputs(notebook)), encoding="utf-8")
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


def run_all(page, url: str, cells: int) -> None:
    """Open the notebook, choose Run All Cells in the menu, wait for the last count."""
    page.goto(url)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    # Before the kernel answers, Run All asks which kernel is meant.
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=60_000)
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    deadline = time.monotonic() + RUN_SECONDS
    texts: list[str] = []
    while time.monotonic() < deadline:
        texts = prompts.all_text_contents()
        # A cell whose code is collapsed shows no count; those behind it do.
        counts = [f"[{i}]:" for i in range(1, cells + 1)]
        if len(texts) == cells and all(
            text in ("", count) for text, count in zip(texts, counts, strict=True)
        ):
            page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()
            return
        page.wait_for_timeout(300)
    pytest.fail(f"not all of {cells} cells were run in {RUN_SECONDS} s: {texts}")


@pytest.fixture
def explorer(lab, page, request):
    """What the CODE of the test's module shows, run and in view."""
    cell = nbformat.v4.new_code_cell(request.module.CODE, id="explorer")
    made = dict(nbformat.v4.new_notebook(cells=[dict(cell)], metadata=METADATA))
    run_all(page, lab(made), 1)
    box = page.locator(".folo-explorer").first
    box.locator("svg").wait_for(timeout=60_000)
    box.scroll_into_view_if_needed()
    return box


def shows(explorer, words: str) -> None:
    """Wait until the picture says something."""
    explorer.locator("svg").get_by_text(words).first.wait_for(timeout=10_000)


def says(explorer, words: str) -> None:
    """Wait until the line below the dials says something."""
    explorer.locator("[aria-live]").get_by_text(words).wait_for(timeout=10_000)


def figure_sizes(page) -> list[tuple[float, float]]:
    """Width and height on the page of each picture in an output that has loaded."""
    return page.evaluate(
        """() => [...document.querySelectorAll(
               '.jp-OutputArea-output img, .jp-OutputArea-output svg')]
           .filter(it => it.tagName != 'IMG' || it.complete && it.naturalWidth)
           .map(it => it.getBoundingClientRect())
           .map(box => [box.width, box.height])"""
    )


def outputs(page) -> list[str]:
    return page.locator(".jp-OutputArea-output").all_inner_texts()


def code_cells(notebook: dict) -> int:
    return sum(cell["cell_type"] == "code" for cell in notebook["cells"])


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
