"""Pictures of 09: which pass runs which token."""

from folovllm_lite.viz.picture import (
    BLUE,
    GREY,
    INK,
    RED,
    Picture,
    label,
    sheet,
    svg_of,
)


def loop_passes(completions: list[list[str]]) -> tuple[list[list[int | None]], int]:
    """Which pass of the model runs each token, and how many passes there are.

    Pass 1 is the prefill, which gives every completion its first token. Then each step
    runs the newest token of every completion that goes on; a last token is never run.
    """
    runs: list[list[int | None]] = [[] for _ in completions]
    count = 1
    for step in range(max(map(len, completions))):
        for tokens, numbers in zip(completions, runs, strict=True):
            if step < len(tokens) - 1:
                count += 1
                numbers.append(count)
            elif step == len(tokens) - 1:
                numbers.append(None)
    return runs, count


def draw_loop(prompt: list[str], completions: list[tuple[list[str], str]]) -> Picture:
    """A request on its way: every token under the number of the pass that runs it.

    Args:
        prompt: its tokens' texts.
        completions: the texts of each one's tokens, and why it ended.
    """
    from matplotlib.patches import Rectangle

    runs, count = loop_passes([tokens for tokens, _ in completions])
    lines = [f"prompt: {'|'.join(prompt)}  all in pass 1"]
    for i, ((tokens, reason), numbers) in enumerate(
        zip(completions, runs, strict=True)
    ):
        marks = ", ".join("never" if n is None else str(n) for n in numbers)
        lines.append(f"completion {i}: {'|'.join(tokens)}  in pass {marks}; {reason}")
    lines.append(f"{count} passes")
    width = len(prompt) + max(len(tokens) for tokens, _ in completions)
    rows = len(completions)
    figure, axes = sheet(
        (0.84 * (width + 1.3), 0.62 * rows + 0.45),
        (-0.1, width + 1.4),
        (0, rows + 0.55),
    )

    def box(x: float, y: float, token: str, number: int | None) -> None:
        face = GREY if number == 1 else BLUE if number else "white"
        edge = {"edgecolor": "white", "lw": 2}
        if number is None:
            edge = {"edgecolor": GREY, "lw": 1, "ls": "--"}
        axes.add_patch(Rectangle((x + 0.04, y), 0.92, 0.5, facecolor=face, **edge))
        ink = INK if number is None else "white"
        middle = {"ha": "center", "va": "center"}
        axes.text(x + 0.5, y + 0.25, label(token), color=ink, size=8, **middle)
        above = "never run" if number is None else f"pass {number}"
        axes.text(x + 0.5, y + 0.64, above, color=INK, size=7, **middle)

    for x, token in enumerate(prompt):
        box(x, (rows - 1) / 2 + 0.1, token, 1)
    for i, ((tokens, reason), numbers) in enumerate(
        zip(completions, runs, strict=True)
    ):
        y = rows - 1 - i + 0.1
        for x, (token, number) in enumerate(zip(tokens, numbers, strict=True)):
            box(len(prompt) + x, y, token, number)
        end = len(prompt) + len(tokens) + 0.15
        axes.text(end, y + 0.25, reason, color=RED, size=8, va="center")
    return Picture(svg_of(figure), "\n".join(lines))
