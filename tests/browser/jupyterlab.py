"""JupyterLab as a learner starts it, and what the tests do in its page.

It is started by the Makefile itself, on a copy of a notebook without its outputs, so
that whatever is seen was made by this run.
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

from tests.notebooks.course import METADATA, ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

needs_a_browser = [
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


def notebook(*sources: str) -> dict:
    """A notebook of these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    made = nbformat.v4.new_notebook(cells=list(map(dict, cells)), metadata=METADATA)
    return dict(made)


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
