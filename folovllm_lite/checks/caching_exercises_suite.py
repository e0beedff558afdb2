"""What has to be true of the exercises of notebook 14: a trace, two other caches."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from folovllm_lite import prefix_cache as package
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.harness import Suite, expect, fail
from folovllm_lite.checks.memory_suite import _SUITE as _MEMORY
from folovllm_lite.checks.prefix_cache_suite import prefix_cache
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams

_SUITE = caching_exercises = Suite(
    package,
    """Judge the exercises of 14: `predict_visits`, `PromptCache` and `FrequencyCache`.

    Raises CheckFailed at the end if a property doesn't hold.
    """,
)
_VISITS = ("ABCDE", "ABCDEF", "ABXY", "MNOPQRS", "ABCDE", "XYAB")
_FOUND = [0, 4, 2, 0, 2, 0]
_KEPT = ["OP", "MN", "CD", "AB", "AB", "XY"]


def _seq(tokens: Iterable[Any], name: str = "a", prompt: int | None = None) -> Sequence:
    """A waiting sequence, of whose tokens the first `prompt` weren't generated."""
    ids = [ord(t) if isinstance(t, str) else t for t in tokens]
    at = len(ids) if prompt is None else prompt
    return Sequence(name, name, SequenceData(ids[:at], ids[at:]), SamplingParams())


def _visit(pool: BlockManager, tokens: Iterable[Any]) -> int:
    """A prompt begins, is computed, and goes; how many tokens it found."""
    seq = _seq(tokens, "visitor")
    pool.place(seq, seq.get_len())
    found = seq.num_computed
    pool.offer(seq, seq.get_len())
    seq.num_computed = seq.get_len()
    pool.release(seq)
    return found


def _hits(pool: BlockManager, tokens: Iterable[Any]) -> int:
    return len(pool.free.find(_seq(tokens, "ask")))


def _hits_after(pool: BlockManager, takes: int, *texts: str) -> list[int]:
    for _ in range(takes):
        pool.free.take()
    return [_hits(pool, text) for text in texts]


def _all_hold(suite: Suite, **pieces: Any) -> None:
    """What another suite asks; the first mistake is told as that suite tells it."""
    together = SimpleNamespace(**{**vars(suite.module), **pieces})
    for each in suite.properties:
        if pieces.keys() & set(each.needs):
            each.holds(together)


# ----- 1. Trace


def _answer(p: SimpleNamespace, name: str) -> Any:
    got = p.predict_visits()
    if not isinstance(got, dict) or name not in got:
        fail("predict_visits()", got, f"a dict with the key {name!r}")
    return got[name]


def _visits(p: SimpleNamespace, first: int, last: int) -> None:
    """Compare without saying what is right: that would be the answer."""
    found = list(_answer(p, "found"))
    expect("found: entries", len(found), len(_VISITS))
    for number in range(first, last):
        if found[number] != _FOUND[number]:
            fail(
                f"visitor {number + 1}, {_VISITS[number]}",
                found[number],
                "another number of tokens",
            )


@_SUITE.property(
    "predict_visits", hint="which full blocks have names, and is one token left?"
)
def _first_visits(p: SimpleNamespace) -> None:
    """The first three find full blocks of those before them, and no more."""
    _visits(p, 0, 3)


@_SUITE.property(
    "predict_visits",
    hint="the fourth needs four blocks: how many hold nothing, and which goes next?",
)
def _last_visits(p: SimpleNamespace) -> None:
    """The others find what wasn't given up, after the same past."""
    _visits(p, 3, 6)


@_SUITE.property(
    "predict_visits", hint="who goes gives back its last block first; who was claimed?"
)
def _what_is_kept(p: SimpleNamespace) -> None:
    """What is kept at the end is right, the longest unused first."""
    if list(_answer(p, "kept")) != _KEPT:
        fail("kept", _answer(p, "kept"), "another list")


# ----- 2. Modify


def _at_once(p: SimpleNamespace, prompt: int, total: int, ends: tuple) -> list[int]:
    """Blocks of 2: how many are found after the offers up to each end."""
    cache = p.PromptCache(8, 2)
    pool = BlockManager(8, 2, cache)
    seq = _seq(range(total), "a", prompt)
    pool.place(seq, total)
    hits = []
    for end in ends:
        pool.offer(seq, end)
        hits.append(_hits(pool, range(total + 1)))
    return hits


@_SUITE.property("PromptCache", hint="what would be the least that a cache does?")
def _prompts_are_found(p: SimpleNamespace) -> None:
    """Full blocks of a prompt are found, as before."""
    for prompt, wanted in ((4, 2), (5, 2), (6, 3)):
        got = _at_once(p, prompt, prompt, (prompt,))
        expect(f"blocks of 2, a prompt of {prompt} is offered: hits", got, [wanted])
    pool = BlockManager(8, 2, p.PromptCache(8, 2))
    _visit(pool, range(5))
    got = len(pool.free.find(_seq(range(7), "again", 4)))
    given = "blocks of 2, a prompt of 5 is offered, its first 4 and 3 generated ask"
    expect(f"{given}: hits", got, 2)


@_SUITE.property("PromptCache", hint="how far does the prompt reach?")
def _answers_are_not(p: SimpleNamespace) -> None:
    """A block with a generated token isn't found, even if it begins as prompt."""
    for prompt, wanted in ((4, 2), (5, 2), (1, 0)):
        got = _at_once(p, prompt, 9, (9,))
        given = f"blocks of 2, a prompt of {prompt}, 9 tokens in all are offered"
        expect(f"{given}: hits", got, [wanted])


@_SUITE.property("PromptCache", hint="is all of the prompt offered yet?")
def _nothing_early(p: SimpleNamespace) -> None:
    """Nothing is found before it is offered: chunks end inside a prompt."""
    got = _at_once(p, 7, 9, (1, 2, 5, 7, 8, 9))
    given = "blocks of 2, a prompt of 7, offers up to 1, 2, 5, 7, 8, 9: hits"
    expect(given, got, [0, 1, 2, 3, 3, 3])


@_SUITE.property("PromptCache", hint="the next turn's prompt holds this one's answer")
def _next_turn(p: SimpleNamespace) -> None:
    """What was generated is found as soon as it is part of somebody's prompt."""
    cache = p.PromptCache(12, 2)
    pool = BlockManager(12, 2, cache)
    seq = _seq(range(8), "a", 4)
    pool.place(seq, 8)
    pool.offer(seq, 8)
    seq.num_computed = 8
    pool.release(seq)
    found = [_visit(pool, range(9)) for _ in range(2)]
    given = "a prompt of 4 and 4 generated, then all as a prompt of 9, twice: found"
    expect(given, found, [4, 8])


@_SUITE.property("PromptCache", hint="which verbs have to change?")
def _else_the_same(p: SimpleNamespace) -> None:
    """As the free list of a pool it keeps the promises of a memory."""
    _all_hold(_MEMORY, Memory=lambda: BlockManager(8, 4, p.PromptCache(8, 4)))


# ----- 3. Design


def _frequent(p: SimpleNamespace, blocks: int) -> BlockManager:
    return BlockManager(blocks, 2, p.FrequencyCache(blocks, 2))


@_SUITE.property(
    "FrequencyCache",
    hint="which promises has every free list? And of two prompts, one of them hit, "
    "which is given up?",
)
def _is_a_prefix_cache(p: SimpleNamespace) -> None:
    """It keeps the promises of a PrefixCache: names, salts, twins, withdrawing."""
    _all_hold(prefix_cache, PrefixCache=p.FrequencyCache)


@_SUITE.property("FrequencyCache", hint="who was claimed most often, and who last?")
def _fewest_uses(p: SimpleNamespace) -> None:
    """The one with the fewest uses is given up, whenever they were."""
    pool = _frequent(p, 4)
    other = _frequent(p, 4)
    for text in ("ABa", "CDa", "ABb", "ABc", "CDb", "EFa"):
        _visit(pool, text)
    for text in ("ABa", "CDa", *["EFa"] * 5):  # the same blocks, of another pool
        _visit(other, text)
    given = "4 blocks of 2: AB is used twice, CD once, later, EF never, last"
    orders = []
    for _ in range(4):
        orders.append(_hits_after(pool, 1, "ABx", "CDx", "EFx"))
    wanted = [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    expect(f"{given}: hits of each, after 1 to 4 takes", orders, wanted)
    pool = _frequent(p, 4)
    for text in (*["ABa"] * 10, *["CDa"] * 9):
        _visit(pool, text)
    got = _hits_after(pool, 3, "ABx", "CDx")
    given = "4 blocks of 2: AB is used 9 times, then CD 8 times, 3 takes"
    expect(f"{given}: hits of AB and CD", got, [1, 0])
    pool = _frequent(p, 4)
    slow = _seq("ABa", "slow")
    pool.place(slow, 3)
    for end in (1, 2, 3, 3, 3):
        pool.offer(slow, end)
    pool.release(slow)
    for text in ("CDa", "CDb"):
        _visit(pool, text)
    got = _hits_after(pool, 3, "ABx", "CDx")
    given = (
        "4 blocks of 2: AB is offered often and never used, CD is used once, 3 takes"
    )
    expect(f"{given}: hits of AB and CD", got, [0, 1])


@_SUITE.property("FrequencyCache", hint="what does min do with equals?")
def _oldest_of_equals(p: SimpleNamespace) -> None:
    """Of those with equally many uses the longest unused goes first."""
    pool = _frequent(p, 4)
    for text in ("ABa", "CDa", "EFa", "CDb", "ABb", "EFb"):
        _visit(pool, text)
    given = "4 blocks of 2: AB, CD, EF are used once each, CD first, then AB"
    orders = []
    for _ in range(4):
        orders.append(_hits_after(pool, 1, "ABx", "CDx", "EFx"))
    wanted = [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]
    expect(f"{given}: hits of each, after 1 to 4 takes", orders, wanted)


@_SUITE.property("FrequencyCache", hint="who asks, and never comes?")
def _asking_is_no_use(p: SimpleNamespace) -> None:
    """To ask with find changes nothing, however often."""
    pool = _frequent(p, 3)
    for text in ("ABa", "CDa", "CDb"):
        _visit(pool, text)
    for _ in range(9):
        _hits(pool, "ABx")
    got = _hits_after(pool, 2, "ABx", "CDx")
    given = "3 blocks of 2: CD is used once, AB is asked for 9 times, 2 takes"
    expect(f"{given}: hits of each", got, [0, 1])


@_SUITE.property("FrequencyCache", hint="a block is not what it held")
def _starts_at_nought(p: SimpleNamespace) -> None:
    """What a given-up block holds next has no uses; nor has anything after clear()."""
    for how in ("taken by another", "cleared"):
        pool = _frequent(p, 3)
        for text in ("ABa", "ABb", "ABc", "ABd"):
            _visit(pool, text)
        if how == "cleared":
            pool.clear()
        else:
            _visit(pool, "123456")  # takes every block
        taken = [_visit(pool, text) for text in ("GHa", "IJa", "IJb")]
        expect(f"AB is {how}, then GH, IJ, IJ: found", taken, [0, 0, 2])
        got = _hits_after(pool, 2, "GHx", "IJx")
        given = f"3 blocks of 2, AB is used 3 times and {how}; GH never, IJ once"
        expect(f"{given}, 2 takes: hits of GH and IJ", got, [0, 1])
    pool = _frequent(p, 4)
    for text in ("ABa", "ABb", "ABc", "12345678", "ABd", "CDa", "CDb"):
        _visit(pool, text)
    got = _hits_after(pool, 3, "ABx", "CDx")
    given = "4 blocks of 2, AB is used twice, given up, comes again; CD is used once"
    expect(f"{given}, 3 takes: hits of AB and CD", got, [0, 1])


@_SUITE.property("FrequencyCache", hint="what does it do that LRU doesn't?")
def _survives_a_flood(p: SimpleNamespace) -> None:
    """A system prompt that is used survives long texts that come once."""
    pool = _frequent(p, 8)
    for letter in "abcd":
        _visit(pool, "SYSTEM" + letter)
    for number in range(6):
        _visit(pool, [100 * number + i for i in range(9)])
    got = _visit(pool, "SYSTEMx")
    given = "8 blocks of 2: a prompt is used 3 times, 6 texts of 9 tokens come once"
    expect(f"{given}: tokens found of it", got, 6)
