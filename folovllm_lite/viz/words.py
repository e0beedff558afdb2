"""Words for pictures and tables: tokens, shares, and columns of fixed width."""

import unicodedata

from folovllm_lite.viz.picture import label as token_label


def label(text: str) -> str:
    """A token's text for a picture: spaces visible, control characters spelled out."""
    return "".join(
        c if c.isprintable() else f"\\x{ord(c):02x}" for c in token_label(text)
    )


def plain(text: str) -> str:
    """A text without line breaks and control characters, its spaces kept."""
    return "".join(label(c) if c != " " else c for c in text)


def percent(share: float) -> str:
    """A rounded share in words: a token that can be drawn doesn't have 0%."""
    return f"{share:.0%}" if share else "<1%"


def share_words(share: float) -> str:
    """Whole per cent, as `percent`."""
    return percent(round(share, 2))


def columns(text: str) -> int:
    """How many columns a text takes in a fixed-width font: Chinese takes two each."""
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me", "Cf")
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def cut(text: str, most: int) -> str:
    """A text of at most `most` columns; a longer one ends in an ellipsis."""
    if columns(text) <= most:
        return text
    while columns(text) > most - 1:
        text = text[:-1]
    return f"{text}…"


def padded(text: str, width: int, right: bool = False) -> str:
    """A text filled up with spaces, or cut, to a number of columns."""
    text = cut(text, width)
    space = " " * (width - columns(text))
    return space + text if right else text + space
