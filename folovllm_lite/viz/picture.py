"""What every picture needs: colours, a sheet to draw on, an SVG that never changes."""

import io
import warnings
from typing import Any

INK, BLUE, GREY, PALE, RED = "#1f2933", "#2f6f9f", "#9aa5b1", "#e4e9ee", "#c8553d"


class Picture:
    """An SVG that a notebook shows; `str()` gives the same as text."""

    def __init__(self, svg: str, text: str):
        self.svg, self.text = svg, text

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return self.text


def sheet(
    size: tuple[float, float], x: tuple[float, float], y: tuple[float, float]
) -> tuple[Any, Any]:
    """A figure of `size` inches, and bare axes over x[0] to x[1] and y[0] to y[1]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
    return figure, axes


def label(text: str) -> str:
    """A token's text with its spaces visible."""
    return text.replace(" ", "␣").replace("\n", "⏎") or "∅"


def svg_of(figure: Any) -> str:
    """A figure as SVG without dates and random ids, its text as text."""
    import matplotlib

    out = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "folovllm", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        # The measuring font may lack a glyph; the browser's fonts don't.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]
