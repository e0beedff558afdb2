"""A pool of blocks as a grid: who holds which, and how full they are."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from folovllm_lite import viz
from folovllm_lite.viz.canvas import MUTED, WIDTH, Canvas
from folovllm_lite.viz.paged_kv_cache import OWNERS

_COLUMNS, _GAP = 8, 10  # blocks in a row, and pixels between them
_BLOCK = (WIDTH - 20 - (_COLUMNS - 1) * _GAP) / _COLUMNS
_ROW = 52


@dataclass(frozen=True)
class PoolView:
    """A pool of blocks at one moment.

    Args:
        num_blocks: of the pool.
        block_size: slots of a block.
        tables: by sequence, the numbers of its blocks in order of position.
        stored: by sequence, how many of its tokens are stored.
        num_swap_blocks: blocks in CPU memory.
        swapped: by sequence, its blocks there.
        names: all sequences there will ever be, so that each keeps its colour.
    """

    num_blocks: int
    block_size: int
    tables: dict[str, list[int]]
    stored: dict[str, int]
    num_swap_blocks: int = 0
    swapped: dict[str, list[int]] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def owners(self, block_id: int) -> list[str]:
        """Who holds a block."""
        return [name for name, blocks in self.tables.items() if block_id in blocks]

    def filled(self, block_id: int) -> int:
        """How many of a block's slots hold a token."""
        counts = [0]
        for name in self.owners(block_id):
            first = self.tables[name].index(block_id) * self.block_size
            counts.append(min(self.stored[name] - first, self.block_size))
        return max(counts)


def view_pool(pool: Any, names: Sequence[str] = ()) -> PoolView:
    """A `BlockManager` as it is now.

    Args:
        pool: with `holders`, `swapped` and its sizes.
        names: see `PoolView`.
    """
    holders = pool.holders.values()
    return PoolView(
        pool.num_blocks,
        pool.block_size,
        {seq.seq_id: list(seq.block_ids) for seq in holders},
        {seq.seq_id: seq.num_computed for seq in holders},
        pool.num_swap_blocks,
        {name: list(blocks) for name, blocks in pool.swapped.items()},
        tuple(names),
    )


def pool_text(view: PoolView) -> str:
    """The pool block by block, the tables, and the sums."""
    size, lines, counts = view.block_size, [], Counter()
    for block_id in range(view.num_blocks):
        owners, filled = view.owners(block_id), view.filled(block_id)
        counts["held"] += bool(owners)
        counts["shared"] += len(owners) > 1
        counts["tokens"] += filled
        slots = "■" * filled + ("□" if owners else "·") * (size - filled)
        words = " ".join(owners) or "free"
        if len(owners) > 1:
            words += f"  (shared by {len(owners)})"
        lines.append(f"block {block_id:>2}  {slots}  {words}")
    for name, blocks in view.swapped.items():
        lines.append(f"CPU blocks {', '.join(map(str, blocks))}: {name}")
    for name, blocks in view.tables.items():
        lines.append(f"table of {name}: {blocks}, {view.stored[name]} tokens")
    held = counts["held"]
    lines.append(
        f"{view.num_blocks} blocks of {size}: {held} held, {counts['shared']} of them "
        f"shared, {view.num_blocks - held} free; {counts['tokens']} tokens in "
        f"{held * size} slots"
    )
    return "\n".join(lines)


def draw_pool(view: PoolView, title: str = "", note: str = "") -> viz.Picture:
    """The pool as a grid of blocks, its owners by colour, and their tables.

    A block of several owners has a dark frame and names them all. Below the grid:
    blocks in CPU memory, and who stands in which; then the tables.

    Args:
        view: what there is.
        title: stands above.
        note: a line below the title: what has just happened, say.
    """
    names = list(dict.fromkeys([*view.names, *view.tables, *view.swapped]))
    colours = {name: OWNERS[i % len(OWNERS)] for i, name in enumerate(names)}
    canvas, y = Canvas(), 18.0
    canvas.text(10, y, title, 14, bold=True)
    for line in textwrap.wrap(note, 110):
        y += 20
        canvas.text(10, y, line, 12, MUTED)
    y += 30
    for number in range(view.num_blocks):
        owners = view.owners(number)
        _block(canvas, y, number, owners, view.filled(number), view.block_size, colours)
    y += -(-view.num_blocks // _COLUMNS) * _ROW
    if view.num_swap_blocks:
        canvas.text(10, y, "in CPU memory", 12, MUTED)
        y += 24
        there = {i: [name] for name, blocks in view.swapped.items() for i in blocks}
        for number in range(view.num_swap_blocks):
            owners = there.get(number, [])
            _block(canvas, y, number, owners, len(owners), 1, colours)
        y += -(-view.num_swap_blocks // _COLUMNS) * _ROW
    for name, blocks in view.tables.items():
        canvas.box(10, y - 6, 12, 12, colours[name])
        words = f"{name}: {view.stored[name]} tokens in blocks {blocks}"
        canvas.text(30, y, words, 12)
        y += 20
    lines = [line for line in (title, note) if line]
    return viz.Picture(canvas.svg(y + 4), "\n".join([*lines, pool_text(view)]))


def _block(
    canvas: Canvas,
    y: float,
    number: int,
    owners: list[str],
    filled: int,
    slots: int,
    colours: dict[str, str],
) -> None:
    """One block, its slots from left to right, its number and owners above it."""
    x = 10 + number % _COLUMNS * (_BLOCK + _GAP)
    y += number // _COLUMNS * _ROW
    words = f"{number}: {' '.join(owners) or 'free'}"
    size = 11 if len(words) < 14 else 8
    canvas.text(x, y, words, size, viz.INK if owners else MUTED)
    y += 9
    if len(owners) > 1:
        canvas.box(x - 3, y - 3, _BLOCK + 6, 26, viz.INK)
        canvas.box(x - 1, y - 1, _BLOCK + 2, 22, "white", None, 0)
    colour = colours[owners[0]] if owners else viz.GREY
    canvas.box(x, y, _BLOCK, 20, viz.PALE if owners else "white", colour, 0)
    width = _BLOCK / slots
    for slot in range(filled):
        inner = max(0.5, width - 1.5)
        canvas.box(x + slot * width + 0.75, y + 1, inner, 18, colour, None, 0)
