"""The exercises of notebook 14: the solutions pass, mistakes are rejected."""

import ast

import pytest

from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.caching_exercises_suite import _VISITS, _visit
from folovllm_lite.prefix_cache import PrefixCache
from tests.notebooks.course import NOTEBOOKS, read


def solutions():
    """What the solutions define, without running their calls."""
    names = {"PrefixCache": PrefixCache}
    path = NOTEBOOKS / "solutions" / "14_prefix_caching.ipynb"
    kinds = ast.FunctionDef | ast.ClassDef
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse(cell["source"])
            tree.body = [x for x in tree.body if isinstance(x, kinds)]
            exec(compile(tree, cell["id"], "exec"), names)
    return names


SOLVED = solutions()
FrequencyCache = SOLVED["FrequencyCache"]


def test_the_solutions_pass(capsys):
    names = ("predict_visits", "PromptCache", "FrequencyCache")
    checks.caching_exercises({name: SOLVED[name] for name in names})
    assert "✗" not in capsys.readouterr().out


def test_the_puzzles_visits_are_the_caches():
    cache = PrefixCache(6, 2)
    pool = BlockManager(6, 2, cache)
    found = [_visit(pool, text) for text in _VISITS]
    kept = ["".join(map(chr, cache.names[i].token_ids)) for i in cache.kept]
    assert SOLVED["predict_visits"]() == {"found": found, "kept": kept}


def visits(found=None, kept=None):
    right = SOLVED["predict_visits"]()
    return lambda: {"found": found or right["found"], "kept": kept or right["kept"]}


def up_to(where):
    """A PromptCache that offers up to `where(seq, end)`."""

    class Prompts(PrefixCache):
        def offer(self, seq, end):
            super().offer(seq, where(seq.data, end))

    return Prompts


class AllOrNothing(PrefixCache):
    def offer(self, seq, end):
        if end <= seq.data.get_prompt_len():
            super().offer(seq, end)


class FindsLess(PrefixCache):
    """What generated tokens fill is offered, and a prompt finds half of itself."""

    def find(self, seq):
        hits = super().find(seq)
        return hits[: len(hits) // 2]


class Withdraws(PrefixCache):
    """Names everything, and withdraws what isn't prompt: full prompts too."""

    def offer(self, seq, end):
        super().offer(seq, end)
        self.withdraw(seq.block_ids[seq.data.get_prompt_len() // self.block_size - 1 :])


class ByTokens(PrefixCache):
    """Another right PromptCache: counts the blocks that are all prompt."""

    def offer(self, seq, end):
        whole = min(end, len(seq.data.prompt_token_ids)) // self.block_size
        super().offer(seq, whole * self.block_size)


class Frequent(FrequencyCache):
    """The solution, to be spoilt."""


class CountsFind(Frequent):
    def find(self, seq):
        hits = super().find(seq)
        for block_id in hits:
            self.uses[block_id] += 1
        return hits


class CountsForAll(Frequent):
    """One count for the blocks of all caches."""

    uses_of_all = [0] * 64

    @property
    def uses(self):
        return self.uses_of_all

    @uses.setter
    def uses(self, value):
        """What clear() brings is dropped."""


class NeverForgets(Frequent):
    def take(self):
        uses = list(self.uses)
        block_id = super().take()
        self.uses = uses
        return block_id


class CountsTexts(FrequencyCache):
    """Counts by what a block holds, so the same text goes on where it stood."""

    def clear(self):
        PrefixCache.clear(self)
        self.often = {}

    def claim(self, block_id):
        PrefixCache.claim(self, block_id)
        name = self.names[block_id]
        self.often[name] = self.often.get(name, 0) + 1

    def take(self):
        if not self.numbers:
            rarest = min(self.kept, key=lambda i: self.often.get(self.names[i], 0))
            self.kept.move_to_end(rarest, last=False)
        return PrefixCache.take(self)


class CountsTakes(Frequent):
    """Counts whoever takes a block, and nobody who finds it."""

    def claim(self, block_id):
        PrefixCache.claim(self, block_id)

    def take(self):
        block_id = super().take()
        self.uses[block_id] += 1
        return block_id


class MostUsed(Frequent):
    def take(self):
        if not self.numbers:
            often = max(self.kept, key=self.uses.__getitem__)
            self.kept.move_to_end(often, last=False)
        block_id = PrefixCache.take(self)
        self.uses[block_id] = 0
        return block_id


class NewestOfEquals(Frequent):
    def take(self):
        if not self.numbers:
            rare = min(reversed(self.kept), key=self.uses.__getitem__)
            self.kept.move_to_end(rare, last=False)
        block_id = PrefixCache.take(self)
        self.uses[block_id] = 0
        return block_id


class KeptFirst(Frequent):
    """Gives up what is kept while there are blocks that hold nothing."""

    def take(self):
        if not self.kept:
            return super().take()
        numbers, self.numbers = self.numbers, []
        block_id = super().take()
        self.numbers = numbers
        return block_id


class LeavesTheName(Frequent):
    def take(self):
        if self.numbers:
            return super().take()
        rare = min(self.kept, key=self.uses.__getitem__)
        del self.kept[rare]
        self.uses[rare] = 0
        return rare


class UsedOrNot(Frequent):
    def claim(self, block_id):
        PrefixCache.claim(self, block_id)
        self.uses[block_id] = 1


class CountsToThree(Frequent):
    def claim(self, block_id):
        PrefixCache.claim(self, block_id)
        self.uses[block_id] = min(3, self.uses[block_id] + 1)


class CountsOffers(Frequent):
    """Who computes a block uses it, too, in every step."""

    def offer(self, seq, end):
        PrefixCache.offer(self, seq, end)
        for block_id in seq.block_ids:
            self.uses[block_id] += 1


class FindsForPromptsOnly(ByTokens):
    """Who comes back with generated tokens finds less of his prompt."""

    def find(self, seq):
        return super().find(seq)[: (seq.get_prompt_len() - 1) // self.block_size]


class CountsPuts(PrefixCache):
    """Another right FrequencyCache: a block comes back once more than it is claimed."""

    def clear(self):
        super().clear()
        self.puts = {}

    def put(self, block_id):
        super().put(block_id)
        if block_id in self.kept:
            self.puts[block_id] = self.puts.get(block_id, 0) + 1

    def take(self):
        if not self.numbers:
            first = sorted(self.kept, key=lambda i: self.puts[i])[0]
            self.kept.move_to_end(first, last=False)
        block_id = super().take()
        self.puts.pop(block_id, None)
        return block_id


WRONG = {
    "predict_visits": [
        visits(found=[0, 4, 4, 0, 2, 0]),
        visits(found=[0, 4, 2, 0, 4, 0]),
        visits(found=[0, 4, 2, 0, 2, 2]),
        visits(found=[0, 2, 1, 0, 1, 0]),
        visits(found=[0, 4, 2, 0, 2]),
        visits(kept=["XY", "AB", "AB", "CD", "MN", "OP"]),
        visits(kept=["QR", "OP", "MN", "CD", "AB", "XY"]),
        lambda: {"found": [0, 4, 2, 0, 2, 0]},
        lambda: None,
    ],
    "PromptCache": [
        PrefixCache, AllOrNothing, FindsLess, Withdraws, FindsForPromptsOnly,
        up_to(lambda data, end: data.get_prompt_len()),
        up_to(lambda data, end: min(end, data.get_len())),
        up_to(lambda data, end: min(end, data.get_prompt_len() + 1)),
        up_to(lambda data, end: min(end, data.get_prompt_len()) - 1),
        up_to(lambda data, end: 0),
    ],
    "FrequencyCache": [
        PrefixCache, CountsFind, NeverForgets, CountsTakes, MostUsed, NewestOfEquals,
        KeptFirst, LeavesTheName, UsedOrNot, CountsForAll, CountsTexts, CountsToThree,
        CountsOffers,
    ],
}  # fmt: skip
RIGHT = {"PromptCache": [ByTokens], "FrequencyCache": [CountsPuts, Frequent]}


@pytest.mark.parametrize(
    "name, piece", [(name, piece) for name in WRONG for piece in WRONG[name]]
)
def test_the_suite_rejects(name, piece, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.caching_exercises(**{name: piece})


@pytest.mark.parametrize(
    "name, piece", [(name, piece) for name in RIGHT for piece in RIGHT[name]]
)
def test_the_suite_accepts(name, piece, capsys):
    checks.caching_exercises(**{name: piece})
