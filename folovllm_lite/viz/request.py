"""Pictures of 04: the states of a sequence."""

from collections.abc import Mapping, Sequence
from typing import Any

from folovllm_lite.request import TRANSITIONS
from folovllm_lite.viz.picture import BLUE, GREY, INK, PALE, Picture, sheet, svg_of

# Where each status stands in the picture, and what makes a sequence go along an arrow.
_STATUS_PLACES = {
    "FINISHED_ABORTED": (4.1, 4.0),
    "WAITING": (1.2, 2.0),
    "RUNNING": (4.1, 2.0),
    "SWAPPED": (7.0, 2.0),
    "FINISHED_IGNORED": (1.2, 0.0),
    "FINISHED_STOPPED": (4.1, 0.0),
    "FINISHED_LENGTH_CAPPED": (7.0, 0.0),
}
EVENTS = {
    ("WAITING", "RUNNING"): "its turn",
    ("WAITING", "FINISHED_ABORTED"): "user gives up",
    ("WAITING", "FINISHED_IGNORED"): "can never fit",
    ("RUNNING", "WAITING"): "preempted, cache dropped",
    ("RUNNING", "SWAPPED"): "preempted, cache to CPU",
    ("RUNNING", "FINISHED_STOPPED"): "end reached",
    ("RUNNING", "FINISHED_LENGTH_CAPPED"): "max_tokens reached",
    ("RUNNING", "FINISHED_ABORTED"): "user gives up",
    ("SWAPPED", "RUNNING"): "cache back",
    ("SWAPPED", "FINISHED_ABORTED"): "user gives up",
}


def sequence_states(transitions: Mapping[Any, Sequence[Any]] = TRANSITIONS) -> Picture:
    """The states of a sequence as boxes, an arrow for every entry of the table.

    Args:
        transitions: from each status to those that may come after it.
    """
    arrows = [(a.name, b.name) for a, after in transitions.items() for b in after]
    figure, axes = sheet((8.2, 4.0), (0, 8.2), (-0.5, 4.5))
    for start, end in arrows:
        (x0, y0), (x1, y1) = _STATUS_PLACES[start], _STATUS_PLACES[end]
        if y0 == y1:  # there and back run side by side
            side = 1 if x1 > x0 else -1
            tail = (x0 + side * 0.5, y0 + side * 0.16)
            head = (x1 - side * 0.5, y1 + side * 0.16)
            words = ((x0 + x1) / 2, y0 + side * 0.34)
        else:
            side = 1 if y1 > y0 else -1
            tail = (x0 + (x1 - x0) * 0.1, y0 + side * 0.22)
            head = (x1 - (x1 - x0) * 0.12, y1 - side * 0.36)
            words = ((x0 + x1) / 2, (y0 + y1) / 2)
        axes.annotate(
            "", head, tail, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.3}
        )
        axes.text(
            *words,
            EVENTS.get((start, end), ""),
            ha="center",
            va="center",
            size=8,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    for status, after in transitions.items():
        x, y = _STATUS_PLACES[status.name]
        axes.text(
            x,
            y,
            status.name.replace("FINISHED_", "FINISHED\n"),
            ha="center",
            va="center",
            size=9,
            color="white" if after else INK,
            bbox={
                "boxstyle": "round,pad=0.6",
                "facecolor": BLUE if after else PALE,
                "edgecolor": BLUE if after else GREY,
            },
        )
    lines = []
    for status, after in transitions.items():
        if not after:
            lines.append(f"{status.name}: final")
        for end in after:
            event = EVENTS.get((status.name, end.name), "")
            lines.append(f"{status.name} → {end.name}: {event}".removesuffix(": "))
    return Picture(svg_of(figure), "\n".join(lines))
