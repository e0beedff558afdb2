"""What nbval can't see in a notebook: its shape, its markers, its size.

`lint(path)` returns a list of problems, each with the place and what to do about it.
The rules are tables: SECTIONS for what a lesson is made of, HYGIENE for what holds in
every notebook, solutions included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from folovllm_lite.mine.pieces import FINAL, YOURS, blanks_of
from folovllm_lite.mine.workbook import blanked
from tests.notebooks.course import (
    COURSE,
    LONG,
    METADATA,
    cell_metadata,
    joined,
    lesson_of,
    read,
)

MAX_COLUMNS = 88
MAX_BUILD_LINES = 30
MAX_UNCOMPARED = 2
MAX_KILOBYTES = 400
MAX_MINUTES = 60

IGNORE = "# NBVAL_IGNORE_OUTPUT"
TAGS = (
    "gpu",
    "nbval-ignore-output",
    "nbval-skip",
    "raises-exception",
    "skim",
    "answer",
    "reading",
)
PKG_TAG = re.compile(r"pkg:folovllm_lite(\.\w+)+")

Problems = Iterator[str]


@dataclass
class Cell:
    """One cell of the notebook, with what the rules ask of it."""

    index: int
    raw: dict

    @property
    def source(self) -> str:
        return self.raw["source"]

    @property
    def is_code(self) -> bool:
        return self.raw["cell_type"] == "code"

    @property
    def is_markdown(self) -> bool:
        return self.raw["cell_type"] == "markdown"

    @property
    def tags(self) -> list[str]:
        return self.raw.get("metadata", {}).get("tags", [])

    @property
    def is_final(self) -> bool:
        """It holds definitions of the package, kept equal by test_drift."""
        return any(tag.startswith("pkg:") for tag in self.tags)

    @property
    def is_skimmed(self) -> bool:
        """Its code carries no idea of the lesson, and is collapsed."""
        return "skim" in self.tags

    @property
    def outputs(self) -> list[dict]:
        return self.raw.get("outputs", [])

    @property
    def is_skipped(self) -> bool:
        return "nbval-skip" in self.tags

    @property
    def is_uncompared(self) -> bool:
        lines = [line.strip() for line in self.source.splitlines()]
        return self.is_skipped or "nbval-ignore-output" in self.tags or IGNORE in lines

    def __str__(self) -> str:
        return f"cell {self.index} (id {self.raw.get('id')})"


def words(cells: list[Cell]) -> int:
    """How many words of prose the markdown cells hold; code and tags don't count."""
    text = "\n".join(cell.source for cell in cells if cell.is_markdown)
    text = re.sub(r"```.*?```|</?[a-z][^<>]*>|^#[^\n]*$", " ", text, flags=re.S | re.M)
    text = re.sub(r"\]\([^)]*\)", "] ", text)
    return len(re.findall(r"\b\w[\w'’.,-]*", text))


# ----- hygiene: what holds in every notebook ------------------------------------------


def check_metadata(notebook: dict, cells: list[Cell]) -> Problems:
    """Nothing in the metadata that changes from one machine to the next."""
    metadata = notebook.get("metadata", {})
    if "widgets" in metadata:
        yield "the metadata stores widget state: `make notebooks` saves it without"
    if {key: metadata[key] for key in metadata if key != "widgets"} != METADATA:
        yield f"the metadata isn't {METADATA}: `make notebooks` sets it"
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) != (4, 5):
        yield "the format isn't 4.5: `make notebooks` writes it"
    for cell in cells:
        found = cell.raw.get("metadata", {})
        if found != cell_metadata(cell.tags):
            yield f"{cell}: metadata {sorted(found)}: `make notebooks` writes it anew"


def check_ids(notebook: dict, cells: list[Cell]) -> Problems:
    """Every cell has an id of its own, which links and diffs hold on to."""
    seen = set()
    for cell in cells:
        name = cell.raw.get("id")
        if not name:
            yield f"cell {cell.index} has no id: `make notebooks` gives it one"
        elif name in seen:
            yield f"{cell}: an earlier cell has this id: give it another"
        seen.add(name)


def check_counts(notebook: dict, cells: list[Cell]) -> Problems:
    """Executed once from top to bottom: nbval never compares a cell with no count."""
    code = [cell for cell in cells if cell.is_code]
    for expected, cell in enumerate(code, start=1):
        if not cell.source.strip():
            yield f"{cell} is empty: remove it"
        count = cell.raw.get("execution_count")
        if count != expected:
            yield (
                f"{cell} has execution count {count}, not {expected}: "
                "`make notebooks` runs all cells in order"
            )
            return
        for output in cell.outputs:
            if output.get("execution_count", count) != count:
                yield f"{cell}: its output has another count: `make notebooks`"


def check_outputs(notebook: dict, cells: list[Cell]) -> Problems:
    """No stderr, no widget views; errors exactly where the cell says so."""
    for cell in cells:
        failed = any(output["output_type"] == "error" for output in cell.outputs)
        if failed and "raises-exception" not in cell.tags:
            yield f"{cell} ends in an error: mend it, or tag it raises-exception"
        if "raises-exception" in cell.tags and not failed and not cell.is_skipped:
            yield f"{cell} is tagged raises-exception and raises nothing: drop the tag"
        for output in cell.outputs:
            if output.get("name") == "stderr":
                line = joined(output["text"]).strip().splitlines()[0]
                yield f"{cell} writes to stderr ({line[:60]!r}): silence its cause"
            if any("widget-view" in kind for kind in output.get("data", {})):
                yield f"{cell} stores a widget view: `make notebooks` drops it"


def check_markers(notebook: dict, cells: list[Cell]) -> Problems:
    """nbval reads a marker only as a whole line in exact case; a slip is silent."""
    for cell in cells:
        if not cell.is_code:
            continue
        above = ""
        for number, line in enumerate(cell.source.splitlines(), start=1):
            if re.search("nbval|pytest_validate", line, re.I) and "#" in line:
                if line.strip() != IGNORE:
                    yield (
                        f"{cell}, line {number}: {line.strip()!r} is no marker: write "
                        f"{IGNORE!r} alone on its line, the reason on the line above"
                    )
                elif not above.strip().startswith("#"):
                    yield f"{cell}, line {number}: say why in a comment line above"
            above = line
        for tag in cell.tags:
            if tag.startswith(YOURS):
                continue
            if tag not in TAGS and not PKG_TAG.fullmatch(tag):
                yield (
                    f"{cell}: unknown tag {tag!r}; known are {', '.join(TAGS)}, "
                    "pkg:folovllm_lite.<module> and yours:<name>"
                )
        blanks = blanks_of(cell.raw)
        try:
            if blanks:
                blanked(cell.source, blanks)
        except ValueError as error:
            yield f"{cell} is tagged {YOURS} with a name that it lacks: {error}"
        if blanks and not cell.is_final:
            yield f"{cell} is tagged {YOURS} and is no final cell"
    uncompared = [cell for cell in cells if cell.is_uncompared]
    if len(uncompared) > MAX_UNCOMPARED:
        yield (
            f"{len(uncompared)} cells are ignored or skipped by nbval, at most "
            f"{MAX_UNCOMPARED} may be: print what is exact instead"
        )


REMOTE = re.compile(
    r"!\[[^\]]*\]\(\s*<?(?:https?:)?//"
    r"|<(?:img|image|video|iframe|script)\b[^>]*\b(?:src|href)\s*=\s*['\"]?(?:https?:)?//"
    r"|url\(\s*['\"]?(?:https?:)?//",
    re.I,
)
LOCAL = re.compile(r"\]\(\s*<?(?![a-z]+:|//|#)([^)\s>#]+)")


def check_links(notebook: dict, cells: list[Cell]) -> Problems:
    """All pictures are at hand offline, and a link inside the repository leads on."""
    folder = notebook["path"].parent
    planned = {lesson.file for lesson in COURSE}
    for cell in cells:
        texts = [cell.source] if cell.is_markdown else []
        for output in cell.outputs:
            data = output.get("data", {})
            texts += [joined(data.get(kind, "")) for kind in ("text/html",)]
            texts += [joined(data.get(kind, "")) for kind in ("text/markdown",)]
            texts += [joined(data.get(kind, "")) for kind in ("image/svg+xml",)]
        for text in texts:
            if REMOTE.search(text):
                yield f"{cell} shows a remote image or script: draw it with code"
        if cell.is_markdown:
            prose = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)
            for target in LOCAL.findall(prose):
                known = Path(target).name in planned or target.startswith("attachment:")
                if not known and not (folder / target).exists():
                    yield f"{cell} links to {target}, which isn't there"


def check_width(notebook: dict, cells: list[Cell]) -> Problems:
    """Code is read on the repository's page, which doesn't wrap it."""
    for cell in cells:
        for number, line in enumerate(cell.source.splitlines(), start=1):
            if cell.is_code and len(line) > MAX_COLUMNS:
                yield (
                    f"{cell}, line {number} has {len(line)} columns: "
                    f"wrap it at {MAX_COLUMNS}"
                )


def check_size(notebook: dict, cells: list[Cell]) -> Problems:
    """A page that loads at once."""
    kilobytes = notebook["path"].stat().st_size / 1000
    if kilobytes > MAX_KILOBYTES:
        yield (
            f"{kilobytes:.0f} KB, at most {MAX_KILOBYTES} are allowed: "
            "make its pictures smaller, or draw fewer"
        )


HYGIENE: tuple[Callable[[dict, list[Cell]], Problems], ...] = (
    check_metadata,
    check_ids,
    check_counts,
    check_outputs,
    check_markers,
    check_links,
    check_width,
    check_size,
)


# ----- sections: what a lesson is made of ---------------------------------------------


def check_title(cells: list[Cell]) -> Problems:
    """The title card: a heading, and how long the lesson takes."""
    first = cells[0] if cells else None
    if first is None or not first.is_markdown or not first.source.startswith("# "):
        yield "the first cell is the title card: markdown that starts with '# '"
    elif not re.search(r"\d+\s+min", first.source):
        yield "the title card says how long it takes: '20 minutes'"


def check_goals(cells: list[Cell]) -> Problems:
    text = "\n".join(cell.source for cell in cells if cell.is_markdown)
    goals = len(re.findall(r"^\s*(?:[-*]|\d+\.)\s", text, re.M))
    if not 3 <= goals <= 5:
        yield f"Goals lists {goals} goals: three to five, one a line starting with '-'"


def check_setup(cells: list[Cell]) -> Problems:
    code = [cell.source for cell in cells if cell.is_code]
    if not code or "import" not in code[0]:
        yield "Setup holds the cell with the imports"
    elif not re.search("seed", "\n".join(code)):
        yield "Setup sets the seed"


def check_tour_setup(cells: list[Cell]) -> Problems:
    if not any(cell.is_code and "import" in cell.source for cell in cells):
        yield "Setup holds the cell with the imports"


def check_why(cells: list[Cell]) -> Problems:
    count = words(cells)
    if not 150 <= count <= 300:
        yield f"Why has {count} words: 150 to 300"
    if not any(cell.is_code for cell in cells):
        yield "Why measures what the version before does badly: add the cell"


def check_picture(cells: list[Cell]) -> Problems:
    if not any(cell.is_code for cell in cells):
        yield "Picture is drawn by code: add the cell"


def check_by_hand(cells: list[Cell]) -> Problems:
    if not any(cell.is_code for cell in cells):
        yield "By hand works on a tensor small enough to print: add the cell"
    if not any(cell.is_markdown and "?" in cell.source for cell in cells):
        yield "By hand asks a question to predict before running"


def check_build(cells: list[Cell]) -> Problems:
    if not any(cell.is_final for cell in cells):
        yield "Build ends in cells tagged pkg:folovllm_lite.<module>"
    before: list[Cell] = []
    for cell in cells:
        if cell.is_markdown:
            before.append(cell)
        if not cell.is_code:
            continue
        lines = len(cell.source.splitlines())
        free = cell.is_final or cell.is_skimmed
        if not free and lines > MAX_BUILD_LINES:
            yield f"{cell} has {lines} lines: at most {MAX_BUILD_LINES}, one idea each"
        if not free and not 40 <= words(before) <= 120:
            yield f"{cell} follows {words(before)} words of prose: 40 to 120"
        before = []


def check_prove(cells: list[Cell]) -> Problems:
    if not any(cell.is_code and "checks." in cell.source for cell in cells):
        yield "Prove it calls checks.<piece>(...) on what was built"


def check_code(name: str) -> Callable[[list[Cell]], Problems]:
    """A rule for a section that must run something."""

    def check(cells: list[Cell]) -> Problems:
        if not any(cell.is_code for cell in cells):
            yield f"{name} has no code cell: show it running"

    return check


def check_in_vllm(cells: list[Cell]) -> Problems:
    if not any("vllm/" in cell.source for cell in cells):
        yield "In vLLM names the file, like `vllm/v1/core/sched/scheduler.py`"


def check_exercises(cells: list[Cell]) -> Problems:
    exercises: list[list[Cell]] = []
    for cell in cells:
        if cell.is_markdown and re.search(r"^### ", cell.source, re.M):
            exercises.append([])
        if exercises:
            exercises[-1].append(cell)
    if len(exercises) != 3:
        yield f"{len(exercises)} exercises: three, each under a '### ' heading"
    for number, exercise in enumerate(exercises, start=1):
        code = [cell for cell in exercise if cell.is_code]
        if not any("raises-exception" in cell.tags for cell in code):
            yield f"exercise {number} has no stub tagged raises-exception"
        if not any("checks." in cell.source for cell in code):
            yield f"exercise {number} has no checks call that judges the learner's work"
        if not any("<details>" in cell.source for cell in exercise):
            yield f"exercise {number} has no hints folded in <details>"


# GitHub reads an answer as Markdown only between blank lines.
FOLD = re.compile(
    r">\s*<summary>(.*?)</summary>[ \t]*\n\s*?\n(.*?)\n\s*?\n</details>", re.S
)
QUESTIONS = 3


def folds(cells: list[Cell]) -> list[tuple[str, str]]:
    """The (summary, text) of every <details>; ("", "") for one in another form."""
    text = "\n\n".join(cell.source for cell in cells if cell.is_markdown)
    # Cut at the openings, so that one without an end can't swallow the next.
    found = [FOLD.match(part) for part in text.split("<details")[1:]]
    return [
        (match[1].strip(), match[2].strip()) if match else ("", "") for match in found
    ]


def check_answers(cells: list[Cell]) -> Problems:
    """The form that interview.py reads: it must neither miss nor garble a question."""
    for number, (question, answer) in enumerate(folds(cells), start=1):
        if not (question and answer):
            yield (
                f"Recap's question {number} has no answer that can be read: write "
                "<details><summary>question</summary>, a blank line, the answer, "
                "a blank line, </details>"
            )
        if re.search(r"`|\*\*|\]\(", question):
            yield (
                f"Recap's question {number} has Markdown in its <summary>, which is "
                "HTML: write <code>, <b> or <a>"
            )


def check_recap(cells: list[Cell]) -> Problems:
    count = len(folds(cells))
    if count != QUESTIONS:
        yield (
            f"Recap has {count} folded answers: three interview questions, "
            "each with its answer in <details>"
        )


def check_next(cells: list[Cell]) -> Problems:
    if not any(".ipynb" in cell.source for cell in cells):
        yield "Recap links to the next notebook"


@dataclass(frozen=True)
class Section:
    """A section, found by the start of its '## ' heading, and its rules.

    `tour` rules apply to 00, which builds nothing; None: the tour may leave it out.
    """

    title: str
    lesson: tuple[Callable[[list[Cell]], Problems], ...]
    tour: tuple[Callable[[list[Cell]], Problems], ...] | None = None
    optional: bool = False


SECTIONS = (
    Section("Goals", (check_goals,), tour=(check_goals,)),
    Section("Setup", (check_setup,), tour=(check_tour_setup,)),
    Section("Why", (check_why,)),
    Section("Picture", (check_picture,), tour=(check_picture,)),
    Section("By hand", (check_by_hand,)),
    Section("Build", (check_build,)),
    Section("Prove it", (check_prove,)),
    Section("Plug in", (check_code("Plug in"),)),
    Section("Cost", (check_code("Cost"),)),
    Section("In vLLM", (check_in_vllm,)),
    Section("Exercises", (check_exercises,)),
    Section(
        "Recap",
        (check_recap, check_answers, check_next),
        tour=(check_answers, check_next),
    ),
    Section("On a GPU", (check_code("On a GPU"),), optional=True),
)


def split(cells: list[Cell]) -> list[tuple[str, list[Cell]]]:
    """The cells under each '## ' heading, the heading's own cell among them."""
    parts: list[tuple[str, list[Cell]]] = []
    for cell in cells:
        heading = re.search(r"^## +(.+)$", cell.source, re.M)
        if cell.is_markdown and heading:
            parts.append((heading[1].strip(), []))
        if parts:
            parts[-1][1].append(cell)
    return parts


def title_of(heading: str) -> str | None:
    """The section that a heading opens: '## Why: half the work is lost' is Why."""
    for section in SECTIONS:
        if re.match(rf"{section.title}\b", heading, re.I):
            return section.title
    return None


def check_sections(cells: list[Cell], is_tour: bool) -> Problems:
    """Every section there, in order, and right by its own rules."""
    yield from check_title(cells)
    parts = split(cells)
    order = [section.title for section in SECTIONS]
    last = ""
    for heading, _ in parts:
        title = title_of(heading)
        if title is None:
            if not is_tour:  # the tour names the sights that it shows
                yield f"'## {heading}' is no section; use '### ' inside a section"
            continue
        if last and order.index(title) <= order.index(last):
            yield f"'## {heading}' comes after {last}: the order is {', '.join(order)}"
        last = title
    found = {title_of(heading): part for heading, part in parts}
    for section in SECTIONS:
        rules = section.tour if is_tour else section.lesson
        if section.title not in found:
            if rules is not None and not section.optional:
                yield f"section missing: '## {section.title}'"
        else:
            for rule in rules or ():
                yield from rule(found[section.title])
    for heading, part in parts:
        for cell in part:
            if cell.is_skipped and title_of(heading) != "On a GPU":
                yield f"{cell} is tagged nbval-skip outside 'On a GPU'"


# ----- the first reading: how long it takes -------------------------------------------


# Measured against what three fresh readers needed by their own estimate.
WORDS_A_MINUTE = 120
LINES_A_MINUTE = 12
STEP = 5  # minutes on a card are rounded up to it

CARD = re.compile(r"(\*\*Time:\*\*\s+)\d+(\s+minutes)")
FOLDED = re.compile(r"<details.*?</details>", re.S)
APART = ("Exercises", "On a GPU")


@dataclass(frozen=True)
class Reading:
    """What a first reader meets: without exercises, GPU section, folds and `skim`."""

    words: int
    lines: int  # of code, blank ones apart
    predictions: int

    @property
    def minutes(self) -> float:
        return (
            self.words / WORDS_A_MINUTE + self.lines / LINES_A_MINUTE + self.predictions
        )

    def __str__(self) -> str:
        return (
            f"{self.minutes:.0f} minutes: {self.words} words, {self.lines} lines of "
            f"code, {self.predictions} predictions"
        )


def first_reading(cells: list[Cell]) -> Reading:
    """Count what stands on the first-reading path."""
    apart = {
        id(cell)
        for heading, part in split(cells)
        if title_of(heading) in APART
        for cell in part
    }
    path = [cell for cell in cells if id(cell) not in apart and not cell.is_skimmed]
    texts = [
        Cell(cell.index, {**cell.raw, "source": FOLDED.sub("", cell.source)})
        for cell in path
        if cell.is_markdown
    ]
    code = [line for cell in path if cell.is_code for line in cell.source.splitlines()]
    return Reading(
        words=sum(words([cell]) for cell in texts),
        lines=sum(bool(line.strip()) for line in code),
        predictions=sum(cell.source.count("**Predict") for cell in texts),
    )


def rounded(minutes: float) -> int:
    """Minutes as a title card gives them."""
    return STEP * math.ceil(minutes / STEP)


def check_reading(cells: list[Cell]) -> Problems:
    """The card says how long the first reading takes, and that is at most an hour."""
    reading = first_reading(cells)
    card = CARD.search(cells[0].source) if cells else None
    if card is None:
        yield "the title card has no '**Time:** 45 minutes'"
    elif int(re.search(r"\d+", card[0])[0]) != rounded(reading.minutes):
        yield f"the card says {card[0]!r}, and it is {reading}: `make notebooks`"
    if reading.minutes > MAX_MINUTES:
        yield (
            f"the first reading takes {reading}; at most {MAX_MINUTES} minutes: "
            "tag code without an idea of this lesson `skim`, or cut"
        )


def check_final(cells: list[Cell]) -> Problems:
    """A reader sees which cells the package keeps."""
    for cell in cells:
        for tag in cell.tags:
            mark = tag.replace("pkg:folovllm_lite.", FINAL)
            if mark != tag and cell.source.partition("\n")[0] != mark:
                yield f"{cell} doesn't begin with {mark!r}: `make sync`"


def check_skim(cells: list[Cell]) -> Problems:
    """Collapsed code: the cell before it says what it does."""
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.is_skimmed and not cell.is_code:
            yield f"{cell} is prose and tagged skim: fold it in <details>"
        elif cell.is_skimmed and (before is None or not words([before])):
            yield f"{cell} is tagged skim: a sentence before it says what it does"


READING = (check_reading, check_final)


def reading_problems(cells: list[Cell], name: str, long: Collection[str]) -> list[str]:
    """What is wrong with the first reading; of one in `long`, that nothing is."""
    found = [problem for rule in READING for problem in rule(cells)]
    if name not in long:
        return found
    stale = f"LONG in course.py names {name}, which keeps the rules: remove the entry"
    return [] if found else [stale]


def lint(path: Path, long: Collection[str] = LONG) -> list[str]:
    """All that is wrong with the notebook at `path`, as sentences; [] when nothing."""
    notebook = {**read(path), "path": path}
    cells = [Cell(index, raw) for index, raw in enumerate(notebook["cells"])]
    problems = [problem for rule in HYGIENE for problem in rule(notebook, cells)]
    lesson = lesson_of(path)
    if lesson is None:
        names = ", ".join(lesson.file for lesson in COURSE)
        problems.append(f"no notebook of the course has this name; those are {names}")
    elif path.parent.name != "solutions":
        problems += check_sections(cells, is_tour=lesson.number == 0)
        problems += check_skim(cells)
        problems += reading_problems(cells, path.name, long)
    return [f"{path.name}: {problem}" for problem in problems]
