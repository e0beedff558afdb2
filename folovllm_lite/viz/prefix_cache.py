"""The picture of 14: prompts as a tree of blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from folovllm_lite.viz.picture import BLUE, GREY, INK, Picture, sheet, svg_of

_MIDDLE = {"ha": "center", "va": "center"}


@dataclass
class PrefixBlock:
    """A block of a tree of prompts.

    Args:
        words: of it.
        owners: the prompts that it is a part of.
        full: whether it can be shared.
        after: the blocks that follow it.
    """

    words: tuple[str, ...]
    owners: list[str]
    full: bool = True
    after: list["PrefixBlock"] = field(default_factory=list)


def prefix_tree(prompts: Mapping[str, Sequence[str]], size: int) -> list[PrefixBlock]:
    """Prompts cut into blocks of `size` words; the full ones that begin alike are one.

    Args:
        prompts: words by name.
        size: words of a block, at least 1.
    """
    if size < 1:
        raise ValueError(f"a block has 1 word or more, not {size}")
    first: list[PrefixBlock] = []
    for name, words in prompts.items():
        level = first
        for start in range(0, len(words), size):
            own = tuple(words[start : start + size])
            full = len(own) == size
            same = [each for each in level if full and each.words == own]
            block = same[0] if same else PrefixBlock(own, [], full)
            if not same:
                level.append(block)
            block.owners.append(name)
            level = block.after
    return first


def _rows(level: list[PrefixBlock], depth: int = 0) -> list[list[PrefixBlock | None]]:
    """One row for each end of the tree; None stands below what is drawn above."""
    rows = []
    for block in level:
        below = _rows(block.after, depth + 1) or [[None] * (depth + 1)]
        below[0][depth] = block
        rows += below
    return rows


def draw_prefixes(
    prompts: Mapping[str, Sequence[str]], size: int, title: str = ""
) -> Picture:
    """Prompts as a tree of blocks: what they share stands once, in blue.

    A block that isn't full is dashed: nobody shares it.

    Args:
        prompts: words by name.
        size: words of a block.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    rows = _rows(prefix_tree(prompts, size))
    columns = max(map(len, rows))
    figure, axes = sheet(
        (1.9 * columns + 0.8, 0.62 * len(rows) + 0.6),
        (-0.05, columns + 0.4),
        (len(rows) - 0.4, -0.95),
    )
    axes.text(0, -0.65, title, color=INK, size=11, va="center")
    lines = [title] if title else []
    heights: dict[int, float] = {}  # column -> the row of the last block there
    stored = 0
    for y, row in enumerate(rows):
        text = ""
        for x, block in enumerate(row):
            if block is None:
                text += f"{'':{_width(rows, x)}}"
                continue
            shared = len(block.owners) > 1
            if x:
                bend = [(x - 0.07, heights[x - 1]), (x - 0.07, y), (x, y)]
                axes.plot(*zip(*bend, strict=True), color=GREY, lw=1)
                axes.plot([x - 0.12, x - 0.07], [heights[x - 1]] * 2, color=GREY, lw=1)
            heights[x] = y
            face = BLUE if shared else "white"
            frame = {"edgecolor": BLUE if block.full else GREY, "lw": 1}
            style = "-" if block.full else (0, (3, 2))
            axes.add_patch(
                Rectangle(
                    (x, y - 0.32), 0.88, 0.64, facecolor=face, linestyle=style, **frame
                )
            )
            words, ink = " ".join(block.words), "white" if shared else INK
            axes.text(x + 0.44, y, words, color=ink, size=8, **_MIDDLE)
            text += f"{_box(block):{_width(rows, x)}}"
            stored += len(block.words)
            if not block.after:
                who = ", ".join(block.owners)
                axes.text(x + 0.92, y, who, color=INK, size=9, va="center")
                text += f" {who}"
        lines.append(text.rstrip())
    total = sum(map(len, prompts.values()))
    lines.append(f"{total} words, {stored} to store; [full], (not full)")
    return Picture(svg_of(figure), "\n".join(lines))


def _box(block: PrefixBlock) -> str:
    words = " ".join(block.words)
    return f"[{words}]" if block.full else f"({words})"


def _width(rows: list[list[PrefixBlock | None]], x: int) -> int:
    """Letters of the widest block of a column."""
    return max(len(_box(row[x])) for row in rows if len(row) > x and row[x])
