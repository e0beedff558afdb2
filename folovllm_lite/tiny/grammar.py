"""A generative grammar whose every text has a known probability.

A `Plot` is a list of steps, a step a list of alternative sentences, and a sentence may
hold slots such as `{hero}` or `{toy.a}`. The first mention of a slot draws an `Entry`
from its lexicon; every later mention repeats it. That is all it takes for a story to
keep its hero, its place and its object to the last line.

The same data is read in two directions. `Grammar.sample` writes a text and
`Grammar.logprob` parses one: it sums over every derivation that yields exactly that
text. A text without a derivation has log-probability -inf, which is what "the grammar
rejects it" means here. So the corpus has an exact entropy, and a model trained on it
can be measured against a bound instead of against taste.

This module knows nothing of languages, tokens or models.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# Weight of the i-th of several alternatives: (i + 1) ** -ZIPF. Uneven on purpose: a
# temperature of 0.2 then has a favourite to fall back on, and the dial shows.
ZIPF = 0.8

_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")


@dataclass(frozen=True)
class Entry:
    """A word and its forms: `{hero}` is `text`, `{hero.he}` is `forms["he"]`."""

    text: str
    forms: dict[str, str] = field(default_factory=dict, hash=False, compare=False)

    def form(self, name: str | None) -> str:
        """The form called `name`; None is the word itself. KeyError if it has none."""
        return self.text if name is None else self.forms[name]


@dataclass(frozen=True)
class Coin:
    """An open class of invented words, built from parts by `shapes`.

    `shapes` is a list of alternatives, each a list of part lists: a shape is picked,
    then one part from each list, all with equal chances. `kinds` are the sets of forms
    that an invented word can take (she, he). `capital` writes the first letter large.
    """

    shapes: tuple[tuple[tuple[str, ...], ...], ...]
    kinds: tuple[dict[str, str], ...]
    capital: bool = False

    def sample(self, rng: random.Random) -> tuple[Entry, float]:
        """A new word and its log-probability."""
        shape = rng.choice(self.shapes)
        word = "".join(rng.choice(parts) for parts in shape)
        word = word.capitalize() if self.capital else word
        kind = rng.choice(self.kinds)
        return Entry(word, kind), self._logprob(shape) - math.log(len(self.kinds))

    def nameless(self) -> list[Entry]:
        """One entry for each kind, its name still to come."""
        return [Entry("", kind) for kind in self.kinds]

    def match_name(self, text: str, start: int) -> Iterator[tuple[str, float]]:
        """Every invented word that `text` can hold at `start`, with its log-prob."""
        for shape in self.shapes:
            for end in _ends(shape, text, start, self.capital):
                yield text[start:end], self._logprob(shape)

    def _logprob(self, shape: tuple[tuple[str, ...], ...]) -> float:
        return -math.log(len(self.shapes) * math.prod(len(parts) for parts in shape))


def _ends(shape, text: str, start: int, capital: bool) -> Iterator[int]:
    """Positions at which the parts of `shape`, read from `start`, can end."""
    if not shape:
        yield start
        return
    for part in shape[0]:
        written = part.capitalize() if capital else part
        if text.startswith(written, start):
            # An empty part leaves the capital for the next one.
            rest_capital = capital and not part
            yield from _ends(shape[1:], text, start + len(part), rest_capital)


class Lexicon:
    """Entries with Zipf weights, and optionally an open class beside them.

    Args:
        entries: the listed words, the likeliest first.
        coin: invented words, drawn with probability `coined`.
        zipf: exponent of the weights; 0 makes all entries equally likely.
    """

    def __init__(
        self,
        entries: list[Entry],
        coin: Coin | None = None,
        coined: float = 0.0,
        zipf: float = ZIPF,
    ):
        self.entries = entries
        self.coin = coin
        self.coined = coined if coin else 0.0
        weights = [(i + 1) ** -zipf for i in range(len(entries))]
        scale = (1 - self.coined) / sum(weights)
        self.probs = [w * scale for w in weights]

    def prob(self, entry: Entry) -> float:
        """Probability of the listed `entry`; about 0 for an invented word."""
        return self.probs[self.entries.index(entry)] if entry in self.entries else 0.0

    def sample(self, rng: random.Random, taken: list[Entry]) -> tuple[Entry, float]:
        """An entry that is not in `taken`, and its log-probability."""
        while True:
            if rng.random() < self.coined:
                entry, logp = self.coin.sample(rng)
                logp += math.log(self.coined)
            else:
                index = rng.choices(range(len(self.entries)), self.probs)[0]
                entry, logp = self.entries[index], math.log(self.probs[index])
            if all(entry.text != other.text for other in taken):
                return entry, logp - self._free(taken)

    def match(
        self, text: str, start: int, form: str | None, taken: list[Entry]
    ) -> Iterator[tuple[Entry, float]]:
        """Every entry whose `form` stands in `text` at `start`, with its log-prob.

        A pronoun may come before an invented name ("a boy named ..."): the entry is
        then yielded with an empty text, and `name` reads its name when it comes.
        """
        free = self._free(taken)
        for entry, prob in zip(self.entries, self.probs, strict=True):
            if entry not in taken and text.startswith(entry.form(form), start):
                yield entry, math.log(prob) - free
        if not self.coin:
            return
        for entry in self.coin.nameless():
            logp = math.log(self.coined / len(self.coin.kinds)) - free
            if form is None:
                for named, cost in self.name(entry, text, start, taken):
                    yield named, logp + cost
            elif text.startswith(entry.form(form), start):
                yield entry, logp

    def name(
        self, entry: Entry, text: str, start: int, taken: list[Entry]
    ) -> Iterator[tuple[Entry, float]]:
        """Give a nameless `entry` every invented name that `text` holds at `start`."""
        for word, logp in self.coin.match_name(text, start):
            if all(word != other.text for other in taken):
                yield Entry(word, entry.forms), logp

    def _free(self, taken: list[Entry]) -> float:
        """Log of the probability mass that the `taken` entries leave."""
        return math.log(1 - sum(self.prob(entry) for entry in taken))


@dataclass(frozen=True)
class Plot:
    """One kind of text.

    Args:
        name: what reports call it.
        slots: slot name -> lexicon name. Slots of one lexicon get different entries.
        steps: per step the alternative sentences, the likeliest first.
        opening: alternatives written before the steps (a question, say); "" by default.
        joint: what stands between two steps: a space in English, nothing in Chinese.
        closing: written after the last step.
        weight: how often this plot is drawn, relative to the others of its grammar.
    """

    name: str
    slots: dict[str, str]
    steps: list[list[str]]
    opening: list[str] = field(default_factory=lambda: [""])
    joint: str = " "
    closing: str = ""
    weight: float = 1.0

    def alternatives(self) -> list[list[str]]:
        """The steps with opening, joints and closing written into the templates."""
        joints = [self.joint] * (len(self.steps) - 1) + [self.closing]
        steps = [
            [sentence + joint for sentence in step]
            for step, joint in zip(self.steps, joints, strict=True)
        ]
        return [self.opening, *steps]


@dataclass(frozen=True)
class Sample:
    """A text drawn from a grammar.

    Args:
        plot: name of its plot.
        text: the whole text.
        prompt: its opening (what a user would ask), "" where the plot has none.
        logprob: natural log-probability of the choices that wrote it. Where two
            derivations write the same text, `Grammar.logprob` is the larger sum.
        has_slots: whether the plot draws any words.
        echoes: [start, end) of every later mention of a slot, in characters: what no
            choice is left about.
    """

    plot: str
    text: str
    prompt: str
    logprob: float
    has_slots: bool
    echoes: tuple[tuple[int, int], ...] = ()


class Grammar:
    """A weighted set of plots over shared lexicons."""

    def __init__(self, lexicons: dict[str, Lexicon], plots: list[Plot]):
        self.lexicons = lexicons
        self.plots = plots
        total = sum(plot.weight for plot in plots)
        self._log_weights = [math.log(plot.weight / total) for plot in plots]
        # Templates cut once into literals and (slot, form) pairs.
        self._cut = [
            [[_parts(template) for template in step] for step in plot.alternatives()]
            for plot in plots
        ]
        self._log_choice = {}

    def sample(self, rng: random.Random) -> Sample:
        """Draw a text."""
        index = rng.choices(
            range(len(self.plots)), [plot.weight for plot in self.plots]
        )[0]
        plot, logp = self.plots[index], self._log_weights[index]
        bound: dict[str, Entry] = {}
        written, echoes, at = [], [], 0
        for templates in self._cut[index]:
            log_choice = self._choice(len(templates))
            pick = rng.choices(range(len(templates)), map(math.exp, log_choice))[0]
            logp += log_choice[pick]
            start = at
            for literal, slot, form in templates[pick]:
                written.append(literal)
                at += len(literal)
                if slot is None:
                    continue
                known = slot in bound
                if not known:
                    lexicon, taken = self._domain(plot, slot, bound)
                    bound[slot], cost = lexicon.sample(rng, taken)
                    logp += cost
                written.append(bound[slot].form(form))
                at += len(written[-1])
                if known:
                    echoes.append((at - len(written[-1]), at))
            if start == 0:
                opening = at
        text = "".join(written)
        return Sample(
            plot.name, text, text[:opening], logp, bool(plot.slots), tuple(echoes)
        )

    def logprob(self, text: str) -> float:
        """Natural log-probability of this text; -inf if no derivation has it."""
        logps = [
            weight + logp
            for index, weight in enumerate(self._log_weights)
            for logp in self._steps(index, text, 0, 0, {})
        ]
        if not logps:
            return -math.inf
        best = max(logps)
        return best + math.log(sum(math.exp(logp - best) for logp in logps))

    def accepts(self, text: str) -> bool:
        """Whether the grammar can write exactly this text."""
        return self.logprob(text) > -math.inf

    def _steps(self, index, text, at, step, bound) -> Iterator[float]:
        """Log-probs of all ways to read `text[at:]` from step `step` on."""
        steps = self._cut[index]
        if step == len(steps):
            if at == len(text):
                yield 0.0
            return
        for template, cost in zip(
            steps[step], self._choice(len(steps[step])), strict=True
        ):
            for logp in self._parts(index, text, at, step, template, 0, bound):
                yield cost + logp

    def _parts(self, index, text, at, step, template, part, bound) -> Iterator[float]:
        """The same from part `part` of a `template` of that step on."""
        if part == len(template):
            yield from self._steps(index, text, at, step + 1, bound)
            return
        literal, slot, form = template[part]
        if not text.startswith(literal, at):
            return
        at += len(literal)
        if slot is None:
            found = [(None, 0.0)]
        elif slot in bound and (form or bound[slot].text):
            here = text.startswith(bound[slot].form(form), at)
            found = [(bound[slot], 0.0)] if here else []
        else:
            lexicon, taken = self._domain(self.plots[index], slot, bound)
            if slot in bound:
                found = lexicon.name(bound[slot], text, at, taken)
            else:
                found = lexicon.match(text, at, form, taken)
        for entry, cost in found:
            end = at + len(entry.form(form)) if entry else at
            now = {**bound, slot: entry} if entry else bound
            for logp in self._parts(index, text, end, step, template, part + 1, now):
                yield cost + logp

    def _domain(self, plot: Plot, slot: str, bound: dict[str, Entry]):
        """The lexicon of `slot`, and the entries of it that other slots hold."""
        name = plot.slots[slot]
        taken = [
            entry
            for other, entry in bound.items()
            if other != slot and plot.slots[other] == name
        ]
        return self.lexicons[name], taken

    def _choice(self, count: int) -> list[float]:
        """Log-probabilities of `count` alternatives under the Zipf weights."""
        if count not in self._log_choice:
            weights = [(i + 1) ** -ZIPF for i in range(count)]
            total = sum(weights)
            self._log_choice[count] = [math.log(w / total) for w in weights]
        return self._log_choice[count]


def _parts(template: str) -> list[tuple[str, str | None, str | None]]:
    """Cut "A {toy.a} B" into [("A ", "toy", "a"), (" B", None, None)]."""
    parts, at = [], 0
    for match in _SLOT.finditer(template):
        parts.append((template[at : match.start()], match[1], match[2]))
        at = match.end()
    return [*parts, (template[at:], None, None)]
