"""What `python -m folovllm_lite mine` says: a table, red lines, stories, the speed."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import folovllm_lite
from folovllm_lite.mine import exercises, judge
from folovllm_lite.mine.assembly import NAME, assemble, module_source
from folovllm_lite.mine.notebooks import Found, find, parts, source_of
from folovllm_lite.mine.pieces import pieces

Say = Callable[[str], None]


def run(folder: Path, out: Path, plugged: Iterable[str] = (), say: Say = print) -> int:
    """Assemble, judge and run the engine of the notebooks in `folder`.

    Args:
        folder: the notebooks.
        out: where `my_engine` is written.
        plugged: exercises to plug in, as `exercises.named` takes them.
        say: prints a line.

    Returns:
        The exit status: 1 if a piece of the learner's fails.

    Raises:
        MineError: nothing was written, and why.
    """
    found = find(folder)
    chosen = [exercises.named(text) for text in plugged]
    source = "\n\n".join(exercises.written(each, found) for each in chosen)
    sources = assemble(found, out, source)
    say(f"{NAME} is in {out}: from {NAME} import LLM\n")
    verdicts = judge.judge_all(found, sources, out)
    for line in table(found, verdicts):
        say(line)
    for module, verdict in verdicts.items():
        _say_red(say, f"{module}: {verdict.red} red, the first:", verdict.first)
    if any(verdict.red for verdict in verdicts.values()):
        say("\nNo story before every piece of yours is green.")
        return 1
    try:
        mine = judge.engine(out)
        good = _say_stories(say, mine)
    except Exception as error:  # noqa: BLE001  whatever a learner's code may raise
        stops = f"{type(error).__name__}: {error}"
        _say_red(say, f"The engine stops: {stops}", judge.calls(error) or [stops])
        return 1
    return int(not all([good, *(_say_exercise(say, mine, each) for each in chosen)]))


def _say_red(say: Say, head: str, lines: Iterable[str]) -> None:
    lines = list(lines)
    for line in [f"\n{head}", *(f"  {line}" for line in lines)] if lines else ():
        say(line)


def _say_stories(say: Say, mine: ModuleType) -> bool:
    stories, speed = judge.tell(mine, folovllm_lite)
    for story in stories:
        say(f"\n{story.prompt}{story.text}")
        say(f"  {'the same' if story.same else 'OTHER'} tokens as the package's")
    say(f"\nSpeed: {speed:.2f} of the package's, 8 requests at once.")
    return all(story.same for story in stories)


def _say_exercise(say: Say, mine: ModuleType, each: exercises.Exercise) -> bool:
    piece = getattr(importlib.import_module(f"{NAME}.exercises"), each.name)
    red = exercises.judged(each, piece)
    _say_red(say, f"{each.name}: red, the first:", red)
    if not red:
        say(f"\n{each.name} ✓ {each.show(mine, piece)}")
    return not red


def table(found: Found, verdicts: dict[str, judge.Verdict]) -> list[str]:
    """A line for each piece of the engine: whose it is, and what its suites say."""
    rows = [("piece", "notebook", "yours", "lines", "")]
    for module, verdict in verdicts.items():
        yours = found.yours(module).values()
        rows.append(
            (
                module,
                ", ".join(sorted({piece.notebook[:2] for piece in yours})),
                f"{len(yours)} of {len(pieces(source_of(module)))}",
                str(sum(len(piece.lines) for piece in yours)),
                f"✗ {verdict.red} red"
                if verdict.red
                else "✓"
                if verdict.judged
                else "-",
            )
        )
    if len(rows) == 1:
        return ["Nothing is yours yet: every piece is the package's."]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rest = [module for module in parts() if module not in verdicts]
    return [*lines, "", f"The package's: {', '.join(rest)}."]


def _said(verdict: judge.Verdict) -> str:
    if verdict.red:
        return f"✗ {verdict.red} red"
    return "✓" if verdict.judged else "no suite: the stories judge it"


def differences(found: Found) -> str:
    """The learner's engine as a diff against the package's, module by module."""
    lines: list[str] = []
    for module in parts():
        if found.yours(module):
            lines += difflib.unified_diff(
                source_of(module).splitlines(),
                module_source(module, found).splitlines(),
                f"folovllm_lite/{module}.py",
                f"{NAME}/{module}.py",
                lineterm="",
                n=1,
            )
    return "\n".join(lines)
