"""The map of the course: the engine's parts, and the notebooks that build them."""

from dataclasses import dataclass

from folovllm_lite.viz.picture import BLUE, GREY, INK, Picture, sheet, svg_of


@dataclass(frozen=True)
class Part:
    """A box of the engine's map: where it stands, and which notebooks build it."""

    name: str
    notebooks: tuple[int, ...]
    built: bool
    x: float
    y: float
    width: float = 1.62


# The way of a prompt through the engine, row by row. "built" is what the package holds.
PARTS = (
    Part("configs", (1,), True, 0.0, 3),
    Part("model loader", (5,), True, 1.92, 3),
    Part("GPTQ weights", (15,), False, 3.84, 3),
    Part("LLM and engine", (9, 10), True, 5.76, 3),
    Part("prompt to ids", (8,), True, 0.0, 2),
    Part("sampling params", (2,), True, 1.92, 2),
    Part("request", (4,), True, 3.84, 2),
    Part("scheduler", (10, 13), True, 5.76, 2),
    Part("ids to text", (8,), True, 1.92, 1),
    Part("sampler", (3,), True, 3.84, 1),
    Part("transformer", (6,), True, 5.76, 1),
    Part("paged KV cache", (11, 14), True, 1.92, 0),
    Part("KV cache", (7,), True, 3.84, 0),
    Part("attention", (6, 12), True, 5.76, 0),
)
WRITTEN = range(11)  # the notebooks that can be read; the others are planned
# From, to, and the style of the arrow: one way for what flows, both for what is
# consulted.
_ARROWS = (
    ("prompt to ids", "sampling params", "-|>"),
    ("sampling params", "request", "-|>"),
    ("request", "scheduler", "-|>"),
    ("scheduler", "transformer", "-|>"),
    ("transformer", "sampler", "-|>"),
    ("sampler", "ids to text", "-|>"),
    ("transformer", "attention", "<|-|>"),
    ("attention", "KV cache", "<|-|>"),
    ("KV cache", "paged KV cache", "-|>"),
)


def course_map() -> Picture:
    """The engine's parts, the notebooks that build them, and what exists already."""
    from matplotlib.patches import FancyBboxPatch

    figure, axes = sheet((8.2, 4.2), (-0.1, 7.5), (-0.65, 3.85))
    height = 0.66
    places = {part.name: part for part in PARTS}
    for start, end, style in _ARROWS:
        a, b = places[start], places[end]
        if a.y == b.y:
            forward = b.x > a.x
            tail = (a.x + (a.width if forward else 0), a.y + height / 2)
            head = (b.x + (0 if forward else b.width), b.y + height / 2)
        else:
            tail = (a.x + a.width / 2, a.y)
            head = (b.x + b.width / 2, b.y + height)
        axes.annotate(
            "", head, tail, arrowprops={"arrowstyle": style, "color": INK, "lw": 1.4}
        )
    for part in PARTS:
        axes.add_patch(
            FancyBboxPatch(
                (part.x, part.y),
                part.width,
                height,
                boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=BLUE if part.built else "white",
                edgecolor=BLUE if part.built else GREY,
                linestyle="-" if part.built else (0, (4, 3)),
                linewidth=1.4,
            )
        )
        ink = "white" if part.built else INK
        middle = part.x + part.width / 2
        axes.text(
            middle,
            part.y + 0.43,
            part.name,
            ha="center",
            va="center",
            color=ink,
            size=10,
        )
        numbers = " · ".join(_number(n) for n in part.notebooks)
        axes.text(
            middle, part.y + 0.18, numbers, ha="center", va="center", color=ink, size=8
        )
    for x, y, words in (
        (0.81, 2.83, "“Once upon a time”"),
        (0.81, 1.33, "“, there was a …”"),
    ):
        axes.text(
            x, y, words, ha="center", va="center", color=INK, size=9, style="italic"
        )
    for x, words in (
        (0.0, "blue: in the package now"),
        (2.4, "dashed: planned"),
        (4.1, "numbers: its notebooks, planned ones in brackets"),
    ):
        axes.text(x, -0.45, words, color=INK, size=8.5)
    text = "\n".join(
        f"{'■' if part.built else '□'} {part.name:<22} notebooks "
        + ", ".join(_number(n) for n in part.notebooks)
        for part in PARTS
    )
    return Picture(svg_of(figure), text)


def _number(notebook: int) -> str:
    return f"{notebook:02}" if notebook in WRITTEN else f"({notebook:02})"
