"""Pictures of 01: what a memory holds."""

from folovllm_lite.viz.picture import BLUE, GREY, INK, PALE, Picture, svg_of


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
    return Picture(svg_of(figure), "\n".join(lines))
