"""Pictures of 03: what may come next, and what the filters leave of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from folovllm_lite.sampler import apply_min_p, apply_top_k, apply_top_p
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz.picture import BLUE, GREY, INK, RED, Picture, label, svg_of


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


def draw_next_tokens(candidates: list[Candidate], title: str = "") -> Picture:
    """Bars: what the model gives each candidate, and its chance in the draw.

    Probabilities are rounded to whole per cent before they are drawn, so that the
    picture doesn't depend on the last digit of another processor.
    """
    from matplotlib.figure import Figure

    rows = [
        (label(c.text), round(c.probability, 2), round(c.chance, 2), c.cut_by)
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
    return Picture(svg_of(figure), "\n".join(lines))
