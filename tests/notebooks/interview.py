"""The notebooks' interview questions on one page, drawn from their Recaps.

    python -m tests.notebooks.interview docs/interview.md            (make notebooks)

The Recaps are the source: a test holds the committed page to what this writes, and
lint holds each lesson to three questions in the form that is read here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from pathlib import Path

from tests.notebooks.course import NOTEBOOKS, ROOT, lesson_of, read
from tests.notebooks.lint import Cell, folds, split, title_of

PAGE = ROOT / "docs" / "interview.md"
COMMAND = "python -m tests.notebooks.interview docs/interview.md"
INTRODUCTION = f"""\
# Interview questions

The {{count}} questions that end the notebooks: answer first, then unfold.

Generated from the notebooks by `{COMMAND}`;
"here" and "above" in an answer mean its notebook.
"""

# Code is matched first, and left as it is.
TARGET = re.compile(
    r"```.*?```|`[^`]*`|<code>.*?</code>"
    r"|(?P<before>\]\(<?|\b(?:href|src)=[\"'])(?P<target>[^\s)>\"']+)",
    re.S,
)


def questions(path: Path) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a notebook's Recap, without "Interview:".

    A question is HTML, as it stands in its <summary>; an answer is Markdown.

    Raises:
        ValueError: if one has another form than lint asks for.
    """
    cells = [Cell(index, raw) for index, raw in enumerate(read(path)["cells"])]
    parts = split(cells)
    recap = [cell for name, part in parts if title_of(name) == "Recap" for cell in part]
    pairs = []
    for number, (question, answer) in enumerate(folds(recap), start=1):
        if not (question and answer):
            raise ValueError(
                f"{path.name}: question {number} of the Recap can't be read; "
                "tests/notebooks/test_lint.py says what is wrong"
            )
        question = re.sub(r"^interview:\s*", "", question, flags=re.I)
        # A word gets a capital; a name such as `n` or `top_p` keeps its own letters.
        question = re.sub(
            r"^[a-z]['’a-z]*(?=[\s,])", _capital, " ".join(question.split())
        )
        pairs.append((question, answer))
    return pairs


def _capital(word: re.Match) -> str:
    return word[0][0].upper() + word[0][1:]


def title(path: Path) -> str:
    """The title card's heading."""
    return read(path)["cells"][0]["source"].splitlines()[0].removeprefix("# ")


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading, to link to."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def moved(text: str, notebook: Path, folder: Path) -> str:
    """The text with its relative links as they read from a page in `folder`."""

    def move(match: re.Match) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I):
            return match[0]
        name, mark, place = target.partition("#")
        file = notebook.parent / name if name else notebook
        return f"{match['before']}{relative(file, folder)}{mark}{place}"

    return TARGET.sub(move, text)


def relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file, folder)).as_posix()


def page(paths: list[Path], folder: Path = PAGE.parent) -> str:
    """The page on these notebooks' questions, as a file in `folder`."""
    asked = {path: pairs for path in paths if (pairs := questions(path))}
    contents, sections = [], []
    for path, pairs in asked.items():
        heading = title(path)
        contents.append(f"- [{heading}](#{anchor(heading)})\n")
        sections.append(f"\n## {heading}\n\n")
        sections.append(f"Notebook: [{path.name}]({relative(path, folder)})\n")
        for question, answer in pairs:
            summary = textwrap.fill(
                f"<details><summary><b>{moved(question, path, folder)}</b></summary>",
                width=88,
                break_long_words=False,
                break_on_hyphens=False,
            )
            sections.append(
                f"\n{summary}\n\n{moved(answer, path, folder)}\n\n</details>\n"
            )
    count = sum(len(pairs) for pairs in asked.values())
    return "".join([INTRODUCTION.format(count=count), "\n", *contents, *sections])


def lessons() -> list[Path]:
    """The course's notebooks that are there, in order, without solutions."""
    return [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if lesson_of(path)]


def main(arguments: list[str] | None = None) -> int:
    """Write the page of all notebooks to the file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks.interview")
    parser.add_argument("file", type=Path, help="docs/interview.md")
    file = parser.parse_args(arguments).file
    text = page(lessons(), file.resolve().parent)
    file.write_text(text, encoding="utf-8", newline="\n")
    print(f"{file}: {text.count('<details>')} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
