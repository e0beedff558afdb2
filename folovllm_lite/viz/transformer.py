"""Pictures of 06: the way of the shapes, rotations, and what a head reads."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from folovllm_lite.viz.picture import (
    BLUE,
    GREY,
    INK,
    PALE,
    Picture,
    label,
    sheet,
    svg_of,
)


def draw_transformer(sizes: Mapping[str, int], title: str = "") -> Picture:
    """The way from token ids to logits, with the shape that each step leaves behind.

    Args:
        sizes: E, Hq, Hkv, D, M, V and L of a model.
        title: stands above.
    """
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
    figure, axes = sheet((7.2, 4.0), (0, 10), (0, 7.4))

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
    return Picture(svg_of(figure), "\n".join(lines))


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
    return Picture(svg_of(figure), "\n".join(lines))


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
    queries = [label(text) for text in queries]
    keys = [label(text) for text in keys]
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
    return Picture(svg_of(figure), "\n".join(lines))
