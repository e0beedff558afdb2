"""Pictures of 05: what stands where in a file."""

from folovllm_lite.viz.picture import BLUE, INK, PALE, Picture, sheet, svg_of


def draw_file(
    parts: list[tuple[str, int]], data_from: int = 2, title: str = ""
) -> Picture:
    """A file from its first byte to its last: what stands where. Not to scale.

    Args:
        parts: name and bytes of each part, in the file's order.
        data_from: the first part that is data; those before it describe it.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    starts = [sum(size for _, size in parts[:i]) for i in range(len(parts) + 1)]
    lines = [title] if title else []
    lines += [
        f"byte {start:>5}: {name}, {size} bytes"
        for start, (name, size) in zip(starts, parts, strict=False)
    ]
    lines.append(f"byte {starts[-1]:>5}: the end")
    figure, axes = sheet((7.2, 1.5), (-0.15, len(parts) + 0.15), (-0.55, 1.6))
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
    return Picture(svg_of(figure), "\n".join(lines))
