"""A sheet for pictures that are drawn while somebody turns a dial.

SVG written by hand: some milliseconds where a figure takes two hundred, and the same on
every machine. On a dark page it is dark.
"""

import html
import zlib
from collections.abc import Sequence

from folovllm_lite.viz.picture import BLUE, INK, RED, visible

WIDTH = 760  # of a picture, in pixels
MUTED = "#52606d"
HATCH = "\x01"  # stands for the fill until the picture is complete; no label has it
_MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"

# What stands on the page's own ground changes with the page; a label on a filled box
# has the ink that fits the box, and no class.
_CLASSES = {"white": "p", INK: "i", MUTED: "m", BLUE: "b", RED: "r"}
_DARK = {"p": "#111", "i": "#e4e9ee", "m": "#a6b1bd", "b": "#7fb6de", "r": "#f0907c"}
_STYLE = "".join(
    f':is([data-jp-theme-light="false"],.vscode-dark) .folo .{name}{{fill:{colour}}}'
    for name, colour in _DARK.items()
)


class Canvas:
    """Collects shapes and words; `svg` gives the picture."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 12,
        ink: str = INK,
        anchor: str = "start",
        mono: bool = False,
        bold: bool = False,
        on_box: bool = False,
    ) -> None:
        """Write words; x, y is the middle of their line, at its start or the anchor."""
        look = f' font-family="{_MONO}"' if mono else ""
        look += ' font-weight="600"' if bold else ""
        look += f' text-anchor="{anchor}"' if anchor != "start" else ""
        look += "" if on_box else _class(ink)
        self.parts.append(
            f'<text x="{x:g}" y="{y + size * 0.36:g}" font-size="{size:g}" '
            f'fill="{ink}"{look}>{html.escape(visible(words))}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        line: str | None = None,
        round_: float = 3,
    ) -> None:
        """A rectangle with its corner at x, y; white is the colour of the page."""
        edge = f' stroke="{line}"' if line else ""
        look = _class(fill) if fill == "white" else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{round_:g}" fill="{fill}"{look}{edge}/>'
        )

    def dot(self, x: float, y: float, radius: float, fill: str, line: str) -> None:
        """A circle around x, y."""
        look = _class(fill) if fill == "white" else ""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"{look} '
            f'stroke="{line}"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], ink: str) -> None:
        """A line through points."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="{path}" fill="none" stroke="{ink}"/>')

    def svg(self, height: float) -> str:
        """The picture, on the page's ground; a page that knows no theme is white."""
        body = "".join(self.parts)
        # A name of its own: on a page, all pictures share their names.
        hatch = f"hatch-{zlib.crc32(body.encode()):08x}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
            f'height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" class="folo" '
            "font-family=\"system-ui,'DejaVu Sans',sans-serif\">"
            f"<style>{_STYLE}</style>"
            f'<defs><pattern id="{hatch}" width="5" height="5" '
            'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="5" height="5" fill="white" class="p"/>'
            f'<rect width="1.2" height="5" fill="{RED}"/></pattern></defs>'
            f'<rect width="{WIDTH}" height="{height:g}" fill="white" class="p"/>'
            f"{body.replace(HATCH, f'url(#{hatch})')}</svg>"
        )


def _class(colour: str) -> str:
    name = _CLASSES.get(colour)
    return f' class="{name}"' if name else ""
