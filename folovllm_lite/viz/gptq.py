"""Pictures of 15: the levels that weights go to, and which inputs matter."""

from collections.abc import Sequence

from folovllm_lite.viz.picture import BLUE, GREY, INK, RED, Picture, sheet, svg_of


def draw_levels(
    weights: Sequence[float], grids: dict[str, tuple[float, int]], title: str = ""
) -> Picture:
    """Where the 16 levels of four bits lie, and where weights go.

    Args:
        weights: of one group.
        grids: a name, and the scale and zero point of its levels.
        title: stands above.
    """
    least, most = min(weights), max(weights)
    room = (most - least) * 0.1 or 1.0
    figure, axes = sheet(
        (7.2, 0.75 * len(grids) + 0.7),
        (least - 3.4 * room, most + room),
        (len(grids) + 0.2, -0.8),
    )
    axes.text(least - 3.4 * room, -0.55, title, color=INK, size=11, va="center")
    lines = [title] if title else []
    for y, (name, (scale, zero)) in enumerate(grids.items()):
        levels = [(level - zero) * scale for level in range(16)]
        axes.text(least - 3.4 * room, y + 0.35, name, color=INK, size=9, va="center")
        inside = [x for x in levels if least - room <= x <= most + room]
        axes.vlines(inside, y + 0.1, y + 0.6, color=GREY, lw=1)
        nearest = [min(levels, key=lambda x, w=w: abs(x - w)) for w in weights]
        for w, x in zip(weights, nearest, strict=True):
            axes.plot([w, x], [y + 0.75, y + 0.6], color=RED, lw=0.8)
        axes.plot(weights, [y + 0.75] * len(weights), "o", color=BLUE, ms=3)
        used = len(set(nearest))
        wrong = sum((w - x) ** 2 for w, x in zip(weights, nearest, strict=True))
        error = (wrong / len(weights)) ** 0.5 / scale
        lines.append(
            f"{name}: {used} of 16 levels used, off by {error:.2f} steps on average"
        )
    return Picture(svg_of(figure), "\n".join(lines))


def draw_hessian(matrix: Sequence[Sequence[float]], title: str = "") -> Picture:
    """A square matrix as shades: blue above 0, red below, by its largest entry.

    Args:
        matrix: [K][K], of at most some 64 rows.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    K = len(matrix)
    most = max(abs(value) for row in matrix for value in row) or 1.0
    figure, axes = sheet((4.2, 4.5), (-0.5, K + 0.5), (K + 0.5, -0.1 * K - 1))
    axes.text(0, -0.05 * K - 0.5, title, color=INK, size=10, va="center")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            # The root, so that the smaller entries can be seen at all.
            shade = round((abs(value) / most) ** 0.5, 1)
            if not shade:
                continue
            axes.add_patch(
                Rectangle((j, i), 1, 1, facecolor=BLUE if value > 0 else RED,
                          alpha=shade, lw=0)
            )  # fmt: skip
    squares = [matrix[i][i] for i in range(K)]
    order = sorted(range(K), key=lambda i: -squares[i])
    share = sum(squares[i] for i in order[: max(1, K // 8)]) / (sum(squares) or 1.0)
    words = f"{max(1, K // 8)} of {K} inputs hold {share:.0%} of the squares"
    text = "\n".join(([title] if title else []) + [words])
    return Picture(svg_of(figure), text)
