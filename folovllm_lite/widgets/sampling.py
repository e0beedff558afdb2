"""The sampling explorer: what the parameters do to one distribution.

What it shows is computed by `explore` and drawn by `draw_exploration`; the class only
holds the dials.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from folovllm_lite import viz
from folovllm_lite.sampler import SamplingRow, filter_logits, sample
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz.canvas import HATCH, MUTED, Canvas
from folovllm_lite.viz.words import cut, label, percent, plain
from folovllm_lite.widgets.dials import (
    TOP_K,
    beside,
    framed,
    grid,
    narrow,
    read_dials,
    sliders_of,
    spoken,
)

_UNDRAWN = "Nothing drawn yet."

# Written by `python -m folovllm_lite.tiny.next_tokens`.
NEXT_TOKENS = Path(__file__).parents[1] / "tiny" / "next_tokens.json"


@dataclass(frozen=True, eq=False)
class Context:
    """A text, and what the embedded model gives every token as the next one.

    Args:
        language: "English" or "Chinese".
        prompt: the text.
        logits: [V] float32, rounded to three decimals.
        vocabulary: V texts, one for each token.
    """

    language: str
    prompt: str
    logits: Tensor
    vocabulary: tuple[str, ...]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The texts of the tokens, one after the other."""
        return "".join(self.vocabulary[i] for i in token_ids)


def load_contexts(path: Path = NEXT_TOKENS) -> list[Context]:
    """The saved contexts, so that no model has to run."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tuple(saved["vocabulary"])
    return [
        Context(
            each["language"], each["prompt"], torch.tensor(each["logits"]), vocabulary
        )
        for each in saved["contexts"]
    ]


@dataclass(frozen=True)
class Step:
    """What a parameter leaves of the distribution.

    Args:
        name: the parameter.
        value: its value.
        left: tokens that can still be drawn.
        share: their part of the probability after the temperature.
        best: chance of the likeliest token after this step.
    """

    name: str
    value: float
    left: int
    share: float
    best: float


@dataclass(frozen=True)
class Exploration:
    """What the parameters do to one distribution.

    Args:
        title: the text that is continued.
        candidates: the likeliest tokens.
        others: tokens that aren't listed.
        others_left: those of them that can still be drawn.
        others_warmed: their probability together, after the temperature.
        others_chance: the same in the draw.
        steps: the temperature, then the filters that are on, in their order.
    """

    title: str
    candidates: list[viz.Candidate]
    others: int
    others_left: int
    others_warmed: float
    others_chance: float
    steps: list[Step]


def explore(context: Context, params: SamplingParams, count: int = 10) -> Exploration:
    """Follow a context's distribution through temperature, min_p, top_k and top_p.

    Args:
        context: whose next token is wanted.
        params: anything else in them is ignored.
        count: how many of the likeliest tokens to list.
    """
    candidates = viz.next_tokens(context.logits, context, params, count)
    steps = steps_of(context.logits, params)
    listed = [c.token_id for c in candidates]
    others = context.logits.shape[-1] - len(listed)
    return Exploration(
        f"{context.prompt} …",
        candidates,
        others,
        steps[-1].left - sum(c.chance > 0 for c in candidates),
        max(0.0, 1 - sum(c.warmed for c in candidates)),
        max(0.0, 1 - sum(c.chance for c in candidates)),
        steps,
    )


def steps_of(logits: Tensor, params: SamplingParams) -> list[Step]:
    """What is left after the temperature, and after each filter that is on.

    Args:
        logits: [V] of one position.
        params: their temperature, min_p, top_k and top_p.
    """
    logits = logits.float()[None]  # [1, V]
    if params.temperature == 0:
        share = logits.softmax(-1).amax().item()
        return [Step("temperature", 0.0, 1, share, 1.0)]
    warmed = (logits / params.temperature).softmax(-1)
    steps = [_step("temperature", params.temperature, warmed, warmed)]
    on: dict[str, Any] = {}
    for name, off in (("min_p", 0.0), ("top_k", -1), ("top_p", 1.0)):
        value = getattr(params, name)
        if value != off:
            on[name] = value
            so_far = SamplingParams(temperature=params.temperature, **on)
            left = filter_logits(logits, [SamplingRow(so_far, [], [])])
            steps.append(_step(name, value, warmed, left.softmax(-1)))
    return steps


def _step(name: str, value: float, warmed: Tensor, chance: Tensor) -> Step:
    kept = chance > 0
    share = warmed[kept].sum().item()
    return Step(name, value, int(kept.sum()), share, chance.amax().item())


def sentence(step: Step, vocabulary: int) -> str:
    """A step in words."""
    if step.name == "temperature" and step.value == 0:
        return "temperature 0 takes the likeliest token, and the filters have no say"
    if step.name == "temperature":
        return f"temperature {step.value:g} gives the likeliest token {step.best:.0%}"
    tokens = "1 token" if step.left == 1 else f"{step.left:,} tokens"
    return (
        f"{step.name} {step.value:g} leaves {tokens} of {vocabulary:,}, which held "
        f"{step.share:.0%}; now the likeliest has {step.best:.0%}"
    )


def draw_tokens(
    logits: Tensor, params: SamplingParams, count: int, generator: torch.Generator
) -> list[int]:
    """Draw `count` next tokens for the same logits [V], as a batch of `count` rows."""
    rows = [SamplingRow(params, [], [])] * count
    return sample(logits.expand(count, -1), rows, generator).token_ids.tolist()


# Where the bars begin, and how long the share 1 is.
_SEEN, _SCALE, _DRAW, _DRAW_SCALE = 140, 210, 450, 140


@dataclass(frozen=True)
class _Bar:
    """A row of the picture: its label, three shares in whole per cent, and in words."""

    label: str
    model: float
    seen: float
    chance: float
    cut: bool
    fate: str

    @property
    def change(self) -> str:
        """From the model's share to the one after the temperature."""
        before = "" if self.model == self.seen else f"{percent(self.model)} → "
        return f"{before}{percent(self.seen)}"


def _bars(found: Exploration, tally: Counter[int]) -> list[_Bar]:
    drawn = sum(tally.values())
    left_over = drawn - sum(tally[c.token_id] for c in found.candidates)
    bars = []
    for c in found.candidates:
        model, seen, chance = (round(x, 2) for x in (c.probability, c.warmed, c.chance))
        fate = f"cut by {c.cut_by}" if c.cut_by else percent(chance)
        if c.cut_by == "greedy":  # which is no filter
            fate = "not the likeliest"
        if drawn and not c.cut_by:
            fate += f", drawn {tally[c.token_id]} of {drawn}"
        bars.append(_Bar(label(c.text), model, seen, chance, bool(c.cut_by), fate))
    if not found.others:
        return bars
    model = round(max(0.0, 1 - sum(c.probability for c in found.candidates)), 2)
    seen, chance = round(found.others_warmed, 2), round(found.others_chance, 2)
    fate = percent(chance) if found.others_left else "all cut"
    if 0 < found.others_left < found.others:
        fate += f", {found.others_left:,} left"
    if drawn and found.others_left:
        fate += f", drawn {left_over} of {drawn}"
    others = f"{found.others:,} others"
    return [*bars, _Bar(others, model, seen, chance, not found.others_left, fate)]


def draw_exploration(
    found: Exploration, tally: Counter[int] | None = None
) -> viz.Picture:
    """Two bars for each token: what the filters see, and the chance in the draw.

    Percentages are whole, so that the picture is the same on every processor.

    Args:
        found: by `explore`.
        tally: how often each token id was drawn, if any was.
    """
    tally = tally or Counter()
    drawn = sum(tally.values())
    rows = _bars(found, tally)
    vocabulary = len(found.candidates) + found.others
    words = [sentence(step, vocabulary) for step in found.steps]
    if len(words) == 1 and found.steps[0].value:
        words.append(f"no filter is on: all {vocabulary:,} tokens can be drawn")
    lines = [
        found.title,
        *(f"{b.label:<14} {b.change:<12} {b.fate}" for b in rows),
        *words,
        *([f"{drawn} drawn"] if drawn else []),
    ]

    canvas, y = Canvas(), 18.0
    canvas.text(10, y, plain(found.title), 13, bold=True)
    y += 26
    canvas.box(_SEEN - 1, y - 7, 2, 14, viz.BLUE, None, 0)
    canvas.text(
        _SEEN + 6, y, "the model’s share; bar: after the temperature", 11, MUTED
    )
    canvas.text(_DRAW, y, "in the draw", 11, MUTED)
    for bar in rows:
        y += 24
        canvas.text(10, y, cut(bar.label, 15), 13, mono=True)
        # What is cut is hatched as well as red: colour alone doesn't tell everyone.
        looks = (HATCH, viz.RED) if bar.cut else (viz.GREY, None)
        canvas.line([(_SEEN, y - 12), (_SEEN, y + 12)], viz.GREY)
        canvas.line([(_DRAW, y - 12), (_DRAW, y + 12)], viz.GREY)
        if bar.seen:
            canvas.box(_SEEN, y - 7, _SCALE * bar.seen, 14, *looks, 0)
        if bar.model > bar.seen:  # a thin line holds the mark and its bar together
            ends = [(_SEEN + _SCALE * share, y) for share in (bar.seen, bar.model)]
            canvas.line(ends, viz.GREY)
        mark = _SEEN + _SCALE * bar.model
        canvas.box(mark - 1, y - 9, 2, 18, viz.BLUE, None, 0)
        canvas.text(_SEEN + _SCALE + 10, y, bar.change, 11)
        if bar.chance:
            canvas.box(_DRAW, y - 7, _DRAW_SCALE * bar.chance, 14, viz.BLUE, None, 0)
        at, ink = _DRAW + 6 + _DRAW_SCALE * bar.chance, viz.RED if bar.cut else viz.BLUE
        canvas.text(at, y, bar.fate, 11, ink)
    y += 12
    for i, line in enumerate(words, start=1):
        y += 18
        canvas.text(10, y, f"{i}. {line}")
    return viz.Picture(canvas.svg(y + 14), "\n".join(lines))


class SamplingExplorer:
    """Dials for temperature, min_p, top_k and top_p over real distributions, and draws.

    Everything can be reached with Tab and turned with the arrow keys or the space bar.

    Args:
        contexts: to choose from; None loads the saved ones.
        params: where the dials stand at first.
        count: tokens to list.
        seed: of the draws.
    """

    TOP_K = TOP_K

    def __init__(
        self,
        contexts: list[Context] | None = None,
        params: SamplingParams | None = None,
        count: int = 10,
        seed: int = 0,
    ):
        import ipywidgets as w

        self.contexts = load_contexts() if contexts is None else contexts
        self.count, self.seed = count, seed
        start = params or SamplingParams()
        self.tally: Counter[int] = Counter()
        self.generator = torch.Generator().manual_seed(seed)
        self.context = w.Dropdown(
            options=[(c.prompt, i) for i, c in enumerate(self.contexts)],
            description="Continue this text",
            **narrow(),
        )
        sliders = sliders_of(start)
        self.temperature, self.min_p, self.top_k, self.top_p = sliders
        self.draw_one = w.Button(description="Draw a token")
        self.draw_many = w.Button(description="Draw 100 tokens")
        self.clear = w.Button(description="Clear the tally")
        self.figure, self.status = w.HTML(), w.HTML()
        dials = [self.context, *sliders]
        for dial in dials:
            dial.observe(self._turned, "value")
        self.draw_one.on_click(lambda _: self.draw(1))
        self.draw_many.on_click(lambda _: self.draw(100))
        self.clear.on_click(self._turned)
        buttons = grid([self.draw_one, self.draw_many, self.clear])
        # The order of the Tab key is the order in this list.
        self.controls = [*dials, buttons, self.status]
        self.box = beside(self.controls, self.figure)
        self._show(_UNDRAWN)

    @property
    def params(self) -> SamplingParams:
        """What the dials say."""
        return SamplingParams(**read_dials(self))

    @property
    def picture(self) -> viz.Picture:
        """What the dials do, as a picture and as text."""
        found = explore(self.contexts[self.context.value], self.params, self.count)
        return draw_exploration(found, self.tally)

    def draw(self, count: int) -> None:
        """Draw tokens and add them to the tally."""
        context = self.contexts[self.context.value]
        tokens = draw_tokens(context.logits, self.params, count, self.generator)
        self.tally.update(tokens)
        last = label(context.decode(tokens[-1:]))
        self._show(f"{sum(self.tally.values())} drawn, the last one was “{last}”.")

    def _turned(self, _: Any = None) -> None:
        """A dial moved: another distribution, so the tally starts again."""
        self.tally.clear()
        self.generator.manual_seed(self.seed)
        self._show(_UNDRAWN)

    def _show(self, status: str) -> None:
        self.figure.value, self.status.value = framed(self.picture), spoken(status)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """The widget, and for pages without a kernel its picture and its text."""
        picture = self.picture
        still = {"image/svg+xml": picture.svg, "text/plain": picture.text}
        return {**self.box._repr_mimebundle_(**kwargs), **still}

    def __repr__(self) -> str:
        return self.picture.text
