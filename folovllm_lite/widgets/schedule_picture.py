"""A timeline of requests by steps: what each of them does, and how full a step is."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from folovllm_lite import viz
from folovllm_lite.viz.picture import svg_of

if TYPE_CHECKING:
    from folovllm_lite.widgets.schedule import Schedule

# Kind -> colour, sign in the text, meaning.
KINDS = {
    "waiting": ("#f4d9a8", "w", "waits"),
    "prefill": ("#2f6f9f", "P", "prompt"),
    "chunk": ("#7fb2d6", "C", "part of a prompt"),
    "decode": ("#5b9a68", "d", "decode"),
    "preempted": ("#c8553d", "x", "preempted"),
    "idle": ("#e4e9ee", "-", "holds its place"),
    "fork": ("#8e6fb0", "f", "forked"),
}


def schedule_text(schedule: Schedule) -> str:
    """The timeline in signs: one line for each job, one sign for each step."""
    names = {job.name: [] for job in schedule.jobs}
    for step in schedule.steps:
        for name, signs in names.items():
            kind = step.kinds.get(name, "")
            signs.append(KINDS[kind][1] if kind in KINDS else " ")
    width = max(map(len, names))
    lines = [
        f"{name:{width}} {''.join(signs).rstrip()}" for name, signs in names.items()
    ]
    seen = {kind for step in schedule.steps for kind in step.kinds.values()}
    legend = [
        f"{sign} {word}" for kind, (_, sign, word) in KINDS.items() if kind in seen
    ]
    tokens = sum(step.tokens for step in schedule.steps)
    lines.append(f"{len(schedule.steps)} steps, {tokens} tokens; {', '.join(legend)}")
    return "\n".join(lines)


def draw_schedule(schedule: Schedule, title: str = "") -> viz.Picture:
    """Jobs by steps; below them the tokens of each step, and the budget.

    A number in a box says how many tokens it computes, if it isn't one.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    steps, jobs = schedule.steps, schedule.jobs
    rows, wide = len(jobs), max(len(steps), 14)
    height = 0.27 * rows + 1.7
    figure = Figure(figsize=(7.6, height))
    axes = figure.add_axes((0.07, 1.05 / height, 0.92, 0.27 * rows / height))
    axes.set_xlim(0.5, wide + 0.5)
    axes.set_ylim(rows, 0)
    size = 7 if wide <= 40 else 5
    for y, job in enumerate(jobs):
        kinds = [step.kinds.get(job.name, "") for step in steps]
        at = 0
        for kind, run in groupby(kinds):  # one shape for a run: a picture stays small
            length = len(list(run))
            if kind in KINDS:
                where = (at + 0.53, y + 0.06)
                box = {"facecolor": KINDS[kind][0], "lw": 0}
                axes.add_patch(Rectangle(where, length - 0.06, 0.88, **box))
            at += length
        for step in steps:
            if step.counts.get(job.name, 1) > 1:
                words, place = str(step.counts[job.name]), (step.number, y + 0.52)
                middle = {"ha": "center", "va": "center", "size": size}
                axes.text(*place, words, color="white", **middle)
    if wide <= 60:
        axes.vlines([n + 0.5 for n in range(1, wide)], 0, rows, color="white", lw=0.8)
    axes.set_yticks([y + 0.5 for y in range(rows)], [job.name for job in jobs], size=8)
    below = figure.add_axes((0.07, 0.42 / height, 0.92, 0.5 / height), sharex=axes)
    tokens = [step.tokens for step in steps]
    below.bar([step.number for step in steps], tokens, 0.8, color=viz.GREY)
    top = max([*tokens, 1])
    if schedule.budget is not None and schedule.budget <= 2 * top:
        below.axhline(schedule.budget, color=viz.RED, lw=1)
        top = max(top, schedule.budget)
    below.set_ylim(0, 1.15 * top)
    below.set_yticks([0, top], ["0", str(top)], size=7)
    every = 1 if wide <= 30 else 5
    ticks = [n for n in range(1, wide + 1) if n % every == 0]
    below.set_xticks(ticks, [str(n) for n in ticks], size=7)
    below.set_ylabel("tokens", size=7, color=viz.INK)
    axes.tick_params(bottom=False, labelbottom=False, left=False, labelcolor=viz.INK)
    below.tick_params(length=0, labelcolor=viz.INK)
    for each in (axes, below):
        for side in each.spines.values():
            side.set_visible(False)
    seen = {kind for step in steps for kind in step.kinds.values()}
    handles = [
        Patch(color=colour, label=word)
        for kind, (colour, _, word) in KINDS.items()
        if kind in seen
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.06, 0), ncols=7,
        fontsize=7, frameon=False, handlelength=1, columnspacing=1.2, borderpad=0,
    )  # fmt: skip
    figure.text(0.99, 0.02, "step", size=7, color=viz.INK, ha="right")
    head = title or f"{len(steps)} steps"
    figure.text(0.07, 1 - 0.24 / height, head, size=10, color=viz.INK)
    text = schedule_text(schedule)
    return viz.Picture(svg_of(figure), f"{title}\n{text}" if title else text)
