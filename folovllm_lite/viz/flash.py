"""Pictures of 12: what attention moves, and what it keeps at hand."""

from collections.abc import Sequence

from folovllm_lite.viz.configs import size
from folovllm_lite.viz.picture import BLUE, GREY, INK, PALE, RED, Picture, sheet, svg_of


def draw_traffic(
    ways: dict[str, Sequence[tuple[str, str, int]]], title: str
) -> Picture:
    """What each way of attending moves through memory, as a bar for each move.

    Args:
        ways: a name, and for each move "read" or "write", of what, and its bytes.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    most = max(sum(bytes_ for *_, bytes_ in moves) for moves in ways.values())
    figure, axes = sheet((7.2, 0.75 * len(ways) + 0.5), (-0.34, 1.2), (len(ways), -0.5))
    axes.text(-0.34, -0.3, title, color=INK, size=11, va="center")
    lines = [title]
    for y, (name, moves) in enumerate(ways.items()):
        axes.text(-0.02, y + 0.35, name, color=INK, size=9, ha="right", va="center")
        total = sum(bytes_ for *_, bytes_ in moves)
        lines.append(f"{name}: {size(total)}")
        left = 0.0
        for kind, what, bytes_ in moves:
            width, fill = bytes_ / most, RED if kind == "write" else BLUE
            axes.add_patch(
                Rectangle(
                    (left, y + 0.1), width, 0.5, facecolor=fill, edgecolor="white", lw=2
                )
            )
            words = f"{kind} {what}"
            axes.text(
                left + width / 2, y + 0.35, words, color="white", size=8,
                ha="center", va="center",
            )  # fmt: skip
            lines.append(f"  {kind:<5} {size(bytes_):>10}  {what}")
            left += width
        axes.text(left + 0.01, y + 0.35, size(total), color=INK, size=9, va="center")
    return Picture(svg_of(figure), "\n".join(lines))


def tile_kinds(positions: Sequence[int], keys: int, tile: int) -> list[list[str]]:
    """For each query and key: "hidden", "skipped" (its whole tile is), or "seen".

    A tile is skipped when none of the queries sees one of its keys.
    """
    last = max(positions)
    return [
        [
            "skipped" if k // tile * tile > last else "hidden" if k > at else "seen"
            for k in range(keys)
        ]
        for at in positions
    ]


def draw_tiles(
    positions: Sequence[int], keys: int, tile: int, now: int = 0, title: str = ""
) -> Picture:
    """The scores that attention would have, in tiles of keys, and the tile at hand.

    Args:
        positions: of the queries.
        keys: how many there are.
        tile: keys of a tile.
        now: the number of the tile that is at hand.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    kinds = tile_kinds(positions, keys, tile)
    rows = len(positions)
    figure, axes = sheet(
        (7.2, 0.3 * rows + 1.5), (-3.4, keys + 5.2), (rows + 2.3, -1.9)
    )
    axes.text(-3.4, -1.4, title, color=INK, size=11, va="center")
    lines = [title] if title else []
    for y, (at, row) in enumerate(zip(positions, kinds, strict=True)):
        axes.text(
            -0.2, y + 0.5, f"query at {at}", color=INK, size=8, ha="right", va="center"
        )
        letters = ""
        for x, kind in enumerate(row):
            in_hand = x // tile == now
            fill = {
                "seen": BLUE if in_hand else GREY,
                "hidden": PALE,
                "skipped": "white",
            }
            axes.add_patch(
                Rectangle((x, y), 1, 1, facecolor=fill[kind], edgecolor="white", lw=1.5)
            )
            letter = {"seen": "■" if in_hand else "▒", "hidden": "·", "skipped": " "}
            letters += ("|" if x % tile == 0 else "") + letter[kind]
        lines.append(f"query {at:>2}  {letters}|")
    for start in range(0, keys, tile):
        width = min(tile, keys - start)
        mine = start // tile == now
        axes.add_patch(
            Rectangle(
                (start, 0),
                width,
                rows,
                facecolor="none",
                edgecolor=RED if mine else GREY,
                lw=2.5 if mine else 0.8,
                zorder=3 if mine else 2,
            )  # fmt: skip
        )
        words = f"tile {start // tile}"
        axes.text(
            start + width / 2, -0.4, words, color=RED if mine else INK, size=8,
            ha="center", va="center",
        )  # fmt: skip
    most = min(tile, keys) * rows
    for y, words in enumerate(
        ("kept on the way:", "best, total, out", "of each query")
    ):
        axes.text(keys + 0.4, y * 0.8 + 0.5, words, color=INK, size=8, va="center")
    words = f"at hand: {most} scores, never {keys * rows}"
    axes.text(0, rows + 0.9, words, color=RED, size=9, va="center")
    lines.append(words + "; kept on the way: best, total, out of each query")
    return Picture(svg_of(figure), "\n".join(lines))


def draw_pieces(turns: dict[str, Sequence[tuple[int, float]]], title: str) -> Picture:
    """Who worked when, for threads that share pieces of work.

    Args:
        turns: a name -> ("waits" as -1, or the number of the piece; how long) in order.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    longest = max(sum(long for _, long in row) for row in turns.values())
    figure, axes = sheet(
        (7.2, 0.42 * len(turns) + 0.6),
        (-0.42 * longest, longest * 1.02),
        (len(turns), -0.8),
    )
    axes.text(-0.42 * longest, -0.45, title, color=INK, size=11, va="center")
    lines = [title]
    for y, (name, row) in enumerate(turns.items()):
        axes.text(
            -0.01 * longest, y + 0.45, name, color=INK, size=9, ha="right", va="center"
        )
        x, letters = 0.0, ""
        for piece, long in row:
            fill, words = (PALE, "waits") if piece < 0 else (BLUE, f"{piece}")
            axes.add_patch(
                Rectangle(
                    (x, y + 0.1), long, 0.7, facecolor=fill, edgecolor="white", lw=2
                )
            )
            ink = INK if piece < 0 else "white"
            axes.text(
                x + long / 2,
                y + 0.45,
                words,
                color=ink,
                size=8,
                ha="center",
                va="center",
            )
            letters += ("." if piece < 0 else str(piece)) * round(long)
            x += long
        lines.append(f"{name:<32}{letters}")
    return Picture(svg_of(figure), "\n".join(lines))
