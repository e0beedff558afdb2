"""Pictures of 08: tokens, bytes and characters."""

from collections.abc import Sequence

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


def token_bytes(pieces: Sequence[tuple[int, bytes]]) -> list[tuple[str, int, int]]:
    """The characters that the bytes of some tokens spell: (text, first, end).

    `first` and `end` count bytes. Bytes that spell nothing are U+FFFD.
    """
    data = b"".join(piece for _, piece in pieces)
    characters, start = [], 0
    while start < len(data):
        try:
            good, broken = data[start:].decode(), 0
        except UnicodeDecodeError as error:
            good = data[start : start + error.start].decode()
            broken = error.end - error.start
        for text, size in [(c, len(c.encode())) for c in good] + [("�", broken)]:
            if size:
                characters.append((text, start, start + size))
            start += size
    return characters


def draw_token_bytes(pieces: Sequence[tuple[int, bytes]], title: str = "") -> Picture:
    """Tokens above, their bytes in the middle, the characters they spell below.

    Args:
        pieces: id and bytes of each token.
        title: stands above.
    """
    from matplotlib.patches import Rectangle

    data = b"".join(piece for _, piece in pieces)
    ends = [sum(len(p) for _, p in pieces[: i + 1]) for i in range(len(pieces))]
    characters = token_bytes(pieces)
    lines = [title] if title else []
    for (token_id, piece), end in zip(pieces, ends, strict=True):
        done = [c for c, _, last in characters if end - len(piece) < last <= end]
        shows = ", ".join(label(c) for c in done) or "nothing yet"
        lines.append(f"token {token_id:>4}: {piece.hex(' '):<12} completes {shows}")
    figure, axes = sheet(
        (max(4.0, 0.52 * len(data) + 0.9), 2.1),
        (-1.75, max(len(data), 6) + 0.1),
        (-0.15, 4.1),
    )

    def box(x: int, width: int, y: float, words: str, face: str, ink: str) -> None:
        axes.add_patch(
            Rectangle((x, y), width, 0.85, facecolor=face, edgecolor="white", lw=2)
        )
        middle = (x + width / 2, y + 0.42)
        axes.text(*middle, words, ha="center", va="center", color=ink, size=9)

    for (token_id, piece), end in zip(pieces, ends, strict=True):
        box(end - len(piece), len(piece), 2.2, str(token_id), PALE, INK)
    for i, byte in enumerate(data):
        face, ink = (GREY, INK) if 0x80 <= byte < 0xC0 else (BLUE, "white")
        box(i, 1, 1.2, f"{byte:02x}", face, ink)
    for character, start, end in characters:
        box(start, end - start, 0.1, label(character), "white", INK)
        axes.plot([start + 0.08, end - 0.08], [1.08, 1.08], color=INK, lw=1.2)
    for y, words in ((2.62, "token ids"), (1.62, "bytes"), (0.52, "characters")):
        axes.text(-0.2, y, words, ha="right", va="center", color=INK, size=9)
    axes.text(0, 3.6, title, color=INK, size=11, va="center")
    return Picture(svg_of(figure), "\n".join(lines))
