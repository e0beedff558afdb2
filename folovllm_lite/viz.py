"""Pictures of what the engine does: data first, then a figure and the same as text.

A figure is an SVG string that is the same on every run, so that notebooks can be
compared; its letters stay letters, and the browser finds a font for Chinese. What is
drawn comes from plain functions, which are tested.
"""

import io
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        ("top_k", apply_top_k, params.top_k),
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
    Part("scheduler", (10, 13), False, 5.76, 2),
    Part("ids to text", (8,), True, 1.92, 1),
    Part("sampler", (3,), True, 3.84, 1),
    Part("transformer", (6,), True, 5.76, 1),
    Part("paged KV cache", (11, 14), False, 1.92, 0),
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


if __name__ == "__main__":  # python -m folovllm_lite.viz FILE.svg: the README's picture
    Path(sys.argv[1]).write_text(course_map().svg, encoding="utf-8")
