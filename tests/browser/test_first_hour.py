"""A learner's first hour, in a clone of its own: nothing they do reaches the course.

`make lab` is started, the pictures are there before anything is run, an exercise is
solved and saved, one Ctrl-C ends it; then the checks pass, git sees no change, and the
next start gives back what was written.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.browser.jupyterlab import Lab, figure_sizes, needs_a_browser
from tests.notebooks.course import NOTEBOOKS, ROOT, read
from tests.notebooks.test_exercises import exercises

LESSON = "01_configs.ipynb"

pytestmark = [
    *needs_a_browser,
    pytest.mark.skipif(shutil.which("git") is None, reason="no git was found"),
]


def git(folder, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, encoding="utf-8"
    )
    return done.stdout


@pytest.fixture
def clone(tmp_path):
    """The working tree as it is now, as a repository with one commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git here to say which files belong to the repository")
    folder = tmp_path / "clone"
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "The course")
    return folder


@pytest.fixture
def start(clone, tmp_path):
    """Start `make lab` in the clone; a started one."""
    started = []

    def make_lab(notebook: str) -> Lab:
        started.append(Lab(tmp_path, clone, NOTEBOOK=notebook))
        return started[-1]

    yield make_lab
    for each in started:
        each.stop()


def test_lab_save_solve_test_and_git_sees_nothing(clone, start, page):
    lab = start("01")
    page.goto(lab.address())
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=60_000)
    assert figure_sizes(page), "saved pictures show before anything is run"
    assert page.locator(".jp-Dialog").count() == 0, "nothing asks before it begins"

    heading, cell = next(iter(exercises(clone / "notebooks" / LESSON).items()))
    solution = exercises(NOTEBOOKS / "solutions" / LESSON)[heading]["source"]
    index = next(
        i
        for i, each in enumerate(read(clone / "notebooks" / LESSON)["cells"])
        if each["source"] == cell["source"]
    )
    place = page.locator(".jp-Notebook .jp-Cell").nth(index)
    place.scroll_into_view_if_needed()
    place.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(solution)
    setup = page.locator(".jp-Notebook .jp-CodeCell").first
    setup.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    setup.locator(".jp-InputPrompt", has_text="[1]").wait_for(timeout=60_000)
    page.keyboard.press("ControlOrMeta+s")
    copy = clone / "my" / LESSON
    for _ in range(50):
        if any(each["source"] == solution for each in read(copy)["cells"]):
            break
        page.wait_for_timeout(200)
    else:
        pytest.fail(f"not saved: {lab.printed[-2000:]}")
    kept = copy.read_bytes()
    assert kept != (clone / "notebooks" / LESSON).read_bytes()

    os.killpg(lab.process.pid, signal.SIGINT)  # one Ctrl-C, as it says
    assert "Ctrl-C here ends it" in lab.printed
    lab.process.wait(120)
    assert "Traceback" not in lab.printed

    assert git(clone, "status", "--porcelain") == ""
    checks = ["ruff", "lint"]
    done = subprocess.run(
        ["make", "test", f"PY={sys.executable}", f"STEPS={' '.join(checks)}"],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert git(clone, "status", "--porcelain") == ""

    again = start("01")
    again.address()
    assert copy.read_bytes() == kept, "the next start keeps what was written"
    assert git(clone, "status", "--porcelain") == ""
