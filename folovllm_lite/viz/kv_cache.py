"""Pictures of 07: what passes read and compute, and what bounds them."""

import math
from collections.abc import Sequence

from folovllm_lite.viz.picture import BLUE, GREY, INK, PALE, RED, Picture, sheet, svg_of


def draw_passes(
    schedules: dict[str, Sequence[tuple[int, int]]], title: str = ""
) -> Picture:
    """What each forward pass of a generation reads from a cache, and what it computes.

    Args:
        schedules: a name, and for each pass the tokens read and the tokens computed.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    names = list(schedules)
    longest = max(sum(step) for steps in schedules.values() for step in steps)
    most = max(len(steps) for steps in schedules.values())
    figure, axes = sheet(
        (7.2, 0.27 * most + 1.1),
        (-1.9, len(names) * (longest + 2.2) - 1.2),
        (most + 1.1, -1.9),
    )
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
    return Picture(svg_of(figure), "\n".join(lines))


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
    # matplotlib writes powers as TeX, which stays TeX where text stays text.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda x, _: f"10{_raised(round(math.log10(x)))}")
        axis.set_minor_formatter(lambda x, _: "")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", size=11, color=INK)
    return Picture(svg_of(figure), "\n".join(lines))


def _raised(number: int) -> str:
    """The number as an exponent."""
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
