"""Pictures of 02: where the engine reads each field."""

from folovllm_lite.viz.picture import BLUE, GREY, INK, RED, Picture, sheet, svg_of

# Where the engine reads each field of SamplingParams, in the order of one step: title,
# what happens there, fields.
FIELD_GROUPS = (
    ("how many", "sequences are made", ("n", "best_of")),
    (
        "penalties",
        "scores are changed",
        ("presence_penalty", "frequency_penalty", "repetition_penalty"),
    ),
    (
        "how to draw",
        "one token is chosen",
        ("temperature", "min_p", "top_k", "top_p", "seed"),
    ),
    (
        "when to stop",
        "the end is looked for",
        (
            "min_tokens",
            "stop_token_ids",
            "ignore_eos",
            "stop",
            "include_stop_str_in_output",
            "max_tokens",
        ),
    ),
    (
        "what to report",
        "the output is made",
        (
            "logprobs",
            "prompt_logprobs",
            "skip_special_tokens",
            "spaces_between_special_tokens",
        ),
    ),
    (
        "beam search",
        "refused",
        ("use_beam_search", "length_penalty", "early_stopping"),
    ),
)


def sampling_fields() -> Picture:
    """The loop of one request, and the fields of SamplingParams where they are read."""
    from matplotlib.patches import FancyBboxPatch

    figure, axes = sheet((8.7, 3.3), (-0.05, 9.5), (-1.75, 1.65))
    *steps, refused = FIELD_GROUPS
    places = (0.0, 2.75, 4.4, 5.95, 7.6)
    width, height = 1.35, 0.62

    def box(x: float, y: float, title: str, under: str, style: str = "full") -> None:
        full = style == "full"
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width if full else 0.9,
                height,
                boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=BLUE if full else "white",
                edgecolor=BLUE if full else GREY,
                linewidth=1.4,
            )
        )
        middle = x + (width if full else 0.9) / 2
        ink = "white" if full else INK
        axes.text(middle, y + 0.40, title, ha="center", va="center", color=ink, size=9)
        axes.text(
            middle, y + 0.17, under, ha="center", va="center", color=ink, size=6.8
        )

    def arrow(start: float, end: float) -> None:
        axes.annotate(
            "",
            (end, height / 2),
            (start, height / 2),
            arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4},
        )

    for x, (title, under, names) in zip(places, steps, strict=True):
        box(x, 0, title, under)
        for line, name in enumerate(names):
            axes.text(x + 0.02, -0.22 - 0.21 * line, name, color=INK, size=7)
    box(1.6, 0, "model", "a score each", "empty")
    for start, end in zip((0.0, 1.6, *places[1:]), (1.6, *places[1:]), strict=False):
        arrow(start + (0.9 if start == 1.6 else width), end)
    axes.annotate(
        "",
        (2.05, height),
        (6.62, height),
        arrowprops={
            "arrowstyle": "-|>",
            "color": INK,
            "lw": 1.4,
            "connectionstyle": "bar,fraction=0.09",
        },
    )
    axes.text(4.33, 1.2, "not yet: one more token", ha="center", color=INK, size=8)
    title, under, names = refused
    words = f"{title}, {under}: {', '.join(names)}"
    axes.text(0.02, -1.6, words, color=RED, size=8)
    text = "\n".join(
        f"{title} ({under}): {', '.join(names)}" for title, under, names in FIELD_GROUPS
    )
    return Picture(svg_of(figure), text)
