"""What every picture needs: colours, a sheet to draw on, an SVG that never changes."""

import io
import unicodedata
import warnings
from typing import Any

INK, BLUE, GREY, PALE, RED = "#1f2933", "#2f6f9f", "#9aa5b1", "#e4e9ee", "#c8553d"


class Picture:
    """An SVG that a notebook shows; `str()` gives the same as text."""

    def __init__(self, svg: str, text: str):
        self.svg, self.text = svg, visible(text)

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


def visible(text: str) -> str:
    r"""A text whose control characters are spelled out, "\x1b"; line breaks stay.

    A terminal would obey them, and an SVG that holds one can't be read. What a model
    writes and what a checkpoint calls its tensors may hold any, half characters and
    the two that XML forbids (U+FFFE, U+FFFF) too.
    """
    return "".join(
        f"\\x{ord(c):02x}"
        if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
        or c in "\ufffe\uffff"
        else c
        for c in text
    )


def label(text: str) -> str:
    """A token's text with its spaces visible, and its control characters."""
    return visible(text.replace(" ", "␣").replace("\n", "⏎")) or "∅"


def _plain(figure: Any) -> None:
    r"""Take every text of a figure as it is: "$\frac$" is no formula here."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_ticks()  # makes those that only drawing would make
            names = axis.get_major_formatter()
            if isinstance(names, FuncFormatter):  # labels that were given, too
                shown = lambda x, at, names=names: visible(names(x, at))  # noqa: E731
                axis.set_major_formatter(FuncFormatter(shown))
    for each in figure.findobj(Text):
        each.set_parse_math(False)
        each.set_text(visible(each.get_text()))


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
        _plain(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]
