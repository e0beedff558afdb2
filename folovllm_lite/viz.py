"""Pictures of what the engine does: data first, then a figure and the same as text.

A figure is an SVG string that is the same on every run, so that notebooks can be
compared; its letters stay letters, and the browser finds a font for Chinese. What is
drawn comes from plain functions, which are tested.
"""

import io
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from folovllm_lite.request import TRANSITIONS
from folovllm_lite.sampler import apply_min_p, apply_top_k, apply_top_p
from folovllm_lite.sampling_params import SamplingParams

INK, BLUE, GREY, PALE, RED = "#1f2933", "#2f6f9f", "#9aa5b1", "#e4e9ee", "#c8553d"


class Picture:
    """An SVG that a notebook shows; `str()` gives the same as text."""

    def __init__(self, svg: str, text: str):
        self.svg, self.text = svg, text

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Candidate:
    """A token that could come next.

    Args:
        token_id: the token.
        text: how it reads.
        probability: what the model gives it, at temperature 1.
        warmed: the same after the temperature.
        cut_by: the filter that removed it, or None.
        chance: its probability in the draw; 0 if it was removed.
    """

    token_id: int
    text: str
    probability: float
    warmed: float
    cut_by: str | None
    chance: float


def next_tokens(
    logits: Tensor, tokenizer: Any, params: SamplingParams, count: int = 10
) -> list[Candidate]:
    """The `count` likeliest next tokens and what happens to each before the draw.

    Args:
        logits: [V] of one position.
        tokenizer: for the texts.
        params: temperature, min_p, top_k and top_p are shown, in this order.
        count: how many.
    """
    logits = logits.detach().float().cpu()[None]  # [1, V]
    raw = logits.softmax(-1)[0]
    top = logits[0].argsort(descending=True, stable=True)[:count].tolist()
    if params.temperature == 0:
        best = top[0]
        return [
            Candidate(
                i,
                tokenizer.decode([i]),
                raw[i].item(),
                raw[i].item(),
                None if i == best else "greedy",
                float(i == best),
            )
            for i in top
        ]
    warm = logits / params.temperature
    steps = [
        ("min_p", apply_min_p, params.min_p),
        ("top_k", apply_top_k, min(params.top_k, logits.shape[-1])),
        ("top_p", apply_top_p, params.top_p),
    ]
    cut_by: dict[int, str] = {}
    left = warm
    for name, apply, value in steps:
        left = apply(left, torch.tensor([[value]]))
        for i in top:
            if left[0, i] == -math.inf:
                cut_by.setdefault(i, name)
    warmed, chance = warm.softmax(-1)[0], left.softmax(-1)[0]
    return [
        Candidate(
            i,
            tokenizer.decode([i]),
            raw[i].item(),
            warmed[i].item(),
            cut_by.get(i),
            chance[i].item(),
        )
        for i in top
    ]


def _label(text: str) -> str:
    """A token's text with its spaces visible."""
    return text.replace(" ", "␣").replace("\n", "⏎") or "∅"


def draw_next_tokens(candidates: list[Candidate], title: str = "") -> Picture:
    """Bars: what the model gives each candidate, and its chance in the draw.

    Probabilities are rounded to whole per cent before they are drawn, so that the
    picture doesn't depend on the last digit of another processor.
    """
    from matplotlib.figure import Figure

    rows = [
        (_label(c.text), round(c.probability, 2), round(c.chance, 2), c.cut_by)
        for c in candidates
    ]
    lines = [title] if title else []
    lines += [
        f"{label:<14} model {before:>4.0%}   "
        + (f"cut by {cut}" if cut else f"draw {after:>4.0%}  {'█' * round(after * 30)}")
        for label, before, after, cut in rows
    ]
    figure = Figure(figsize=(7.2, 0.38 * len(rows) + 0.7), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, before, after, cut) in enumerate(rows):
        axes.barh(
            y - 0.19, before, 0.34, color=GREY, label="the model" if y == 0 else None
        )
        axes.barh(
            y + 0.19, after, 0.34, color=BLUE, label="the draw" if y == 0 else None
        )
        axes.text(
            before + 0.006, y - 0.19, f"{before:.0%}", color=INK, va="center", size=8
        )
        if cut:
            axes.text(0.006, y + 0.2, f"cut by {cut}", color=RED, va="center", size=8)
        else:
            axes.text(
                after + 0.006, y + 0.2, f"{after:.0%}", color=BLUE, va="center", size=8
            )
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows], size=10)
    axes.invert_yaxis()
    widest = max(max(before, after) for _, before, after, _ in rows)
    axes.set_xlim(0, max(widest * 1.12, 0.05))
    axes.set_xticks([])
    axes.tick_params(length=0, labelcolor=INK)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(GREY)
    axes.set_title(title, loc="left", size=11, color=INK)
    return Picture(_svg(figure), "\n".join(lines))


@dataclass(frozen=True)
class Part:
    """A box of the engine's map: where it stands, and which notebooks build it."""

    name: str
    notebooks: tuple[int, ...]
    built: bool
    x: float
    y: float
    width: float = 1.62


# The way of a prompt through the engine, row by row. "built" is what the package holds.
PARTS = (
    Part("configs", (1,), True, 0.0, 3),
    Part("model loader", (5,), True, 1.92, 3),
    Part("GPTQ weights", (15,), False, 3.84, 3),
    Part("LLM and engine", (9, 10), True, 5.76, 3),
    Part("prompt to ids", (8,), True, 0.0, 2),
    Part("sampling params", (2,), True, 1.92, 2),
    Part("request", (4,), True, 3.84, 2),
    Part("scheduler", (10, 13), True, 5.76, 2),
    Part("ids to text", (8,), True, 1.92, 1),
    Part("sampler", (3,), True, 3.84, 1),
    Part("transformer", (6,), True, 5.76, 1),
    Part("paged KV cache", (11, 14), True, 1.92, 0),
    Part("KV cache", (7,), True, 3.84, 0),
    Part("attention", (6, 12), True, 5.76, 0),
)
# From, to, and the style of the arrow: one way for what flows, both for what is
# consulted.
_ARROWS = (
    ("prompt to ids", "sampling params", "-|>"),
    ("sampling params", "request", "-|>"),
    ("request", "scheduler", "-|>"),
    ("scheduler", "transformer", "-|>"),
    ("transformer", "sampler", "-|>"),
    ("sampler", "ids to text", "-|>"),
    ("transformer", "attention", "<|-|>"),
    ("attention", "KV cache", "<|-|>"),
    ("KV cache", "paged KV cache", "-|>"),
)


def course_map() -> Picture:
    """The engine's parts, the notebooks that build them, and what exists already."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(8.2, 4.2))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-0.1, 7.5)
    axes.set_ylim(-0.65, 3.85)
    axes.axis("off")
    height = 0.66
    places = {part.name: part for part in PARTS}
    for start, end, style in _ARROWS:
        a, b = places[start], places[end]
        if a.y == b.y:
            forward = b.x > a.x
            tail = (a.x + (a.width if forward else 0), a.y + height / 2)
            head = (b.x + (0 if forward else b.width), b.y + height / 2)
        else:
            tail = (a.x + a.width / 2, a.y)
            head = (b.x + b.width / 2, b.y + height)
        axes.annotate(
            "", head, tail, arrowprops={"arrowstyle": style, "color": INK, "lw": 1.4}
        )
    for part in PARTS:
        axes.add_patch(
            FancyBboxPatch(
                (part.x, part.y),
                part.width,
                height,
                boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=BLUE if part.built else "white",
                edgecolor=BLUE if part.built else GREY,
                linestyle="-" if part.built else (0, (4, 3)),
                linewidth=1.4,
            )
        )
        ink = "white" if part.built else INK
        middle = part.x + part.width / 2
        axes.text(
            middle,
            part.y + 0.43,
            part.name,
            ha="center",
            va="center",
            color=ink,
            size=10,
        )
        numbers = " · ".join(f"{n:02}" for n in part.notebooks)
        axes.text(
            middle, part.y + 0.18, numbers, ha="center", va="center", color=ink, size=8
        )
    for x, y, words in (
        (0.81, 2.83, "“Once upon a time”"),
        (0.81, 1.33, "“, there was a …”"),
    ):
        axes.text(
            x, y, words, ha="center", va="center", color=INK, size=9, style="italic"
        )
    for x, words in (
        (0.0, "blue: in the package now"),
        (2.4, "dashed: a later milestone"),
        (4.8, "numbers: the notebooks of a part"),
    ):
        axes.text(x, -0.45, words, color=INK, size=8.5)
    text = "\n".join(
        f"{'■' if part.built else '□'} {part.name:<22} notebooks "
        + ", ".join(f"{n:02}" for n in part.notebooks)
        for part in PARTS
    )
    return Picture(_svg(figure), text)


def _svg(figure: Any) -> str:
    """A figure as SVG without dates and random ids, its text as text."""
    import matplotlib

    out = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "folovllm", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        # The measuring font may lack a glyph; the browser's fonts don't.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


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
    from matplotlib.figure import Figure

    arrows = [(a.name, b.name) for a, after in transitions.items() for b in after]
    figure = Figure(figsize=(8.2, 4.0))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, 8.2)
    axes.set_ylim(-0.5, 4.5)
    axes.axis("off")
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
    return Picture(_svg(figure), "\n".join(lines))


def size(count: int) -> str:
    """Bytes in the largest binary unit of which there is at least one: '1.75 MiB'."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):.2f} {unit}"
    return f"{count} B"


def draw_memory(bars: dict[str, dict[str, int]], title: str = "") -> Picture:
    """Bars that show what a memory holds, one below the other on the same scale.

    Args:
        bars: a name for each bar, and its parts in bytes, in order from the left.
            Parts of the same name have the same colour in every bar; there are four.
        title: above the bars.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    colours = [(INK, "white"), (GREY, INK), (BLUE, "white"), (PALE, INK)]
    fills = dict(zip(names, colours, strict=False))
    longest = max(sum(parts.values()) for parts in bars.values())
    figure = Figure(figsize=(7.2, 0.62 * len(bars) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    lines = [title] if title else []
    for y, (bar, parts) in enumerate(bars.items()):
        left = 0.0
        lines.append(bar)
        for name, count in parts.items():
            width = count / longest
            fill, ink = fills[name]
            axes.barh(y, width, 0.62, left, color=fill, edgecolor="white")
            if width > 0.12:
                middle = left + width / 2
                axes.text(
                    middle, y, size(count), color=ink, ha="center", va="center", size=8
                )
            left += width
            lines.append(f"  {name:<22}{size(count):>11}  {'█' * round(width * 40)}")
    for name in names:  # one entry each, in the order of the bars' parts
        axes.barh(0, 0, color=fills[name][0], label=name)
    axes.set_yticks(range(len(bars)), list(bars), size=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(length=0, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, loc="left", size=11, color=INK)
    figure.legend(
        loc="outside lower center", ncols=len(names), frameon=False, fontsize=9
    )
    return Picture(_svg(figure), "\n".join(lines))


# Where the engine reads each field of SamplingParams, in the order of one step: title,
# what happens there, fields.
FIELD_GROUPS = (
    ("how many", "sequences are made", ("n", "best_of")),
    (
        "penalties",
        "scores are changed",
        ("presence_penalty", "frequency_penalty", "repetition_penalty"),
    ),
    (
        "how to draw",
        "one token is chosen",
        ("temperature", "min_p", "top_k", "top_p", "seed"),
    ),
    (
        "when to stop",
        "the end is looked for",
        (
            "min_tokens",
            "stop_token_ids",
            "ignore_eos",
            "stop",
            "include_stop_str_in_output",
            "max_tokens",
        ),
    ),
    (
        "what to report",
        "the output is made",
        (
            "logprobs",
            "prompt_logprobs",
            "skip_special_tokens",
            "spaces_between_special_tokens",
        ),
    ),
    (
        "beam search",
        "refused",
        ("use_beam_search", "length_penalty", "early_stopping"),
    ),
)


def sampling_fields() -> Picture:
    """The loop of one request, and the fields of SamplingParams where they are read."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(8.7, 3.3))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-0.05, 9.5)
    axes.set_ylim(-1.75, 1.65)
    axes.axis("off")
    *steps, refused = FIELD_GROUPS
    places = (0.0, 2.75, 4.4, 5.95, 7.6)
    width, height = 1.35, 0.62

    def box(x: float, y: float, title: str, under: str, style: str = "full") -> None:
        full = style == "full"
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width if full else 0.9,
                height,
                boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=BLUE if full else "white",
                edgecolor=BLUE if full else GREY,
                linewidth=1.4,
            )
        )
        middle = x + (width if full else 0.9) / 2
        ink = "white" if full else INK
        axes.text(middle, y + 0.40, title, ha="center", va="center", color=ink, size=9)
        axes.text(
            middle, y + 0.17, under, ha="center", va="center", color=ink, size=6.8
        )

    def arrow(start: float, end: float) -> None:
        axes.annotate(
            "",
            (end, height / 2),
            (start, height / 2),
            arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4},
        )

    for x, (title, under, names) in zip(places, steps, strict=True):
        box(x, 0, title, under)
        for line, name in enumerate(names):
            axes.text(x + 0.02, -0.22 - 0.21 * line, name, color=INK, size=7)
    box(1.6, 0, "model", "a score each", "empty")
    for start, end in zip((0.0, 1.6, *places[1:]), (1.6, *places[1:]), strict=False):
        arrow(start + (0.9 if start == 1.6 else width), end)
    axes.annotate(
        "",
        (2.05, height),
        (6.62, height),
        arrowprops={
            "arrowstyle": "-|>",
            "color": INK,
            "lw": 1.4,
            "connectionstyle": "bar,fraction=0.09",
        },
    )
    axes.text(4.33, 1.2, "not yet: one more token", ha="center", color=INK, size=8)
    title, under, names = refused
    words = f"{title}, {under}: {', '.join(names)}"
    axes.text(0.02, -1.6, words, color=RED, size=8)
    text = "\n".join(
        f"{title} ({under}): {', '.join(names)}" for title, under, names in FIELD_GROUPS
    )
    return Picture(_svg(figure), text)


def draw_file(
    parts: list[tuple[str, int]], data_from: int = 2, title: str = ""
) -> Picture:
    """A file from its first byte to its last: what stands where. Not to scale.

    Args:
        parts: name and bytes of each part, in the file's order.
        data_from: the first part that is data; those before it describe it.
        title: stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    starts = [sum(size for _, size in parts[:i]) for i in range(len(parts) + 1)]
    lines = [title] if title else []
    lines += [
        f"byte {start:>5}: {name}, {size} bytes"
        for start, (name, size) in zip(starts, parts, strict=False)
    ]
    lines.append(f"byte {starts[-1]:>5}: the end")
    figure = Figure(figsize=(7.2, 1.5))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-0.15, len(parts) + 0.15)
    axes.set_ylim(-0.55, 1.6)
    axes.axis("off")
    for x, (name, size) in enumerate(parts):
        is_data = x >= data_from
        face, ink = (BLUE, "white") if is_data else (PALE, INK)
        axes.add_patch(Rectangle((x, 0), 1, 1, facecolor=face, edgecolor="white", lw=2))
        for y, words, points in ((0.63, name, 10), (0.3, f"{size} bytes", 8)):
            axes.text(
                x + 0.5, y, words, ha="center", va="center", color=ink, size=points
            )
    for x, start in enumerate(starts):
        axes.text(x, -0.25, str(start), ha="center", va="center", color=INK, size=8)
    axes.text(0, 1.3, title, color=INK, size=11, va="center")
    return Picture(_svg(figure), "\n".join(lines))


def token_bytes(pieces: Sequence[tuple[int, bytes]]) -> list[tuple[str, int, int]]:
    """The characters that the bytes of some tokens spell: (text, first, end).

    `first` and `end` count bytes. Bytes that spell nothing are U+FFFD.
    """
    data = b"".join(piece for _, piece in pieces)
    characters, start = [], 0
    while start < len(data):
        try:
            good, broken = data[start:].decode(), 0
        except UnicodeDecodeError as error:
            good = data[start : start + error.start].decode()
            broken = error.end - error.start
        for text, size in [(c, len(c.encode())) for c in good] + [("�", broken)]:
            if size:
                characters.append((text, start, start + size))
            start += size
    return characters


def draw_token_bytes(pieces: Sequence[tuple[int, bytes]], title: str = "") -> Picture:
    """Tokens above, their bytes in the middle, the characters they spell below.

    Args:
        pieces: id and bytes of each token.
        title: stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    data = b"".join(piece for _, piece in pieces)
    ends = [sum(len(p) for _, p in pieces[: i + 1]) for i in range(len(pieces))]
    characters = token_bytes(pieces)
    lines = [title] if title else []
    for (token_id, piece), end in zip(pieces, ends, strict=True):
        done = [c for c, _, last in characters if end - len(piece) < last <= end]
        shows = ", ".join(_label(c) for c in done) or "nothing yet"
        lines.append(f"token {token_id:>4}: {piece.hex(' '):<12} completes {shows}")
    figure = Figure(figsize=(max(4.0, 0.52 * len(data) + 0.9), 2.1))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-1.75, max(len(data), 6) + 0.1)
    axes.set_ylim(-0.15, 4.1)
    axes.axis("off")

    def box(x: int, width: int, y: float, words: str, face: str, ink: str) -> None:
        axes.add_patch(
            Rectangle((x, y), width, 0.85, facecolor=face, edgecolor="white", lw=2)
        )
        middle = (x + width / 2, y + 0.42)
        axes.text(*middle, words, ha="center", va="center", color=ink, size=9)

    for (token_id, piece), end in zip(pieces, ends, strict=True):
        box(end - len(piece), len(piece), 2.2, str(token_id), PALE, INK)
    for i, byte in enumerate(data):
        face, ink = (GREY, INK) if 0x80 <= byte < 0xC0 else (BLUE, "white")
        box(i, 1, 1.2, f"{byte:02x}", face, ink)
    for character, start, end in characters:
        box(start, end - start, 0.1, _label(character), "white", INK)
        axes.plot([start + 0.08, end - 0.08], [1.08, 1.08], color=INK, lw=1.2)
    for y, words in ((2.62, "token ids"), (1.62, "bytes"), (0.52, "characters")):
        axes.text(-0.2, y, words, ha="right", va="center", color=INK, size=9)
    axes.text(0, 3.6, title, color=INK, size=11, va="center")
    return Picture(_svg(figure), "\n".join(lines))


def draw_transformer(sizes: Mapping[str, int], title: str = "") -> Picture:
    """The way from token ids to logits, with the shape that each step leaves behind.

    Args:
        sizes: E, Hq, Hkv, D, M, V and L of a model.
        title: stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    E, Hq, Hkv, D, M, V, L = (sizes[name] for name in ("E Hq Hkv D M V L".split()))
    outer = [
        ("embedding", f"[T] → [T, {E}]"),
        (f"{L} layers", f"[T, {E}] → [T, {E}]"),
        ("norm", f"[T, {E}]"),
        ("head", f"[T, {E}] → [T, {V:,}]"),
    ]
    branches = {
        "attention": [
            ("norm", f"[T, {E}]"),
            ("q, k, v", f"[T, {Hq}, {D}], 2 × [T, {Hkv}, {D}]"),
            ("norm q and k, rotate", "same shapes"),
            ("attend", f"[T, {Hq}, {D}]"),
            ("o", f"[T, {Hq * D}] → [T, {E}]"),
        ],
        "MLP": [
            ("norm", f"[T, {E}]"),
            ("gate, up", f"2 × [T, {M}]"),
            ("silu(gate) · up", f"[T, {M}]"),
            ("down", f"[T, {M}] → [T, {E}]"),
        ],
    }
    lines = [title] if title else []
    for name, shape in outer:
        lines.append(f"{name}: {shape}")
        if name.endswith("layers"):
            for branch, steps in branches.items():
                lines.append(f"  x = x + {branch}(x):")
                lines += [f"    {step}: {shape}" for step, shape in steps]
    figure = Figure(figsize=(7.2, 4.0))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 7.4)
    axes.axis("off")

    def column(x: float, width: float, top: float, steps: list[tuple[str, str]]):
        for y, (name, shape) in enumerate(steps):
            low, full = top - 1.1 * y, not name.endswith("norm")
            face, ink = (BLUE, "white") if full else (PALE, INK)
            box = Rectangle((x, low), width, 0.82, facecolor=face, edgecolor="white")
            axes.add_patch(box)
            for dy, words, points in ((0.55, name, 9), (0.22, shape, 7.5)):
                axes.text(
                    x + width / 2,
                    low + dy,
                    words,
                    ha="center",
                    va="center",
                    color=ink,
                    size=points,
                )
            if y + 1 < len(steps):
                arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1}
                axes.annotate(
                    "",
                    (x + width / 2, low - 0.3),
                    (x + width / 2, low),
                    arrowprops=arrow,
                )

    column(0.1, 2.5, 5.6, outer)
    # The second box, unfolded: from its right edge to the frame of the two branches.
    frame = Rectangle((3.2, 0.1), 6.7, 6.7, fill=False, edgecolor=GREY, linestyle="--")
    axes.add_patch(frame)
    for start, end in ((5.32, 6.8), (4.5, 0.1)):
        axes.plot((2.6, 3.2), (start, end), color=GREY, lw=1, ls="--")
    for x, (branch, steps) in zip((3.4, 6.7), branches.items(), strict=True):
        axes.text(x + 1.55, 6.45, f"x + {branch}(x)", ha="center", color=INK, size=9)
        column(x, 3.1, 5.35, steps)
    axes.text(0.1, 7.0, title, color=INK, size=11, va="center")
    return Picture(_svg(figure), "\n".join(lines))


def draw_rotations(
    panels: Mapping[str, Sequence[tuple[float, float]]], title: str = ""
) -> Picture:
    """Arrows from the origin, numbered by position, in a panel for each rotation.

    Args:
        panels: heading -> the point that the pair has become at position 0, 1, 2, …
        title: stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    lines = [title] if title else []
    figure = Figure(figsize=(3.0 * len(panels), 3.1), layout="constrained")
    if title:
        figure.suptitle(title, color=INK, size=11)
    for axes, (name, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        points = [(round(x, 2) + 0.0, round(y, 2) + 0.0) for x, y in points]
        lines.append(f"{name}: " + "  ".join(f"({x:g}, {y:g})" for x, y in points))
        reach = max(1.0, *(math.hypot(x, y) for x, y in points)) * 1.3
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.axis("off")
        axes.set_title(name, color=INK, size=9)
        axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=GREY, lw=1))
        for position, (x, y) in enumerate(points):
            arrow = {
                "arrowstyle": "-|>",
                "color": BLUE,
                "lw": 1.6,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            axes.annotate("", (x, y), (0, 0), arrowprops=arrow)
            away = 0.13 * reach / (math.hypot(x, y) or 1.0)
            axes.text(
                x * (1 + away),
                y * (1 + away),
                str(position),
                ha="center",
                va="center",
                color=INK,
                size=8,
            )
    return Picture(_svg(figure), "\n".join(lines))


def attention_links(weights: Tensor, least: float = 0.1) -> list[tuple[int, int, int]]:
    """(query, key, per cent) of what a head reads, weights of at least `least`.

    Args:
        weights: [T, S], each row sums to 1.
        least: what is below is left out.
    """
    found = (weights >= least).nonzero().tolist()
    return [(t, s, round(100 * weights[t, s].item())) for t, s in found]


def draw_attention(
    weights: Tensor,
    queries: Sequence[str],
    keys: Sequence[str],
    title: str = "",
    least: float = 0.1,
) -> Picture:
    """A head's map: a row for each query, and how much of each key it reads.

    Weights are rounded to whole per cent before they are drawn.

    Args:
        weights: [T, S].
        queries: T texts.
        keys: S texts.
        title: stands above.
        least: weights below it are left white.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    links = attention_links(weights, least)
    queries = [_label(text) for text in queries]
    keys = [_label(text) for text in keys]
    lines = [title] if title else []
    for t, query in enumerate(queries):
        reads = [f"{keys[s]} ({s}) {share}%" for row, s, share in links if row == t]
        lines.append(f"{query} ({t}) reads " + (", ".join(reads) or "a little of all"))
    size = 0.2
    figure = Figure(figsize=(1.2 + size * len(keys), 1.2 + size * len(queries)))
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    for t, s, share in links:
        cell = Rectangle((s - 0.5, t - 0.5), 1, 1, facecolor=BLUE, alpha=share / 100)
        axes.add_patch(cell)
    axes.set_xlim(-0.5, len(keys) - 0.5)
    axes.set_ylim(len(queries) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(keys)), keys, rotation=90, size=6.5, color=INK)
    axes.set_yticks(range(len(queries)), queries, size=6.5, color=INK)
    axes.tick_params(length=0)
    axes.set_xlabel("key: the token that is read", size=8, color=INK)
    axes.set_ylabel("query: the token that reads", size=8, color=INK)
    for side in axes.spines.values():
        side.set_color(PALE)
    if title:
        axes.set_title(title, size=9, color=INK)
    return Picture(_svg(figure), "\n".join(lines))


def draw_passes(
    schedules: dict[str, Sequence[tuple[int, int]]], title: str = ""
) -> Picture:
    """What each forward pass of a generation reads from a cache, and what it computes.

    Args:
        schedules: a name, and for each pass the tokens read and the tokens computed.
        title: stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = list(schedules)
    longest = max(sum(step) for steps in schedules.values() for step in steps)
    most = max(len(steps) for steps in schedules.values())
    figure = Figure(figsize=(7.2, 0.27 * most + 1.1))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-1.9, len(names) * (longest + 2.2) - 1.2)
    axes.set_ylim(most + 1.1, -1.9)
    axes.axis("off")
    axes.text(-1.9, -1.4, title, color=INK, size=11, va="center")
    lines = [title] if title else []
    for panel, (name, steps) in enumerate(schedules.items()):
        x = panel * (longest + 2.2)
        computed = sum(new for _, new in steps)
        axes.text(x, -0.5, name, color=INK, size=9, va="center")
        words = f"{computed} tokens computed"
        axes.text(x, most + 0.6, words, color=BLUE, size=9, va="center")
        lines.append(f"{name}: {words}")
        for y, (read, new) in enumerate(steps):
            if panel == 0:
                words = f"pass {y + 1}"
                axes.text(
                    -0.2, y + 0.5, words, color=INK, size=8, ha="right", va="center"
                )
            lines.append(f"  pass {y + 1}  {'□' * read}{'■' * new}")
            for i in range(read + new):
                fill = PALE if i < read else BLUE
                axes.add_patch(
                    Rectangle((x + i, y), 1, 1, facecolor=fill, edgecolor="white", lw=2)
                )
    for x, fill, words in (
        (0.42, BLUE, "computed"),
        (0.57, PALE, "read from the cache"),
    ):
        where = {"transform": axes.transAxes, "facecolor": fill}
        axes.add_patch(
            Rectangle((x, 1 - 0.75 / (most + 3)), 0.025, 0.5 / (most + 3), **where)
        )
        axes.text(
            x + 0.035,
            1 - 0.5 / (most + 3),
            words,
            transform=axes.transAxes,
            color=INK,
            size=8,
            va="center",
        )
    return Picture(_svg(figure), "\n".join(lines))


def draw_roofline(
    points: dict[str, tuple[float, float | None]],
    flops: float,
    bandwidth: float,
    title: str = "",
) -> Picture:
    """A machine's two limits, and where pieces of work stand under them.

    Args:
        points: name -> (FLOPs per byte, measured FLOPs per second, or None for what
            the roof allows).
        flops: the machine's most FLOPs per second.
        bandwidth: its most bytes per second.
        title: stands above.
    """
    from matplotlib.figure import Figure

    ridge = flops / bandwidth
    inside = [x for x, _ in points.values()]
    left, right = min([*inside, ridge]) / 3, max([*inside, ridge]) * 6
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    roof = [left * bandwidth, flops, flops]
    axes.loglog([left, ridge, right], roof, color=INK, lw=2)
    axes.axvline(ridge, color=GREY, lw=1, ls=":")
    heights = [
        min(flops, x * bandwidth) if y is None else y for x, y in points.values()
    ]
    axes.set_ylim(min([*heights, roof[0]]) / 2, flops * 4)
    axes.set_xlim(left, right)
    lines = [title] if title else []
    lines.append(f"ridge at {ridge:.3g} FLOPs per byte")
    for (name, (x, y)), height in zip(points.items(), heights, strict=True):
        bound = "memory" if x < ridge else "compute"
        share = height / flops
        axes.plot([x], [height], "o", color=RED if bound == "memory" else BLUE, ms=7)
        axes.annotate(
            name, (x, height), (5, -13), textcoords="offset points", color=INK, size=9
        )
        line = f"{name:<18}{x:>8,.1f} FLOPs per byte, bound by {bound}"
        said = "at most" if y is None else "measured"
        lines.append(f"{line}; {said} {share:.1%} of the arithmetic")
    words = f"ridge: {ridge:.3g}"
    axes.text(ridge, flops * 1.4, words, color=INK, size=9, ha="center")
    axes.set_xlabel("FLOPs per byte read", color=INK, size=9)
    axes.set_ylabel("FLOPs per second", color=INK, size=9)
    axes.tick_params(labelsize=8, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", size=11, color=INK)
    return Picture(_svg(figure), "\n".join(lines))


def loop_passes(completions: list[list[str]]) -> tuple[list[list[int | None]], int]:
    """Which pass of the model runs each token, and how many passes there are.

    Pass 1 is the prefill, which gives every completion its first token. Then each step
    runs the newest token of every completion that goes on; a last token is never run.
    """
    runs: list[list[int | None]] = [[] for _ in completions]
    count = 1
    for step in range(max(map(len, completions))):
        for tokens, numbers in zip(completions, runs, strict=True):
            if step < len(tokens) - 1:
                count += 1
                numbers.append(count)
            elif step == len(tokens) - 1:
                numbers.append(None)
    return runs, count


def draw_loop(prompt: list[str], completions: list[tuple[list[str], str]]) -> Picture:
    """A request on its way: every token under the number of the pass that runs it.

    Args:
        prompt: its tokens' texts.
        completions: the texts of each one's tokens, and why it ended.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    runs, count = loop_passes([tokens for tokens, _ in completions])
    lines = [f"prompt: {'|'.join(prompt)}  all in pass 1"]
    for i, ((tokens, reason), numbers) in enumerate(
        zip(completions, runs, strict=True)
    ):
        marks = ", ".join("never" if n is None else str(n) for n in numbers)
        lines.append(f"completion {i}: {'|'.join(tokens)}  in pass {marks}; {reason}")
    lines.append(f"{count} passes")
    width = len(prompt) + max(len(tokens) for tokens, _ in completions)
    rows = len(completions)
    figure = Figure(figsize=(0.84 * (width + 1.3), 0.62 * rows + 0.45))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-0.1, width + 1.4)
    axes.set_ylim(0, rows + 0.55)
    axes.axis("off")

    def box(x: float, y: float, token: str, number: int | None) -> None:
        face = GREY if number == 1 else BLUE if number else "white"
        edge = {"edgecolor": "white", "lw": 2}
        if number is None:
            edge = {"edgecolor": GREY, "lw": 1, "ls": "--"}
        axes.add_patch(Rectangle((x + 0.04, y), 0.92, 0.5, facecolor=face, **edge))
        ink = INK if number is None else "white"
        middle = {"ha": "center", "va": "center"}
        axes.text(x + 0.5, y + 0.25, _label(token), color=ink, size=8, **middle)
        above = "never run" if number is None else f"pass {number}"
        axes.text(x + 0.5, y + 0.64, above, color=INK, size=7, **middle)

    for x, token in enumerate(prompt):
        box(x, (rows - 1) / 2 + 0.1, token, 1)
    for i, ((tokens, reason), numbers) in enumerate(
        zip(completions, runs, strict=True)
    ):
        y = rows - 1 - i + 0.1
        for x, (token, number) in enumerate(zip(tokens, numbers, strict=True)):
            box(len(prompt) + x, y, token, number)
        end = len(prompt) + len(tokens) + 0.15
        axes.text(end, y + 0.25, reason, color=RED, size=8, va="center")
    return Picture(_svg(figure), "\n".join(lines))


if __name__ == "__main__":  # python -m folovllm_lite.viz FILE.svg: the README's picture
    Path(sys.argv[1]).write_text(course_map().svg, encoding="utf-8")
