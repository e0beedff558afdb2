"""Pictures of 11: memory slot by slot, and what blocks waste."""

from folovllm_lite.viz.picture import BLUE, GREY, INK, RED, Picture, sheet, svg_of

# Owners in the order in which they are named; the colours differ in brightness too.
OWNERS = (
    "#2f6f9f", "#e09f3e", "#5b9a68", "#c8553d", "#8e6fb0", "#4fb3bf", "#7a5c3e",
    "#d98cb3",
)  # fmt: skip
_MIDDLE = {"ha": "center", "va": "center"}


def draw_slots(memory: dict[str, str], title: str = "") -> Picture:
    """Memory slot by slot: who has which, and which of them hold a token.

    Args:
        memory: a name for each line, and a letter for each of its slots: "A" holds a
            token of A, "a" is A's and holds none, "." is nobody's.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    longest = max(map(len, memory.values()))
    owners = sorted({sign.upper() for line in memory.values() for sign in line} - {"."})
    margin = max(3.0, 0.55 * max(map(len, memory)))
    figure, axes = sheet(
        (7.2, 0.34 * len(memory) + 0.7), (-margin, longest + 0.2), (len(memory), -1.3)
    )
    axes.text(-margin, -0.75, title, color=INK, size=11, va="center")
    lines = [title] if title else []
    width = max(map(len, memory))
    for y, (name, line) in enumerate(memory.items()):
        held, free = sum(map(str.isupper, line)), line.count(".")
        counts = {"hold a token": held, "free": free, "empty": len(line) - held - free}
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        lines.append(f"{name:<{width}} {line}  {words}")
        axes.text(-0.3, y + 0.45, name, color=INK, size=8, ha="right", va="center")
        for x, sign in enumerate(line):
            colour = OWNERS[owners.index(sign.upper()) % 8] if sign != "." else GREY
            full = sign.isupper()
            where = {"edgecolor": "white" if full else colour, "lw": 1}
            face = colour if full else "white"
            if not full:
                where |= {"linestyle": (0, (1, 1)) if sign == "." else "-"}
            axes.add_patch(
                Rectangle((x + 0.06, y + 0.06), 0.88, 0.78, facecolor=face, **where)
            )
            ink = "white" if full else colour
            if sign != ".":
                axes.text(x + 0.5, y + 0.46, sign, color=ink, size=7, **_MIDDLE)
    return Picture(svg_of(figure), "\n".join(lines))


def draw_waste(measured: dict[int, float], title: str = "") -> Picture:
    """Empty slots of a sequence's last block, for blocks of several sizes.

    Args:
        measured: by block size, the mean over sequences and steps.
        title: stands above.

    The line is what to expect if every filling of a last block is equally likely: from
    0 to S - 1 slots are empty, (S - 1) / 2 on average.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted(measured)
    expected = [(size - 1) / 2 for size in sizes]
    axes.plot(sizes, expected, color=GREY, lw=1.5, label="(S − 1) / 2")
    dots = [measured[size] for size in sizes]
    axes.plot(sizes, dots, "o", color=RED, ms=6, label="measured")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("block size S", color=INK, size=9)
    axes.set_ylabel("empty slots a sequence", color=INK, size=9)
    axes.tick_params(labelsize=8, labelcolor=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=BLUE)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", size=11, color=INK)
    lines = [title] if title else []
    lines += [
        f"S = {size:>3}: {measured[size]:>5.1f} empty slots a sequence, "
        f"expected {(size - 1) / 2:.1f}"
        for size in sizes
    ]
    return Picture(svg_of(figure), "\n".join(lines))
