"""What has to be true of a free list that remembers, whoever wrote it."""

import random
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from folovllm_lite import prefix_cache as package
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail, on
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams

_SUITE = prefix_cache = Suite(
    package,
    """Judge PrefixCache and name_block of `folovllm_lite.prefix_cache`, or one of them.

    `checks.prefix_cache(PrefixCache=Mine)` judges one class,
    `checks.prefix_cache(module)` all of a module. `find` is judged as that method of
    the package's PrefixCache. The blocks are held by the package's own BlockManager.
    """,
    methods={"find": "PrefixCache.find"},
)


def _seq(tokens: Iterable[int], name: str = "a", salt: bytes = b"") -> Sequence:
    """A waiting sequence of these tokens."""
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams(), cache_salt=salt)


def _pool(
    p: SimpleNamespace, blocks: int = 8, size: int = 2
) -> tuple[BlockManager, Any]:
    """The package's pool of blocks of `size` tokens, and the judged free list in it."""
    cache = p.PrefixCache(blocks, size)
    return BlockManager(blocks, size, cache), cache


def _begin(pool: BlockManager, seq: Sequence, end: int | None = None) -> Sequence:
    """Place `seq`, compute its tokens up to `end`, and offer them; itself."""
    end = seq.get_len() if end is None else end
    pool.place(seq, end)
    pool.offer(seq, end)
    seq.num_computed = end
    return seq


def _go(pool: BlockManager, seq: Sequence, end: int) -> None:
    """Go on to `end` tokens, and offer them."""
    pool.grow(seq, end)
    pool.offer(seq, end)
    seq.num_computed = end


def _books(pool: BlockManager, given: str) -> None:
    """Fail if the books say of themselves that something is wrong."""
    if not hasattr(pool.free, "check_integrity"):
        return
    try:
        pool.check_integrity()
    except AssertionError as error:
        fail(f"{given}: check_integrity()", f"AssertionError: {error}", "no error")


# ----- names of blocks


@_SUITE.property("name_block", hint="a name says all that decides: what does?")
def _says_all(p: SimpleNamespace) -> None:
    """A name holds its tokens and its parent, beside the digest."""
    for parent, tokens in ((b"", (1, 23)), (b"x", (7,))):
        name = p.name_block(parent, tokens)
        given = f"name_block({parent!r}, {tokens})"
        expect(f"{given}.token_ids", list(name.token_ids), list(tokens))
        expect(f"{given}.parent", name.parent, parent)
    tokens = [1, 23]
    name = p.name_block(b"", tokens)
    tokens[0] = 9
    given = "tokens = [1, 23]; name = name_block(b'', tokens); tokens[0] = 9"
    expect(f"{given}: name.token_ids", list(name.token_ids), [1, 23])
    name, same = (p.name_block(b"", each) for each in (iter((1, 23)), (1, 23)))
    given = "name_block(b'', iter((1, 23)))"
    expect(f"{given}.token_ids", list(name.token_ids), [1, 23])
    expect(f"{given}: the digest of (1, 23)", name.digest == same.digest, True)


@_SUITE.property("name_block", hint="what decides whether two blocks hold the same?")
def _digests(p: SimpleNamespace) -> None:
    """Blocks have one digest exactly if their tokens and their past are the same."""
    one = p.name_block(b"", (1, 23)).digest
    again = p.name_block(b"", [1, 23]).digest
    expect("name_block(b'', (1, 23)), twice: the same digest", again == one, True)
    big = 1 << 16
    for parent, tokens in (
        (b"", (1, 24)),
        (b"", (23, 1)),
        (b"", (12, 3)),
        (b"", (1 + big, 23)),
        (b"x", (1, 23)),
        (one, (1, 23)),
    ):
        same = p.name_block(parent, tokens).digest == one
        given = f"name_block({parent[:8]!r}, {tokens}) and name_block(b'', (1, 23))"
        expect(f"{given}: the same digest", same, False)
    other, text = p.name_block(b"", (1, 24)).digest, tuple(range(16))
    parents = [b"", b"x", b"y", b"a shop's salt", b"a shoe's salt", b"a shop's salz"]
    swapped = [(*text[:i], text[i + 1], text[i], *text[i + 2 :]) for i in range(15)]
    seen: dict[bytes, str] = {}
    for parent, tokens in (
        *((parent, text) for parent in (*parents, one, other)),
        *((one, each) for each in swapped),
    ):
        given = f"name_block({parent[:13]!r}, {tokens})"
        digest = p.name_block(parent, tokens).digest
        if digest in seen:
            fail(f"{given} and {seen[digest]}", "the same digest", "two digests")
        seen[digest] = given
    salted, plain = p.name_block(b"1", (2, 3)), p.name_block(b"", (12, 3))
    given = "name_block(b'1', (2, 3)) and name_block(b'', (12, 3))"
    expect(f"{given}: the same digest", salted.digest == plain.digest, False)


@_SUITE.property("name_block", hint="hash() is made for speed; who else is there?")
def _long_digests(p: SimpleNamespace) -> None:
    """A digest is 32 bytes or more, and nobody makes two blocks collide on purpose."""
    digest = p.name_block(b"", (1, 2)).digest
    expect("name_block(b'', (1, 2)).digest: type", type(digest).__name__, "bytes")
    if len(digest) < 32:
        fail("name_block(b'', (1, 2)).digest", f"{len(digest)} bytes", "32 or more")
    behind = p.name_block(digest, (3, 4)).digest
    expect("the digest of a block behind it: bytes", len(behind), len(digest))
    with suppress(OverflowError, ValueError, struct.error):  # no tokens: may be refused
        same = p.name_block(b"", (-1, 7)).digest == p.name_block(b"", (-2, 7)).digest
        given = "name_block(b'', (-1, 7)) and (-2, 7), whose hash() is the same"
        expect(f"{given}: the same digest", same, False)


# ----- free blocks


@_SUITE.property("PrefixCache", hint="first of all it is a free list")
def _is_a_free_list(p: SimpleNamespace) -> None:
    """Without an offer it hands out every block once, and takes each back."""
    cache = p.PrefixCache(3, 2)
    expect("PrefixCache(3, 2): len", len(cache), 3)
    taken = [cache.take() for _ in range(3)]
    expect("... take, three times", sorted(taken), [0, 1, 2])
    expect("... take, three times: len", len(cache), 0)
    for count, block_id in enumerate(taken, 1):
        cache.put(block_id)
        expect(f"... {count} come back: len", len(cache), count)
    expect("... and again", sorted(cache.take() for _ in range(3)), [0, 1, 2])


# ----- what is found


@_SUITE.property("PrefixCache", hint="follow the names until one is missing")
def _hits(p: SimpleNamespace) -> None:
    """A prompt that begins alike finds the same blocks, as far as they reach."""
    for tokens, count in (
        ([1, 2, 3], 1),
        ([1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 4, 5, 6, 7, 8], 3),
        ([1, 2, 3, 9, 5, 6, 7], 1),
        ([1, 2, 9, 9, 3, 4, 7], 1),
        ([9, 2, 3, 4, 5], 0),
        ([3, 4, 5, 6, 7], 0),
    ):
        pool, cache = _pool(p)
        one = _begin(pool, _seq([1, 2, 3, 4, 5, 6, 7]))
        given = f"blocks of 2, [1 ... 7] are offered, {tokens} asks: find"
        ask = _seq(tokens, "b")
        expect(given, list(cache.find(ask)), one.block_ids[:count])
        expect(f"{given}, once more", list(cache.find(ask)), one.block_ids[:count])
        got = (ask.block_ids, ask.num_computed)
        expect(f"{given}: its own block_ids and num_computed", got, ([], 0))
    for size in (1, 2, 3, 5):
        pool, cache = _pool(p, 32, size)
        one = _begin(pool, _seq(range(30)))
        for length in (1, 5, 11, 16, 30, 31):
            given = f"blocks of {size}, 30 tokens are offered, {length} ask: find"
            wanted = one.block_ids[: min(30, length - 1) // size]
            expect(given, list(cache.find(_seq(range(length), "b"))), wanted)


@_SUITE.property("PrefixCache", hint="will there be anything in the block?")
def _nothing_early(p: SimpleNamespace) -> None:
    """Nothing is found before it is offered, nor a block that is half full."""
    pool, cache = _pool(p)
    one, two = _seq(range(5)), _seq(range(6), "b")
    pool.place(one, 5)
    expect("5 tokens have room, none is offered: find", list(cache.find(two)), [])
    pool.release(one)
    expect("... and are released like that: find", list(cache.find(two)), [])
    _books(pool, "released before anything was offered")
    for end, count in ((1, 0), (2, 1), (3, 1), (5, 2)):
        pool, cache = _pool(p)  # at once: offered in pieces it is another property's
        pool.place(one := _seq(range(5)), 5)
        pool.offer(one, end)
        given = f"blocks of 2, {end} of 5 tokens are offered: find"
        expect(given, list(cache.find(two)), one.block_ids[:count])


@_SUITE.property("PrefixCache", hint="which row of the logits gives the next token?")
def _one_left(p: SimpleNamespace) -> None:
    """Even a prompt that is there completely keeps one token to compute."""
    for length in (1, 2, 3, 4, 5):
        pool, cache = _pool(p)
        _begin(pool, _seq(range(5)))
        given = f"blocks of 2, tokens 0 to 4 are there, {length} of them ask: hits"
        got = len(cache.find(_seq(range(length), "b")))
        expect(given, got, (length - 1) // 2)


@_SUITE.property("PrefixCache", hint="same tokens, but after what?")
def _past(p: SimpleNamespace) -> None:
    """A block is a hit only after the same beginning: keys depend on all before."""
    pool, cache = _pool(p)
    _begin(pool, _seq([1, 2, 3, 4, 5]))
    two = _seq([7, 8, 3, 4, 5], "b")
    expect("[1 2 3 4 5] offered, [7 8 3 4 5] asks: find", list(cache.find(two)), [])
    _begin(pool, two)
    got = list(cache.find(_seq([7, 8, 3, 4, 9], "c")))
    expect("... [7 8 3 4 5] too, [7 8 3 4 9] asks: find", got, two.block_ids[:2])


@_SUITE.property("PrefixCache", hint="the salt is the parent of the first block")
def _salts(p: SimpleNamespace) -> None:
    """Sequences share only if they have the same cache_salt, or if both have none."""
    for mine, other in (
        (b"", b"s"),
        (b"s", b""),
        (b"s", b"t"),
        (b"customer 7", b"customer 8"),
    ):
        pool, cache = _pool(p)
        one = _begin(pool, _seq(range(5), "a", mine))
        given = f"5 tokens are offered with salt {mine!r}, and asked for with"
        got = list(cache.find(_seq(range(5), "b", other)))
        expect(f"{given} {other!r}: find", got, [])
        got = list(cache.find(_seq(range(5), "c", mine)))
        expect(f"{given} {mine!r}: find", got, one.block_ids[:2])


@_SUITE.property("PrefixCache", hint="whose name is the parent of the next block?")
def _pieces(p: SimpleNamespace) -> None:
    """Offered in pieces, a prompt is found as if it had been offered at once."""
    for ends in ((4, 5), (2, 4, 5), (1, 2, 3, 4, 5), (3, 5), (1, 5), (1, 4, 5)):
        pool, cache = _pool(p)
        one = _begin(pool, _seq(range(5)), ends[0])
        for end in ends[1:]:
            _go(pool, one, end)
        given = f"blocks of 2, 5 tokens in steps that end at {ends}: find"
        expect(given, list(cache.find(_seq(range(5), "b"))), one.block_ids[:2])
    pool, cache = _pool(p)
    one = _begin(pool, _seq(range(3)))
    for token in (3, 4):
        one.add_token_id(token)
        _go(pool, one, one.get_len())
    got = list(cache.find(_seq(range(5), "b")))
    expect("3 tokens of a prompt, 2 generated: find", got, one.block_ids[:2])
    again = _seq(range(3), "c")  # as one that was preempted: it comes back as it was
    again.add_token_id(3)
    again.add_token_id(4)
    given = "a prompt of 3 and 2 generated are offered, the same 3 and 2 ask"
    expect(f"{given}: find", list(cache.find(again)), one.block_ids[:2])


@_SUITE.property(
    "PrefixCache", hint="a hit is named already; where does the rest begin?"
)
def _goes_on(p: SimpleNamespace) -> None:
    """A sequence that begins with hits offers what it fills behind them as well."""
    pool, cache = _pool(p)
    _begin(pool, _seq([1, 2, 3]))
    two = _begin(pool, _seq([1, 2, 3, 4, 5, 6, 7], "b"))
    got = list(cache.find(_seq([1, 2, 3, 4, 5, 6, 9], "c")))
    expect("[1 2] is hit, [3 ... 7] are computed: find", got, two.block_ids[:3])


@_SUITE.property("PrefixCache", hint="a digest is evidence, not proof")
def _collisions(p: SimpleNamespace) -> None:
    """Two blocks with one digest are told apart by their tokens and their parent."""
    verbs = (p.PrefixCache.find, p.PrefixCache.offer)
    known = [getattr(verb, "__globals__", {}) for verb in verbs]
    known = [names for names in known if "name_block" in names]
    known = known or [{"name_block": p.name_block}]
    before = [names["name_block"] for names in known]
    right = before[0]

    def all_the_same(parent: bytes, tokens: Iterable[int]) -> Any:
        return replace(right(parent, tuple(tokens)), digest=b"same")

    def without_a_past(parent: bytes, tokens: Iterable[int]) -> Any:
        tokens = tuple(tokens)
        return replace(right(parent, tokens), digest=bytes(tokens))

    try:
        for what, name_block, first, second in (
            ("tokens", all_the_same, [1, 2, 3], [7, 8, 3]),
            (
                "the second block, whatever came before",
                without_a_past,
                [1, 2, 3, 4, 5],
                [7, 8, 3, 4, 5],
            ),
        ):
            for names in known:
                names["name_block"] = name_block
            pool, cache = _pool(p)
            one = _begin(pool, _seq(first))
            given = f"every digest is the same for {what}: {first} is offered"
            got = len(cache.find(_seq(first, "b")))
            expect(f"{given}, {first} asks: hits at least 1", got >= 1, True)
            two = _seq(second, "b")
            expect(f"{given}, {second} asks: find", list(cache.find(two)), [])
            _begin(pool, two)
            strange = set(cache.find(_seq(second, "c"))) & set(one.block_ids)
            given = f"{given}, {second} too, {second} asks: blocks of the first"
            expect(given, sorted(strange), [])
    finally:
        for names, name_block in zip(known, before, strict=True):
            names["name_block"] = name_block


# ----- blocks that nobody holds


@_SUITE.property("PrefixCache", hint="nobody needs the room yet")
def _kept(p: SimpleNamespace) -> None:
    """Blocks that came back are free for who needs them, and found until then."""
    pool, cache = _pool(p, 4)
    one = _begin(pool, _seq(range(5)))
    blocks = one.block_ids[:2]
    pool.release(one)
    given = "4 blocks of 2, 5 tokens are offered and released"
    expect(f"{given}: len", len(cache), 4)
    expect(f"{given}: find", list(cache.find(_seq(range(5), "b"))), blocks)
    _books(pool, given)
    taken = sorted(cache.take() for _ in range(4))
    expect(f"{given}, take, four times", taken, [0, 1, 2, 3])
    expect(f"{given}, take, four times: len", len(cache), 0)


@_SUITE.property("PrefixCache", hint="what if somebody takes it the next moment?")
def _claimed(p: SimpleNamespace) -> None:
    """A block that is claimed is free no more, and is found all the same."""
    pool, cache = _pool(p, 4)
    one = _begin(pool, _seq(range(3)))
    block_id = one.block_ids[0]
    pool.release(one)
    cache.claim(block_id)
    given = "4 blocks of 2, one is kept and claimed"
    expect(f"{given}: len", len(cache), 3)
    expect(f"{given}: find", list(cache.find(_seq(range(3), "b"))), [block_id])
    taken = [cache.take() for _ in range(3)]
    expect(f"{given}, take, three times: it is among them", block_id in taken, False)


@_SUITE.property("PrefixCache", hint="there are two kinds of free; which goes first?")
def _free_first(p: SimpleNamespace) -> None:
    """No kept block is given up while one is free that nothing can find."""
    pool, cache = _pool(p, 5)
    pool.release(_begin(pool, _seq(range(5))))  # 2 are kept, 3 hold nothing
    for count in (1, 2, 3):
        cache.take()
        got = len(cache.find(_seq(range(5), "c")))
        expect(f"2 of 5 blocks are kept, {count} are taken: hits", got, 2)


@_SUITE.property("PrefixCache", hint="who still has the number of the block?")
def _entries_vanish(p: SimpleNamespace) -> None:
    """A block that was given up is found no more, whatever becomes of it."""
    pool, cache = _pool(p, 2)
    pool.release(_begin(pool, _seq(range(3))))
    other = _seq(range(50, 53), "b")
    pool.place(other, 3)
    given = "2 blocks of 2, 3 tokens are released, another takes both blocks"
    ask = _seq(range(3), "c")
    expect(f"{given}: find", list(cache.find(ask)), [])
    _books(pool, given)
    pool.offer(other, 3)
    expect(f"{given} and offers: find", list(cache.find(ask)), [])
    pool.release(other)
    expect(f"{given}, offers, is released: find", list(cache.find(ask)), [])
    got = len(cache.find(_seq(range(50, 53), "d")))
    expect(f"{given}, offers, is released: hits of the other", got, 1)
    _books(pool, f"{given}, offers, is released")


@_SUITE.property("PrefixCache", hint="a hit is a use")
def _longest_unused(p: SimpleNamespace) -> None:
    """What was used longest ago is given up first."""

    def hits(cache: Any, *begins: int) -> list[int]:
        return [len(cache.find(_seq(range(i, i + 5), "m"))) for i in begins]

    pool, cache = _pool(p, 6)
    for seq in [_begin(pool, _seq(range(i, i + 5), f"s{i}")) for i in (0, 10)]:
        pool.release(seq)
    given = "6 blocks of 2, two prompts of 5, released in order"
    for count, wanted in enumerate(([2, 2], [2, 2], [1, 2], [0, 2], [0, 1], [0, 0]), 1):
        cache.take()
        expect(
            f"{given}, take, {count} times: hits of each", hits(cache, 0, 10), wanted
        )
    pool, cache = _pool(p, 6)
    for seq in [_begin(pool, _seq(range(i, i + 5), f"s{i}")) for i in (0, 10)]:
        pool.release(seq)
    again = _seq(range(5), "d")
    pool.place(again, 4)
    pool.release(again)
    for _ in range(4):
        cache.take()
    what = f"{given}, the first is hit and released, take, 4 times: hits of each"
    expect(what, hits(cache, 0, 10), [2, 0])


@_SUITE.property("PrefixCache", hint="one digest, two blocks: which one is found?")
def _duplicates(p: SimpleNamespace) -> None:
    """Of two who offer the same at the same time one is found, and none is lost."""
    for first in (0, 1):
        pool, cache = _pool(p, 4)
        seqs = [_seq(range(3)), _seq(range(3), "b")]
        for seq in seqs:  # both begin before either offers
            pool.place(seq, 3)
        for seq in seqs:
            pool.offer(seq, 3)
            seq.num_computed = 3
        three, offered = _seq(range(3), "c"), seqs[0].block_ids[:1]
        given = "the same 3 tokens, twice in one step"
        _books(pool, given)
        expect(f"{given}: find", list(cache.find(three)), offered)
        pool.release(seqs[first])
        given += f", number {first + 1} is released"
        expect(f"{given}: len", len(cache), 2)
        expect(f"{given}: find", list(cache.find(three)), offered)
        _books(pool, given)
        pool.release(seqs[1 - first])
        given += ", then the other"
        expect(f"{given}: len", len(cache), 4)
        expect(f"{given}: find", list(cache.find(three)), offered)
        _books(pool, given)

    pool, cache = _pool(p)
    one, two = _seq(range(3)), _seq(range(7), "b")
    for seq, end in ((one, 3), (two, 5)):
        pool.place(seq, end)
    for seq, end in ((one, 3), (two, 5)):
        pool.offer(seq, end)
        seq.num_computed = end
    given = "[0 1 2] and [0 ... 4] are offered in one step, [0 ... 6] asks"
    wanted = [one.block_ids[0], two.block_ids[1]]
    expect(f"{given}: find", list(cache.find(_seq(range(7), "c"))), wanted)
    _go(pool, two, 7)
    wanted.append(two.block_ids[2])
    given = "... the second goes on to [0 ... 6], [0 ... 7] asks"
    expect(f"{given}: find", list(cache.find(_seq(range(8), "c"))), wanted)


@_SUITE.property("PrefixCache", hint="whose name is it that you delete?")
def _twin_given_up(p: SimpleNamespace) -> None:
    """A twin that nothing finds is given up or withdrawn, and the first stays found."""
    for what in ("withdrawn", "released and taken by another"):
        pool, cache = _pool(p, 4)
        seqs = [_seq(range(3)), _seq(range(3), "b")]
        for seq in seqs:
            pool.place(seq, 3)
        for seq in seqs:
            pool.offer(seq, 3)
        offered = seqs[0].block_ids[:1]
        if what == "withdrawn":
            cache.withdraw(seqs[1].block_ids)
        else:
            pool.release(seqs[1])
            cache.take()
            cache.take()
        given = f"the same 3 tokens twice; those that nothing finds are {what}: find"
        expect(given, list(cache.find(_seq(range(3), "c"))), offered)
        if what == "withdrawn":
            _books(pool, given)


@_SUITE.property("PrefixCache", hint="to be found and to be held are two things")
def _withdrawn(p: SimpleNamespace) -> None:
    """What is withdrawn is found no more, not even when it comes back."""
    pool, cache = _pool(p, 4)
    one = _begin(pool, _seq(range(5)))
    two = _begin(pool, _seq(range(5), "b"))
    given = "2 blocks that two hold are withdrawn"
    cache.withdraw(one.block_ids)
    expect(f"{given}: find", list(cache.find(_seq(range(5), "c"))), [])
    expect(f"{given}: len", len(cache), 0)
    _books(pool, given)
    pool.release(one)
    pool.release(two)
    given += ", then both are released"
    expect(f"{given}: len", len(cache), 4)
    expect(f"{given}: find", list(cache.find(_seq(range(5), "c"))), [])
    _books(pool, given)
    three = _begin(pool, _seq(range(3), "d"))
    given += ", and the first 3 tokens are offered anew"
    got = list(cache.find(_seq(range(5), "e")))
    expect(f"{given}: find", got, three.block_ids[:1])
    pool, cache = _pool(p, 4)
    one = _begin(pool, _seq(range(5)))
    cache.withdraw(one.block_ids[1:])
    got = list(cache.find(_seq(range(5), "c")))
    expect("the second of two blocks is withdrawn: find", got, one.block_ids[:1])
    pool.release(one)
    expect(
        "... and released: take, four times", len({cache.take() for _ in range(4)}), 4
    )

    pool, cache = _pool(p)
    one, two = _seq(range(3)), _seq(range(5), "b")
    for seq in (one, two):
        pool.place(seq, seq.get_len())
    for seq in (one, two):
        pool.offer(seq, seq.get_len())
    cache.withdraw(two.block_ids)
    given = "[0 1 2] and [0 ... 4] are offered in one step, the second is withdrawn"
    got = list(cache.find(_seq(range(5), "c")))
    expect(f"{given}: find", got, one.block_ids[:1])


@_SUITE.property("PrefixCache", hint="the failed step said that it would write there")
def _offered_anew(p: SimpleNamespace) -> None:
    """A block that was withdrawn and is taken again is what its new holder says."""
    pool, cache = _pool(p, 2)
    one = _begin(pool, _seq(range(3)))
    cache.withdraw(one.block_ids)
    pool.release(one)
    two = _begin(pool, _seq(range(50, 53), "b"))
    given = "2 blocks, 3 tokens withdrawn and released, 3 others are offered"
    expect(f"{given}, the first ask: find", list(cache.find(_seq(range(3), "c"))), [])
    got = list(cache.find(_seq(range(50, 53), "d")))
    expect(f"{given}, the others ask: find", got, two.block_ids[:1])


@_SUITE.property("PrefixCache", hint="begin again")
def _cleared(p: SimpleNamespace) -> None:
    """clear() makes all of them free, and nothing is found."""
    pool, cache = _pool(p, 4)
    pool.release(_begin(pool, _seq(range(3))))
    _begin(pool, _seq(range(10, 13), "b"))
    cache.clear()
    given = "one block is kept, two are held, clear()"
    expect(f"{given}: len", len(cache), 4)
    for first in (0, 10):
        got = list(cache.find(_seq(range(first, first + 3), "c")))
        expect(f"{given}: find", got, [])
    expect(f"{given}: take, four times", len({cache.take() for _ in range(4)}), 4)


@_SUITE.property("PrefixCache", hint="count it all again, and compare")
def _integrity(p: SimpleNamespace) -> None:
    """check_integrity(held) is an AssertionError unless these make a pool with it."""
    pool, cache = _pool(p, 6)
    one = _begin(pool, _seq(range(5)))
    pool.release(_begin(pool, _seq(range(10, 13), "b")))
    given = "6 blocks, 3 are held, 1 is kept: check_integrity of the held"
    held = set(one.block_ids)
    try:
        cache.check_integrity(held)
    except AssertionError as error:
        fail(given, f"AssertionError: {error}", "no error")
    (kept,) = cache.find(_seq(range(10, 13), "c"))
    for what, wrong in (
        ("all but one", set(one.block_ids[1:])),
        ("all and a kept one", held | {kept}),
        ("all and a free one", held | (set(range(6)) - held - {kept})),
        ("none", set()),
    ):
        expect_error(
            f"{given}, {what}",
            lambda wrong=wrong: cache.check_integrity(wrong),
            AssertionError,
        )


@_SUITE.property("PrefixCache", hint="which of the calls above changed the block?")
def _true_hits(p: SimpleNamespace) -> None:
    """Whatever happens, what is found holds exactly the tokens that are asked for."""
    for length in (4, 8, 16, 32):
        for seed in range(12):
            calls: list[str] = []
            with on(lambda: f"5 blocks of 2: {'; '.join(calls)}"):  # noqa: B023
                _play(p, length, seed, calls)


def _play(p: SimpleNamespace, length: int, seed: int, calls: list[str]) -> None:
    """Some random calls of a pool of 5 blocks, noted; what is found, after each."""
    rng = random.Random(seed)
    pool, cache = _pool(p, 5)
    there: list[Sequence] = []
    stored: dict[int, tuple] = {}  # block -> (salt, all tokens up to its end)
    for number in range(length):
        seq = rng.choice(there) if there else None
        kind = rng.choice(["begin", "begin", "go", "release", "fail"])
        if kind == "begin":
            tokens = [rng.choice([1, 2]) for _ in range(rng.randint(1, 6))]
            new = _seq(tokens, f"s{number}", rng.choice([b"", b"", b"x"]))
            calls.append(f"{new.seq_id} begins: {tokens}, salt {new.cache_salt!r}")
            if not pool.place(new, len(tokens)):
                continue
            there.append(seq := new)
        elif seq is None:
            continue
        elif kind == "go":
            calls.append(f"{seq.seq_id} goes on")
            if not pool.grow(seq, seq.get_len() + 1):
                continue
            seq.add_token_id(rng.choice([1, 2]))
        elif kind == "fail":
            calls.append(f"{seq.seq_id} is withdrawn")
            pool.withdraw(seq)
        if kind in ("release", "fail"):
            calls.append(f"{seq.seq_id} is released")
            pool.release(seq)
            there.remove(seq)
        else:
            end = seq.get_len()
            pool.offer(seq, end)
            tokens = tuple(seq.get_token_ids())
            for i in range(seq.num_computed // 2, len(seq.block_ids)):
                stored[seq.block_ids[i]] = (seq.cache_salt, tokens[: 2 * i + 2])
            seq.num_computed = end
        given = f"5 blocks of 2: {'; '.join(calls)}"
        _true(cache, stored, given)
        _books(pool, given)


def _true(cache: Any, stored: dict, given: str) -> None:
    """Fail unless each hit of all prompts of 5 holds what it should."""
    for salt in (b"", b"x"):
        for number in range(16):
            tokens = [1 + (number >> i & 1) for i in range(4)] + [1]
            for i, block_id in enumerate(cache.find(_seq(tokens, "ask", salt))):
                what = f"{given}: {tokens} with salt {salt!r} finds block {block_id}"
                wanted = (salt, tuple(tokens[: 2 * i + 2]))
                expect(f"{what}, which holds", stored.get(block_id), wanted)
