"""Documents of the corpus: stories, chats and plain questions in two languages.

A document is what the model sees as one row of training: it begins at position 0 and
never shares its row. Stories end with `<|endoftext|>` and assistant turns with
`<|im_end|>`, as Qwen's do. Half of the documents also begin with `<|endoftext|>`, so
that the model can start from nothing as well as from a prompt without it.
"""

import hashlib
import math
import random
from dataclasses import dataclass, field

from folovllm_lite.tiny import chinese, english
from folovllm_lite.tiny.grammar import Grammar, Plot, Sample

END = "<|endoftext|>"
TURN = "<|im_start|>"
TURN_END = "<|im_end|>"
LANGUAGES = {"en": english, "zh": chinese}


@dataclass(frozen=True)
class Mix:
    """What a stage of the training reads.

    Args:
        kinds: shares of the kinds of documents.
        hard_names: use the longer invented names of the languages' `PRACTICE`.
        dwell: for some kinds beginnings of the names of plots to dwell on, and the
            chance to draw again where it was another plot.
        echo: how much a token counts that repeats what was chosen before, a name or a
            color, say; others count 1. It changes what is learned first and not what
            is best: each place still has its own best answer.
        languages: to choose from, with equal chances.
    """

    kinds: dict[str, float]
    hard_names: bool = False
    dwell: dict[str, tuple[tuple[str, ...], float]] = field(default_factory=dict)
    echo: float = 1.0
    languages: tuple[str, ...] = tuple(LANGUAGES)


# Copying a name, keeping apart who has what, and sums are what a small model learns
# last, and questions teach them with fewer tokens than stories do. So the later stages
# dwell on questions about two people, whose answer has to be told from its neighbour,
# and on colors, and the last one goes back to everything.
MIXES = {
    "practice": Mix({"story": 0.45, "plain": 0.20, "chat": 0.35}, hard_names=True),
    "polish": Mix(
        {"story": 0.35, "plain": 0.35, "chat": 0.30},
        dwell={"plain": (("where", "who", "color"), 0.6)},
    ),
    "focus": Mix(
        {"story": 0.40, "drill": 0.60},
        dwell={"story": (("broken", "gift", "lost", "stuck"), 0.9)},
        echo=8.0,
        languages=("en",),
    ),
    "finish": Mix(
        {"story": 0.50, "plain": 0.25, "chat": 0.25},
        dwell={
            "plain": (("color",), 0.5),
            "story": (("broken", "gift", "lost", "stuck"), 0.3),
        },
        echo=4.0,
    ),
}
# The share of stories among the turns of a chat; how long a chat can be.
_STORY_TURN = 0.25
_MAX_TURNS = 4

# How often a kind of question is asked, where that is not 1.
_WEIGHTS = {
    **dict.fromkeys(["add", "subtract", "fact"], 4.0),
    **dict.fromkeys(["add_story", "subtract_story"], 2.0),
    **dict.fromkeys(["where_first", "where_second", "who_first", "who_second"], 2.0),
    **dict.fromkeys(["color_first", "color_second"], 2.0),
    **dict.fromkeys(["greeting", "self", "thanks", "bye"], 0.5),
}


def turn(role: str, content: str) -> str:
    """One turn as the chat template writes it, up to the newline after it."""
    return f"{TURN}{role}\n{content}{TURN_END}\n"


def _chat_story(plot: Plot, requests: list[str]) -> Plot:
    opening = [turn("user", ask) + f"{TURN}assistant\n" for ask in requests]
    return Plot(plot.name, plot.slots, plot.steps, opening, plot.joint, f"{TURN_END}\n")


def _question(name, slots, asks, answer, chat: bool, joint: str) -> Plot:
    if chat:
        opening = [turn("user", ask) + f"{TURN}assistant\n" for ask in asks]
        closing = f"{TURN_END}\n"
    else:
        opening, closing = [ask + joint for ask in asks], END
    weight = _WEIGHTS.get(name, 1.0)
    return Plot(name, slots, [[answer]], opening, closing=closing, weight=weight)


def _grammars(language, lexicons: dict) -> dict[str, Grammar]:
    joint = language.STORIES[0].joint
    stories = [
        Plot(p.name, p.slots, p.steps, joint=p.joint, closing=END)
        for p in language.STORIES
    ]
    return {
        "story": Grammar(lexicons, stories),
        "chat_story": Grammar(
            lexicons,
            [_chat_story(p, language.STORY_REQUESTS) for p in language.STORIES],
        ),
        "chat": Grammar(
            lexicons, [_question(*q, chat=True, joint="") for q in language.QUESTIONS]
        ),
        "plain": Grammar(
            lexicons,
            [_question(*q, chat=False, joint=joint) for q in language.QUESTIONS],
        ),
        "drill": Grammar(
            lexicons, [_question(*q, chat=False, joint=joint) for q in language.DRILLS]
        ),
    }


# language -> kind -> Grammar. Every part of every document comes from one of these.
GRAMMARS = {
    name: _grammars(language, language.LEXICONS) for name, language in LANGUAGES.items()
}
# The same with the harder words of the first stage of training.
PRACTICE = {
    name: _grammars(language, {**language.LEXICONS, **language.PRACTICE})
    for name, language in LANGUAGES.items()
}


@dataclass(frozen=True)
class Document:
    """A row of the corpus: its text, and the grammar samples that it is made of."""

    language: str
    kind: str
    text: str
    parts: tuple[Sample, ...]

    @property
    def echoes(self) -> list[tuple[int, int]]:
        """The echoes of all parts, as [start, end) of `text`."""
        spans, at = [], len(self.text) - sum(len(part.text) for part in self.parts)
        for part in self.parts:  # they end the text; before them stands no choice
            spans += [(at + start, at + end) for start, end in part.echoes]
            at += len(part.text)
        return spans


def held_out(sample: Sample) -> bool:
    """Whether training never sees this text: one text in 32, by its hash.

    Texts that have no slots ("Hello!") are all trained on: there are too few of them.
    """
    digest = hashlib.sha256(sample.text.encode()).digest()
    return sample.has_slots and digest[0] % 32 == 0


def draw(grammar: Grammar, rng: random.Random, held: bool = False) -> Sample:
    """A sample from the training side of the split, or from the `held` out side."""
    while True:
        sample = grammar.sample(rng)
        if held_out(sample) == held:
            return sample


def document(rng: random.Random, mix: str = "practice") -> Document:
    """Draw a document: a story, a plain question, or a chat of up to 4 turns.

    Args:
        rng: decides everything.
        mix: a name of MIXES.
    """
    chosen = MIXES[mix]
    language = rng.choice(chosen.languages)
    grammars = (PRACTICE if chosen.hard_names else GRAMMARS)[language]
    kind = rng.choices(list(chosen.kinds), chosen.kinds.values())[0]
    if kind != "chat":
        part = draw(grammars[kind], rng)
        if kind in chosen.dwell:
            names, patience = chosen.dwell[kind]
            while not part.plot.startswith(names) and rng.random() < patience:
                part = draw(grammars[kind], rng)
        start = END if rng.random() < 0.5 else ""
        return Document(language, kind, start + part.text, (part,))
    system = ""
    if rng.random() < 0.15:
        system = turn("system", rng.choice(LANGUAGES[language].SYSTEM))
    parts = []
    for _ in range(rng.randint(1, _MAX_TURNS)):
        kind = "chat_story" if rng.random() < _STORY_TURN else "chat"
        parts.append(draw(grammars[kind], rng))
    return Document(
        language, "chat", system + "".join(part.text for part in parts), tuple(parts)
    )


def calibration(count: int = 256, seed: int = 0) -> list[str]:
    """Texts like those of the training, for a quantizer to look at."""
    rng = random.Random(f"{seed} calibration")
    return [document(rng, "finish").text for _ in range(count)]


def entropy(samples: list[Sample], grammar: Grammar) -> float:
    """Mean of -log p over samples of one grammar, in nats per text.

    Derivations that write the same text are summed, so this is an unbiased estimate of
    the grammar's true entropy: no model can have a lower expected loss.
    """
    return -math.fsum(grammar.logprob(sample.text) for sample in samples) / len(samples)
