"""The map of the course: the engine's parts, and the notebooks that build them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from folovllm_lite.viz.picture import BLUE, GREY, INK, Picture, sheet, svg_of


@dataclass(frozen=True)
class Part:
    """A box of the engine's map: where it stands, which notebooks build it, and the
    modules that it is.
    """

    name: str
    notebooks: tuple[int, ...]
    x: float
    y: float
    modules: tuple[str, ...]
    width: float = 1.62


# The way of a prompt through the engine, row by row.
PARTS = (
    Part("configs", (1,), 0.0, 3, ("config", "utils")),
    Part("model loader", (5,), 1.92, 3, ("model_loader",)),
    Part("GPTQ weights", (15,), 3.84, 3, ("gptq",)),
    Part("LLM and engine", (9, 10), 5.76, 3, ("generation", "engine", "llm")),
    Part("prompt to ids", (8,), 0.0, 2, ("processor",)),
    Part("sampling params", (2,), 1.92, 2, ("sampling_params",)),
    Part("request", (4,), 3.84, 2, ("request", "outputs")),
    Part("scheduler", (10, 13), 5.76, 2, ("scheduler",)),
    Part("ids to text", (8,), 1.92, 1, ("processor",)),
    Part("sampler", (3,), 3.84, 1, ("sampler",)),
    Part("transformer", (6,), 5.76, 1, ("qwen3",)),
    Part(
        "paged KV cache",
        (11, 14),
        1.92,
        0,
        ("block_manager", "paged", "runner", "prefix_cache"),
    ),
    Part("KV cache", (7,), 3.84, 0, ("kv_cache",)),
    Part("attention", (6, 12), 5.76, 0, ("attention", "flash")),
)
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
    """The engine's parts, and the notebooks that build them."""
    numbers = [[f"{n:02}" for n in part.notebooks] for part in PARTS]
    legend = ((0.0, "numbers: the notebooks in which you build it"),)
    picture = _map([True] * len(PARTS), [" · ".join(x) for x in numbers], legend)
    text = "\n".join(
        f"■ {part.name:<22} notebooks {', '.join(x)}"
        for part, x in zip(PARTS, numbers, strict=True)
    )
    return Picture(picture, text)


def my_map(yours: Mapping[str, int]) -> Picture:
    """The same parts, coloured by whose they are.

    Args:
        yours: module -> how many of its definitions a learner wrote.
    """
    counts = [sum(yours.get(module, 0) for module in part.modules) for part in PARTS]
    words = [f"{count} yours" if count else "the package's" for count in counts]
    legend = ((0.0, "blue: something in it is yours"), (3.0, "white: the package's"))
    picture = _map([count > 0 for count in counts], words, legend)
    text = "\n".join(
        f"{'■' if count else '□'} {part.name:<22} {said}"
        for part, count, said in zip(PARTS, counts, words, strict=True)
    )
    return Picture(picture, text)


def _map(
    full: Sequence[bool], under: Sequence[str], legend: Sequence[tuple[float, str]]
) -> str:
    """The map as SVG: which parts are filled, and what stands under each name."""
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
    for part, filled, words in zip(PARTS, full, under, strict=True):
        axes.add_patch(
            FancyBboxPatch(
                (part.x, part.y),
                part.width,
                height,
                boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=BLUE if filled else "white",
                edgecolor=BLUE if filled else GREY,
                linewidth=1.4,
            )
        )
        ink = "white" if filled else INK
        middle = {"ha": "center", "va": "center", "color": ink}
        x = part.x + part.width / 2
        axes.text(x, part.y + 0.43, part.name, size=10, **middle)
        axes.text(x, part.y + 0.18, words, size=8, **middle)
    for x, y, words in (
        (0.81, 2.83, "“Once upon a time”"),
        (0.81, 1.33, "“, there was a …”"),
    ):
        axes.text(
            x, y, words, ha="center", va="center", color=INK, size=9, style="italic"
        )
    for x, words in legend:
        axes.text(x, -0.45, words, color=INK, size=8.5)
    return svg_of(figure)
