"""Pictures of 06: the way of the shapes, masks, heads, rotations, what a head reads."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from folovllm_lite.viz.picture import (
    BLUE,
    GREY,
    INK,
    PALE,
    RED,
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
    figure, axes = sheet((7.2, 5.2), (0, 10), (0, 10))
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1}

    def box(x: float, y: float, width: float, height: float, name: str, shape: str):
        full = not name.endswith("norm")
        face, ink = (BLUE, "white") if full else (PALE, INK)
        axes.add_patch(
            Rectangle((x, y), width, height, facecolor=face, edgecolor="white")
        )
        style = {"color": ink, "va": "center"}
        if height > 0.8:  # the name over the shape
            middle = {"x": x + width / 2, "ha": "center", **style}
            axes.text(y=y + 0.68 * height, s=name, size=9, **middle)
            axes.text(y=y + 0.28 * height, s=shape, size=7.5, **middle)
        else:  # beside it
            axes.text(x + 0.12, y + height / 2, name, size=9, **style)
            right = x + width - 0.12
            axes.text(right, y + height / 2, shape, size=7.5, ha="right", **style)

    for y, (name, shape) in zip((7.8, 6.2, 4.6, 3.0), outer, strict=True):
        box(0.1, y, 2.5, 1.1, name, shape)
        if name != "head":
            axes.annotate("", (1.35, y - 0.5), (1.35, y), arrowprops=arrow)
    # The second box, unfolded: from its right edge to the frame of a layer.
    axes.add_patch(
        Rectangle((3.2, 0.1), 6.7, 9.1, fill=False, edgecolor=GREY, linestyle="--")
    )
    for start, end in ((7.3, 9.2), (6.2, 0.1)):
        axes.plot((2.6, 3.2), (start, end), color=GREY, lw=1, ls="--")
    # The stream, and the branches beside it: each reads it and adds to it further down.
    stream = {"arrowstyle": "-|>", "color": RED, "lw": 4, "mutation_scale": 18}
    axes.annotate("", (3.9, 0.15), (3.9, 9.1), arrowprops=stream)
    axes.text(4.1, 8.85, f"x [T, {E}]: the residual stream", color=RED, size=8.5)
    for top, (branch, steps) in zip((7.7, 3.4), branches.items(), strict=True):
        for n, (name, shape) in enumerate(steps):
            y = top - 0.74 * n
            box(5.0, y, 4.7, 0.56, name, shape)
            if n:
                axes.annotate("", (7.3, y + 0.56), (7.3, y + 0.74), arrowprops=arrow)
        axes.annotate("", (5.0, top + 0.28), (3.95, top + 0.28), arrowprops=arrow)
        axes.annotate("", (4.12, y + 0.28), (5.0, y + 0.28), arrowprops=arrow)
        axes.plot(
            [3.9], [y + 0.28], "o", ms=13, mfc="white", mec=RED, mew=1.6, zorder=5
        )
        plus = {"ha": "center", "va": "center", "color": RED, "zorder": 6}
        axes.text(3.9, y + 0.27, "+", size=12, **plus)
        axes.text(9.7, top + 0.66, f"{branch}(x)", ha="right", color=INK, size=9)
    axes.text(0.1, 9.6, title, color=INK, size=11, va="center")
    return Picture(svg_of(figure), "\n".join(lines))


def draw_masking(scores: Tensor, title: str = "") -> Picture:
    """Scores [T, T], the future hidden from them, and the weights that are left.

    Args:
        scores: of T queries with the keys of the same tokens.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    T = len(scores)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    masked = scores.masked_fill(hidden, -math.inf)
    grids = {"scores": scores, "mask the future": masked, "softmax": masked.softmax(-1)}
    lines = [title] if title else []
    figure, axes = sheet((1.0 + 0.62 * 3 * T, 0.9 + 0.36 * T), (0, 3 * T + 3.4), (0, 1))
    axes.set_ylim(T + 0.3, -1.7)
    for i, (name, grid) in enumerate(grids.items()):
        left = 1.2 + i * (T + 0.9)
        axes.text(left + T / 2, -0.75, name, ha="center", color=INK, size=9)
        lines.append(f"{name}:")
        for t, row in enumerate(grid.tolist()):
            words = ["−∞" if x == -math.inf else f"{x:.2f}" for x in row]
            lines.append(f"  query {t}: " + "  ".join(words))
            if not i:
                axes.text(1.0, t + 0.5, f"q{t}", ha="right", va="center", size=8)
            for s, word in enumerate(words):
                gone = s > t and name != "scores"
                share = 0.15 + 0.6 * row[s] if name == "softmax" else 0.12
                cell = {"edgecolor": "white", "facecolor": PALE if gone else BLUE}
                cell["alpha"] = 1 if gone else share
                axes.add_patch(Rectangle((left + s, t), 1, 1, **cell))
                ink = GREY if gone else INK
                at = (left + s + 0.5, t + 0.5)
                axes.text(*at, word, ha="center", va="center", color=ink, size=8)
        for s in range(T):
            axes.text(left + s + 0.5, -0.2, f"k{s}", ha="center", color=INK, size=8)
        if i:
            arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1}
            axes.annotate(
                "", (left - 0.1, T / 2), (left - 0.8, T / 2), arrowprops=arrow
            )
    axes.text(0.1, -1.4, title, color=INK, size=10)
    return Picture(svg_of(figure), "\n".join(lines))


def draw_groups(Hq: int, Hkv: int, title: str = "") -> Picture:
    """Which key/value head each query head reads: neighbours share one."""
    from matplotlib.patches import Rectangle

    group = Hq // Hkv
    lines = [title] if title else []
    lines += [f"query head {h} reads key/value head {h // group}" for h in range(Hq)]
    figure, axes = sheet((0.9 * Hq + 1.6, 1.9), (-1.8, Hq), (-0.4, 3.4))
    for row, (count, name) in enumerate(((Hkv, "k, v"), (Hq, "q"))):
        width = Hq / count
        axes.text(-0.2, 0.35 + 1.7 * row, name, ha="right", va="center", color=INK)
        for h in range(count):
            face = BLUE if row else GREY
            place = (h * width + width / 2 - 0.4, 1.7 * row)
            box = Rectangle(place, 0.8, 0.7, facecolor=face, edgecolor="white")
            axes.add_patch(box)
            middle = (place[0] + 0.4, place[1] + 0.35)
            axes.text(*middle, str(h), ha="center", va="center", color="white", size=9)
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1}
    for h in range(Hq):
        to = (h // group + 0.5) * group
        axes.annotate("", (to, 0.72), (h + 0.5, 1.68), arrowprops=arrow)
    axes.text(-1.7, 3.1, title, color=INK, size=10, va="center")
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
