"""Documents of the corpus: stories, chats and plain questions in two languages.

A document is what the model sees as one row of training: it begins at position 0 and
never shares its row. Stories end with `<|endoftext|>` and assistant turns with
`<|im_end|>`, as Qwen's do. Half of the documents also begin with `<|endoftext|>`, so
that the model can start from nothing as well as from a prompt without it.
"""

import hashlib
import math
import random
from dataclasses import dataclass

from folovllm_lite.tiny import chinese, english
from folovllm_lite.tiny.grammar import Grammar, Plot, Sample

END = "<|endoftext|>"
TURN = "<|im_start|>"
TURN_END = "<|im_end|>"
LANGUAGES = {"en": english, "zh": chinese}

# Shares of the kinds of documents, in the first stage of training and in the second; of
# stories among the turns of a chat; how long a chat can be. Copying a name, keeping
# apart who has what, and sums are what a small model learns last, and questions teach
# them with fewer tokens than stories do.
_KINDS = {"story": 0.45, "plain": 0.20, "chat": 0.35}
_POLISH_KINDS = {"story": 0.35, "plain": 0.35, "chat": 0.30}
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
# Questions about two people, where the answer has to be told from its neighbour.
_TWO_PEOPLE = ("where", "who", "color")


@dataclass(frozen=True)
class Document:
    """A row of the corpus: its text, and the grammar samples that it is made of."""

    language: str
    kind: str
    text: str
    parts: tuple[Sample, ...]


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


def document(rng: random.Random, practice: bool = True) -> Document:
    """Draw a document: a story, a plain question, or a chat of up to 4 turns.

    Args:
        rng: decides everything.
        practice: for the first stage of training, with harder names; else for the
            second, where plain questions are mostly about two people.
    """
    language = rng.choice(list(LANGUAGES))
    grammars = (PRACTICE if practice else GRAMMARS)[language]
    kinds = _KINDS if practice else _POLISH_KINDS
    kind = rng.choices(list(kinds), kinds.values())[0]
    if kind != "chat":
        part = draw(grammars[kind], rng)
        if kind == "plain" and not practice:
            while not part.plot.startswith(_TWO_PEOPLE) and rng.random() < 0.6:
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


def entropy(samples: list[Sample], grammar: Grammar) -> float:
    """Mean of -log p over samples of one grammar, in nats per text.

    Derivations that write the same text are summed, so this is an unbiased estimate of
    the grammar's true entropy: no model can have a lower expected loss.
    """
    return -math.fsum(grammar.logprob(sample.text) for sample in samples) / len(samples)
