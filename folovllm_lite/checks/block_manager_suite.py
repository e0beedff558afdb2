"""What has to be true of the pool of blocks, whoever wrote it."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from folovllm_lite import block_manager as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams

_SUITE = Suite(package)


def block_manager(pieces: Any = None, /, **named: Any) -> None:
    """Judge BlockManager and chain of `folovllm_lite.block_manager`, or one of them.

    `checks.block_manager(BlockManager=Mine)` judges one class,
    `checks.block_manager(module)` all of a module. Raises CheckFailed at the end if a
    property doesn't hold.
    """
    _SUITE.run(pieces, **named)


def _seq(tokens: Iterable[int], name: str = "a", salt: bytes = b"") -> Sequence:
    """A waiting sequence of these tokens."""
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams(), cache_salt=salt)


def _compute(pool: Any, seq: Sequence, end: int | None = None) -> list:
    """One step of `seq`: room, the tokens up to `end`, and the books; the copies."""
    end, start = seq.get_len() if end is None else end, seq.num_computed
    copies = pool.grow(seq, end)
    seq.num_computed = end
    pool.commit(seq, start, end)
    return copies


def _begin(pool: Any, seq: Sequence) -> list[int]:
    """Admit `seq` with whatever is there, and compute the rest; its hits."""
    hits = pool.match(seq)
    pool.adopt(seq, hits)
    _compute(pool, seq)
    return hits


def _fork(pool: Any, parent: Sequence, name: str) -> Sequence:
    child = parent.fork(name)
    pool.fork(parent, child)
    return child


def _counts(pool: Any, seq: Sequence) -> list[int]:
    """How often each block of the table is held."""
    return [pool.blocks[i].ref_count for i in seq.block_ids]


def _state(pool: Any, *seqs: Sequence) -> tuple:
    """What a refused call must leave as it was."""
    counts = [block.ref_count for block in pool.blocks]
    return pool.num_free, counts, [list(seq.block_ids) for seq in seqs]


def _books(pool: Any, given: str) -> None:
    """Fail if the pool says of itself that something is wrong."""
    try:
        pool.check_integrity()
    except AssertionError as error:
        fail(f"{given}: check_integrity()", f"AssertionError: {error}", "no error")


def _refused(given: str, call: Callable, pool: Any, seqs: list, *words: str) -> None:
    """Fail unless `call` is a ValueError with `words` that changes nothing."""
    before = _state(pool, *seqs)
    expect_error(given, call, ValueError, *words)
    what = "num_free, reference counts and tables"
    expect(f"{given}, refused: {what}", _state(pool, *seqs), before)
    _books(pool, f"{given}, refused")


# ----- names of blocks


@_SUITE.property("chain", hint="what decides whether two blocks hold the same numbers?")
def _digests(p: SimpleNamespace) -> None:
    """Blocks have one digest exactly if their tokens and their past are the same."""
    one = p.chain(b"", (1, 23))
    expect("chain(b'', (1, 23)), twice: the same", p.chain(b"", (1, 23)), one)
    big = 1 << 16
    for parent, tokens in (
        (b"", (1, 24)),
        (b"", (23, 1)),
        (b"", (12, 3)),
        (b"", (1 + big, 23)),
        (b"x", (1, 23)),
        (one, (1, 23)),
    ):
        same = p.chain(parent, tokens) == one
        given = f"chain({parent[:8]!r}, {tokens}) and chain(b'', (1, 23))"
        expect(f"{given}: the same", same, False)


@_SUITE.property(
    "chain", hint="hash() of numbers is made for speed; who else is there?"
)
def _long_digests(p: SimpleNamespace) -> None:
    """A digest is at least 16 bytes, which nobody makes collide on purpose."""
    digest = p.chain(b"", (1, 2))
    expect("chain(b'', (1, 2)): its type", type(digest).__name__, "bytes")
    if len(digest) < 16:
        fail("chain(b'', (1, 2))", f"{len(digest)} bytes", "16 bytes or more")


# ----- holding


@_SUITE.property("BlockManager", hint="every block is free before anybody asks")
def _fresh(p: SimpleNamespace) -> None:
    """A new pool has all of its blocks free, and a pool of nothing is refused."""
    for count in (1, 3):
        pool = p.BlockManager(count, 2)
        expect(f"{count} blocks of 2 tokens: num_free", pool.num_free, count)
        _books(pool, f"{count} blocks of 2 tokens")
    for count, size in ((0, 2), (3, 0), (-1, 2)):
        expect_error(
            f"BlockManager({count}, {size})",
            lambda c=count, s=size: p.BlockManager(c, s),
            ValueError,
            str(count),
            str(size),
        )


@_SUITE.property("BlockManager", hint="a block that is begun counts as a whole one")
def _blocks_for(p: SimpleNamespace) -> None:
    """blocks_for rounds up."""
    pool = p.BlockManager(8, 4)
    for tokens, wanted in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
        given = f"blocks of 4 tokens: blocks_for({tokens})"
        expect(given, pool.blocks_for(tokens), wanted)


@_SUITE.property("BlockManager", hint="what is there already needn't be given again")
def _grow(p: SimpleNamespace) -> None:
    """A sequence grows by the blocks that are missing, and keeps those it has."""
    pool, seq = p.BlockManager(4, 2), _seq(range(7))
    before: list[int] = []
    for end, blocks in ((1, 1), (2, 1), (3, 2), (7, 4)):
        given = f"4 blocks of 2 tokens, grow to {end} tokens"
        expect(f"{given}: copies", _compute(pool, seq, end), [])
        expect(f"{given}: number of blocks", len(seq.block_ids), blocks)
        expect(f"{given}: those before", seq.block_ids[: len(before)], before)
        expect(f"{given}: num_free", pool.num_free, 4 - blocks)
        expect(f"{given}: reference counts", _counts(pool, seq), [1] * blocks)
        _books(pool, given)
        before = list(seq.block_ids)


@_SUITE.property("BlockManager", hint="who may write to a block that two tables name?")
def _distinct(p: SimpleNamespace) -> None:
    """Two sequences that know nothing of each other never get the same block."""
    for caching in (False, True):
        pool = p.BlockManager(6, 2, caching)
        one, two = _seq([1, 2, 3], "a"), _seq([4, 5, 6], "b")
        for end in (1, 3):
            _compute(pool, one, end)
            _compute(pool, two, end)
            common = set(one.block_ids) & set(two.block_ids)
            given = f"two sequences grow to {end} tokens: blocks of both"
            expect(given, sorted(common), [])


@_SUITE.property("BlockManager", hint="look first, then take")
def _too_few(p: SimpleNamespace) -> None:
    """What doesn't fit is a ValueError with the numbers, and changes nothing."""
    pool, one, two = p.BlockManager(3, 2), _seq(range(9)), _seq(range(9), "b")
    expect("3 free blocks of 2: can_grow to 6", pool.can_grow(one, 6), True)
    expect("3 free blocks of 2: can_grow to 7", pool.can_grow(one, 7), False)
    _refused(
        "3 free blocks of 2, grow to 7",
        lambda: pool.grow(one, 7),
        pool,
        [one],
        "4",
        "3",
    )
    _compute(pool, one, 2)
    _compute(pool, two, 2)
    expect("1 free block, 1 held: can_grow to 4", pool.can_grow(one, 4), True)
    expect("1 free block, 1 held: can_grow to 5", pool.can_grow(one, 5), False)
    _refused(
        "1 free block of 2, 1 held, grow to 5",
        lambda: pool.grow(one, 5),
        pool,
        [one, two],
        "3",
        "1",
    )


@_SUITE.property("BlockManager", hint="what does the table look like the second time?")
def _release(p: SimpleNamespace) -> None:
    """What is released is free again, and releasing what holds nothing is fine."""
    pool, seq = p.BlockManager(3, 2), _seq(range(5))
    pool.release(seq)
    expect("release of a sequence that never began: num_free", pool.num_free, 3)
    for what in ("release", "a second release"):
        if what == "release":
            _compute(pool, seq)
        pool.release(seq)
        given = f"3 blocks held, {what}"
        expect(f"{given}: num_free", pool.num_free, 3)
        expect(f"{given}: block_ids", seq.block_ids, [])
        counts = [block.ref_count for block in pool.blocks]
        expect(f"{given}: reference counts", counts, [0, 0, 0])
        _books(pool, given)


@_SUITE.property("BlockManager", hint="count holders, and move nothing")
def _sharing(p: SimpleNamespace) -> None:
    """A fork holds its parent's blocks: no new ones, and each counts one more."""
    pool, parent = p.BlockManager(2, 2), _seq(range(3))
    _compute(pool, parent)
    for count, name in enumerate(("a-1", "a-2"), start=2):
        child = _fork(pool, parent, name)
        given = f"2 blocks, {count - 1} forks"
        expect(f"{given}: blocks of the fork", child.block_ids, parent.block_ids)
        expect(f"{given}: num_free", pool.num_free, 0)
        expect(f"{given}: reference counts", _counts(pool, parent), [count] * 2)
        same = child.block_ids is parent.block_ids
        expect(f"{given}: both have one list", same, False)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="free means that nobody is left")
def _last_holder(p: SimpleNamespace) -> None:
    """A shared block is free when its last holder lets go, whoever that is."""
    for order in ((0, 1), (1, 0)):
        pool, parent = p.BlockManager(3, 2), _seq(range(3))
        _compute(pool, parent)
        both = (parent, _fork(pool, parent, "a-1"))
        given = f"2 of 3 blocks shared, {('parent', 'fork')[order[0]]} is released"
        pool.release(both[order[0]])
        expect(f"{given}: num_free", pool.num_free, 1)
        expect(f"{given}: the other's", _counts(pool, both[order[1]]), [1, 1])
        _books(pool, given)
        pool.release(both[order[1]])
        expect(f"{given}, then the other: num_free", pool.num_free, 3)
        _books(pool, given)


# ----- copy-on-write


@_SUITE.property("BlockManager", hint="which block does the next token go to?")
def _copy_on_write(p: SimpleNamespace) -> None:
    """Who writes to a shared block gets a copy of it; the others keep the original."""
    for tokens in (1, 3):
        for writer in ("fork", "parent"):
            pool, parent = p.BlockManager(4, 2), _seq(range(tokens))
            _compute(pool, parent)
            child = _fork(pool, parent, "a-1")
            seqs = {"fork": child, "parent": parent}
            one = seqs.pop(writer)
            (other,) = seqs.values()
            old = list(other.block_ids)
            one.add_token_id(9)
            copies = _compute(pool, one)
            given = f"{tokens} tokens in blocks of 2, a fork, the {writer} writes"
            expect(f"{given}: the other's blocks", other.block_ids, old)
            moves = [(old[-1], one.block_ids[-1])]
            expect(f"{given}: copies", [tuple(move) for move in copies], moves)
            expect(f"{given}: its block is new", one.block_ids[-1] in old, False)
            expect(f"{given}: those before", one.block_ids[:-1], old[:-1])
            expect(f"{given}: counts", _counts(pool, one)[-1:], [1])
            expect(f"{given}: the other's", _counts(pool, other)[-1:], [1])
            _books(pool, given)


@_SUITE.property("BlockManager", hint="what would the copy be good for?")
def _last_writer(p: SimpleNamespace) -> None:
    """The last of the holders writes in place: N sequences need N - 1 copies."""
    for forks in (0, 1, 3):
        pool, parent = p.BlockManager(6, 2), _seq(range(1))
        _compute(pool, parent)
        seqs = [parent, *(_fork(pool, parent, f"a-{i + 1}") for i in range(forks))]
        made = 0
        for seq in seqs:
            seq.add_token_id(9)
            made += len(_compute(pool, seq))
        given = f"half a block, {forks} forks, everybody writes"
        expect(f"{given}: copies", made, forks)
        expect(f"{given}: num_free", pool.num_free, 6 - 1 - forks)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="a full block is never written again")
def _full_blocks_stay(p: SimpleNamespace) -> None:
    """Full blocks stay shared, without a copy, while each goes on in its own."""
    pool, parent = p.BlockManager(4, 2), _seq(range(2))
    _compute(pool, parent)
    child = _fork(pool, parent, "a-1")
    for name, seq in (("fork", child), ("parent", parent)):
        seq.add_token_id(9)
        given = f"a full block of 2, a fork, the {name} goes on"
        expect(f"{given}: copies", _compute(pool, seq), [])
    given = "a full block of 2, a fork, both go on"
    expect(f"{given}: first blocks", child.block_ids[:1], parent.block_ids[:1])
    same = child.block_ids[1] == parent.block_ids[1]
    expect(f"{given}: second blocks are the same", same, False)
    expect(f"{given}: counts", _counts(pool, parent), [2, 1])
    _books(pool, given)


@_SUITE.property("BlockManager", hint="the copy needs a place of its own")
def _copies_need_room(p: SimpleNamespace) -> None:
    """A copy counts as a block: without a free one growing is refused."""
    pool, parent = p.BlockManager(1, 4), _seq(range(2))
    _compute(pool, parent)
    child = _fork(pool, parent, "a-1")
    for extra in (1, 2):  # more blocks than needed make no room for a copy
        given = "1 block, shared by two, none is free"
        if extra == 2:
            given = "3 blocks, shared by two who have computed half of the first"
            pool, parent = p.BlockManager(3, 4), _seq(range(12))
            pool.grow(parent, 12)
            parent.num_computed = 2
            child = _fork(pool, parent, "a-1")
        expect(f"{given}: can_grow to 3", pool.can_grow(child, 3), False)
        _refused(
            f"{given}, grow to 3",
            lambda b=pool, s=child: b.grow(s, 3),
            pool,
            [parent, child],
            "0",
        )
    pool.release(parent)
    given = "the same, and the parent is released"
    expect(f"{given}: can_grow to 3", pool.can_grow(child, 3), True)
    expect(f"{given}: copies", pool.grow(child, 3), [])


# ----- prefix caching


@_SUITE.property("BlockManager", hint="a question that can be answered in one line")
def _caching_off(p: SimpleNamespace) -> None:
    """Without enable_prefix_caching nothing is ever found."""
    pool = p.BlockManager(4, 2, False)
    one, two = _seq(range(5)), _seq(range(5), "b")
    _begin(pool, one)
    expect("the same 5 tokens again: match", pool.match(two), [])
    pool.release(one)
    expect("... after its release: match", pool.match(two), [])
    _books(pool, "caching off")


@_SUITE.property("BlockManager", hint="follow the chain until a link is missing")
def _hits(p: SimpleNamespace) -> None:
    """A prompt that begins alike gets the same blocks, as far as they reach."""
    for tokens, count in (
        ([1, 2, 3], 1),
        ([1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 4, 5, 6, 7, 8], 3),
        ([1, 2, 3, 9, 5, 6, 7], 1),
        ([1, 2, 9, 9, 3, 4, 7], 1),
        ([9, 2, 3, 4, 5], 0),
        ([3, 4, 5, 6, 7], 0),
    ):
        pool, one = p.BlockManager(8, 2, True), _seq([1, 2, 3, 4, 5, 6, 7])
        _begin(pool, one)
        got = pool.match(_seq(tokens, "b"))
        given = f"blocks of 2, [1 ... 7] computed, {tokens} asks: match"
        expect(given, got, one.block_ids[:count])


@_SUITE.property("BlockManager", hint="will there be anything in the block?")
def _nothing_early(p: SimpleNamespace) -> None:
    """Nothing is offered before it is committed, nor a block half full."""
    pool = p.BlockManager(8, 2, True)
    one, two = _seq(range(5)), _seq(range(6), "b")
    pool.adopt(one, [])
    pool.grow(one, 5)
    expect("5 tokens have room, none is committed: match", pool.match(two), [])
    pool.release(one)
    expect("... and are released like that: match", pool.match(two), [])
    _books(pool, "released before anything was committed")
    for end, count in ((1, 0), (2, 1), (3, 1), (5, 2)):
        _compute(pool, one, end)
        given = f"blocks of 2, {end} of 5 tokens committed: match"
        expect(given, pool.match(two), one.block_ids[:count])


@_SUITE.property("BlockManager", hint="which row of the logits gives the next token?")
def _one_left(p: SimpleNamespace) -> None:
    """Even a prompt that is there completely keeps one token to compute."""
    for length in (1, 2, 3, 4, 5):
        pool, one = p.BlockManager(8, 2, True), _seq(range(5))
        _begin(pool, one)
        pool.release(one)
        two = _seq(range(length), "b")
        pool.adopt(two, pool.match(two))
        given = f"blocks of 2, tokens 0 to 4 are there, a prompt of {length} of them"
        expect(f"{given}: num_computed", two.num_computed, (length - 1) // 2 * 2)


@_SUITE.property("BlockManager", hint="a hit is one more holder, and tokens computed")
def _adopt(p: SimpleNamespace) -> None:
    """Adopted blocks count one holder more, and their tokens as computed."""
    for released in (False, True):
        pool, one = p.BlockManager(8, 2, True), _seq(range(5))
        _begin(pool, one)
        blocks = one.block_ids[:2]
        if released:
            pool.release(one)
        two = _seq(range(5), "b")
        pool.adopt(two, pool.match(two))
        given = f"2 blocks hit that {'nobody holds' if released else 'another holds'}"
        expect(f"{given}: block_ids", two.block_ids, blocks)
        expect(f"{given}: num_computed", two.num_computed, 4)
        counts = [1, 1] if released else [2, 2]
        expect(f"{given}: reference counts", _counts(pool, two), counts)
        expect(f"{given}: num_free", pool.num_free, 6 if released else 5)
        _books(pool, given)
        asked = (pool.tokens_asked, pool.tokens_found)
        expect(f"{given}: tokens_asked, tokens_found", asked, (10, 4))


@_SUITE.property("BlockManager", hint="a kept block can't be a hit and room as well")
def _hits_take_room(p: SimpleNamespace) -> None:
    """Blocks that are hit and held by nobody are no room for the rest."""
    pool, one = p.BlockManager(3, 2, True), _seq(range(5))
    _begin(pool, one)
    pool.release(one)
    two = _seq(range(7), "b")
    hits = pool.match(two)
    given = "3 blocks of 2, 2 of them are hit"
    expect(f"{given}: number of hits", len(hits), 2)
    expect(f"{given}: can_grow to 6", pool.can_grow(two, 6, hits), True)
    expect(f"{given}: can_grow to 7", pool.can_grow(two, 7, hits), False)


@_SUITE.property("BlockManager", hint="a digest is evidence, not proof")
def _collisions(p: SimpleNamespace) -> None:
    """Two blocks with one digest are told apart by their tokens and their parent."""
    known = getattr(p.BlockManager.match, "__globals__", {})
    if "chain" not in known:
        known = {"chain": None}
    right = known["chain"]
    try:
        for what, chain, first, second in (
            ("tokens", lambda parent, tokens: b"same", [1, 2, 3], [7, 8, 3]),
            (
                "the second block, whatever came before",
                lambda parent, tokens: bytes(tokens),
                [1, 2, 3, 4, 5],
                [7, 8, 3, 4, 5],
            ),
        ):
            known["chain"] = chain
            pool, one = p.BlockManager(8, 2, True), _seq(first)
            _begin(pool, one)
            given = f"every digest is the same for {what}: {first} computed"
            got = len(pool.match(_seq(first, "b")))
            expect(f"{given}, {first} asks: hits at least 1", got >= 1, True)
            two = _seq(second, "b")
            expect(f"{given}, {second} asks: match", pool.match(two), [])
            _begin(pool, two)
            three = _seq(second, "c")
            strange = set(pool.match(three)) & set(one.block_ids)
            given = f"{given}, {second} too, {second} asks: blocks of the first"
            expect(given, sorted(strange), [])
            _books(pool, given)
    finally:
        known["chain"] = right


@_SUITE.property("BlockManager", hint="same tokens, but after what?")
def _past(p: SimpleNamespace) -> None:
    """A block is a hit only after the same beginning: keys depend on all before."""
    pool, one = p.BlockManager(8, 2, True), _seq([1, 2, 3, 4, 5])
    _begin(pool, one)
    two = _seq([7, 8, 3, 4, 5], "b")
    expect("[1 2 3 4 5] computed, [7 8 3 4 5] asks: match", pool.match(two), [])
    _begin(pool, two)
    three = _seq([7, 8, 3, 4, 9], "c")
    got = pool.match(three)
    expect("... [7 8 3 4 5] too, [7 8 3 4 9] asks: match", got, two.block_ids[:2])


@_SUITE.property("BlockManager", hint="the salt is the parent of the first block")
def _salts(p: SimpleNamespace) -> None:
    """Sequences share only with those of the same cache_salt; none is a salt too."""
    for mine, other in ((b"", b"s"), (b"s", b""), (b"s", b"t")):
        pool, one = p.BlockManager(8, 2, True), _seq(range(5), "a", mine)
        _begin(pool, one)
        given = f"5 tokens computed with salt {mine!r}, and asked for with"
        got = pool.match(_seq(range(5), "b", other))
        expect(f"{given} {other!r}: match", got, [])
        got = pool.match(_seq(range(5), "c", mine))
        expect(f"{given} {mine!r}: match", got, one.block_ids[:2])


@_SUITE.property("BlockManager", hint="one digest, two blocks: which one is offered?")
def _duplicates(p: SimpleNamespace) -> None:
    """Of two who compute the same at the same time one is offered, and none is lost."""
    for first in (0, 1):
        pool = p.BlockManager(4, 2, True)
        seqs = [_seq(range(3)), _seq(range(3), "b")]
        for seq in seqs:  # both are admitted before either is computed
            pool.adopt(seq, pool.match(seq))
            pool.grow(seq, 3)
        for seq in seqs:
            seq.num_computed = 3
            pool.commit(seq, 0, 3)
        three = _seq(range(3), "c")
        given = "the same 3 tokens, twice in one step"
        _books(pool, given)
        expect(f"{given}: match", pool.match(three), seqs[0].block_ids[:1])
        offered = seqs[0].block_ids[:1]
        pool.release(seqs[first])
        given += f", number {first + 1} is released"
        expect(f"{given}: num_free", pool.num_free, 2)
        expect(f"{given}: match", pool.match(three), offered)
        _books(pool, given)
        pool.release(seqs[1 - first])
        given += ", then the other"
        expect(f"{given}: num_free", pool.num_free, 4)
        expect(f"{given}: match", pool.match(three), offered)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="a step may begin and end inside a block")
def _pieces(p: SimpleNamespace) -> None:
    """Computed in pieces, a prompt is offered as if it had been computed at once."""
    for ends in ((4, 5), (2, 4, 5), (1, 2, 3, 4, 5), (3, 5), (1, 5), (1, 4, 5)):
        pool, one = p.BlockManager(8, 2, True), _seq(range(5))
        pool.adopt(one, [])
        for end in ends:
            _compute(pool, one, end)
        two = _seq(range(5), "b")
        given = f"blocks of 2, 5 tokens in steps that end at {ends}: match"
        expect(given, pool.match(two), one.block_ids[:2])
    pool, one = p.BlockManager(8, 2, True), _seq(range(3))
    _begin(pool, one)
    for token in (3, 4):
        one.add_token_id(token)
        _compute(pool, one)
    got = pool.match(_seq(range(5), "b"))
    expect("3 tokens of a prompt, 2 generated: match", got, one.block_ids[:2])


# ----- eviction


@_SUITE.property("BlockManager", hint="nobody needs the room yet")
def _kept(p: SimpleNamespace) -> None:
    """Released blocks are free for who needs them, and found until then."""
    pool, one = p.BlockManager(4, 2, True), _seq(range(5))
    _begin(pool, one)
    blocks = one.block_ids[:2]
    pool.release(one)
    given = "4 blocks of 2, 5 tokens computed and released"
    expect(f"{given}: num_free", pool.num_free, 4)
    expect(f"{given}: match", pool.match(_seq(range(5), "b")), blocks)
    big = _seq(range(50, 58), "b")
    expect(f"{given}: can_grow to 8", pool.can_grow(big, 8), True)
    pool.grow(big, 8)
    expect(f"{given}, 8 others grow: num_free", pool.num_free, 0)
    _books(pool, f"{given}, 8 others grow")


@_SUITE.property("BlockManager", hint="there are two kinds of free; which goes first?")
def _free_first(p: SimpleNamespace) -> None:
    """No kept block is given up while one is free that holds nothing."""
    pool, one = p.BlockManager(5, 2, True), _seq(range(5))
    _begin(pool, one)
    pool.release(one)  # 2 are kept, 3 hold nothing
    two = _seq(range(50, 56), "b")
    for end, count in ((2, 2), (4, 2), (6, 2)):
        pool.grow(two, end)
        got = len(pool.match(_seq(range(5), "c")))
        given = f"2 of 5 blocks are kept, another grows to {end // 2} blocks"
        expect(f"{given}: hits", got, count)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="a hit is a use; an end of a prompt helps fewer")
def _lru(p: SimpleNamespace) -> None:
    """What was used longest ago is given up first, of one prompt the end first."""

    def found(pool: Any, *begins: int) -> list[int]:
        return [len(pool.match(_seq(range(i, i + 5), "m"))) for i in begins]

    pool = p.BlockManager(6, 2, True)
    one, two = _seq(range(5)), _seq(range(10, 15), "b")
    _begin(pool, one)
    _begin(pool, two)
    pool.release(one)
    pool.release(two)
    other = _seq(range(50, 62), "c")
    given = "6 blocks of 2, two prompts of 5, released in order"
    for blocks, wanted in ((3, [1, 2]), (4, [0, 2]), (5, [0, 1]), (6, [0, 0])):
        pool.grow(other, 2 * blocks)
        what = f"{given}, another takes {blocks} blocks: hits of each"
        expect(what, found(pool, 0, 10), wanted)
        _books(pool, what)

    pool = p.BlockManager(6, 2, True)
    one, two = _seq(range(5)), _seq(range(10, 15), "b")
    for seq in (one, two):
        _begin(pool, seq)
    for seq in (one, two):
        pool.release(seq)
    again = _seq(range(5), "d")
    pool.adopt(again, pool.match(again))
    pool.release(again)
    pool.grow(other := _seq(range(50, 62), "e"), 8)
    what = f"{given}, the first is hit and released, another takes 4: hits of each"
    expect(what, found(pool, 0, 10), [2, 0])
    _books(pool, what)
    pool.release(other)


@_SUITE.property("BlockManager", hint="who still has the number of the block?")
def _entries_vanish(p: SimpleNamespace) -> None:
    """A block that was given up is found no more, whatever becomes of it."""
    pool, one = p.BlockManager(2, 2, True), _seq(range(3))
    _begin(pool, one)
    pool.release(one)
    other = _seq(range(50, 53), "b")
    pool.grow(other, 3)
    given = "2 blocks of 2, 3 tokens released, another takes both blocks"
    ask = _seq(range(3), "c")
    expect(f"{given}: match", pool.match(ask), [])
    _books(pool, given)
    other.num_computed = 3
    pool.commit(other, 0, 3)
    expect(f"{given} and computes: match", pool.match(ask), [])
    pool.release(other)
    expect(f"{given}, computes, is released: match", pool.match(ask), [])
    got = len(pool.match(_seq(range(50, 53), "d")))
    expect(f"{given}, computes, is released: hits of the other", got, 1)
    _books(pool, f"{given}, computes, is released")


@_SUITE.property("BlockManager", hint="to be found and to be held are two things")
def _withdrawn(p: SimpleNamespace) -> None:
    """Withdrawn blocks are found no more; who holds them still does, until released."""
    pool, one = p.BlockManager(4, 2, True), _seq(range(5))
    _begin(pool, one)
    two = _seq(range(5), "b")
    pool.adopt(two, pool.match(two))
    held, given = list(one.block_ids), "2 blocks that two hold are withdrawn"
    pool.withdraw(one)
    expect(f"{given}: match", pool.match(_seq(range(5), "c")), [])
    expect(f"{given}: the holder's blocks", one.block_ids, held)
    expect(f"{given}: reference counts", _counts(pool, one), [2, 2, 1])
    _books(pool, given)
    pool.release(one)
    pool.release(two)
    given += ", then both are released"
    expect(f"{given}: num_free", pool.num_free, 4)
    expect(f"{given}: match", pool.match(_seq(range(5), "c")), [])
    _books(pool, given)


# ----- swapping


@_SUITE.property("BlockManager", hint="two pools, and each has its own free blocks")
def _swap(p: SimpleNamespace) -> None:
    """A sequence goes to CPU memory and comes back, block by block and in order."""
    pool, seq = p.BlockManager(4, 2, num_swap_blocks=3), _seq(range(5))
    _compute(pool, seq)
    old = list(seq.block_ids)
    expect("3 blocks, 3 of CPU memory: can_swap_out", pool.can_swap_out(seq), True)
    out = pool.swap_out(seq)
    given = "4 blocks of 2, 3 of them held, swap_out"
    expect(f"{given}: from which blocks", [a for a, _ in out], old)
    host = [b for _, b in out]
    expect(f"{given}: to how many", len(set(host)), 3)
    inside = all(0 <= i < 3 for i in host)
    expect(f"{given}: all to blocks 0 to 2", inside, True)
    expect(f"{given}: block_ids", seq.block_ids, [])
    expect(f"{given}: num_free", pool.num_free, 4)
    expect(f"{given}: num_computed", seq.num_computed, 5)
    _books(pool, given)
    other = _seq(range(50, 52), "b")
    _compute(pool, other)
    back = pool.swap_in(seq)
    given += ", another takes 1, swap_in"
    expect(f"{given}: from which CPU blocks", [a for a, _ in back], host)
    expect(f"{given}: to which blocks", [b for _, b in back], seq.block_ids)
    common = set(seq.block_ids) & set(other.block_ids)
    expect(f"{given}: blocks of both", sorted(common), [])
    expect(f"{given}: reference counts", _counts(pool, seq), [1, 1, 1])
    expect(f"{given}: can_swap_out again", pool.can_swap_out(seq), True)
    _books(pool, given)


@_SUITE.property("BlockManager", hint="CPU memory ends too")
def _swap_room(p: SimpleNamespace) -> None:
    """Swapping needs room: can_swap_out and can_swap_in say so, and else nothing
    changes.
    """
    pool = p.BlockManager(3, 2, num_swap_blocks=2)
    one, two = _seq(range(4)), _seq(range(2), "b")
    _compute(pool, one)
    _compute(pool, two)
    pool.swap_out(two)
    expect("2 blocks, 1 of CPU memory: can_swap_out", pool.can_swap_out(one), False)
    _refused(
        "2 blocks, 1 of CPU memory is free, swap_out",
        lambda: pool.swap_out(one),
        pool,
        [one],
        "2",
        "1",
    )
    expect("1 block is free: can_swap_in, 2 tokens", pool.can_swap_in(two, 2), True)
    expect("1 block is free: can_swap_in, 3 tokens", pool.can_swap_in(two, 3), False)
    three = _seq(range(2), "c")
    _compute(pool, three)
    expect("no block is free: can_swap_in, 2 tokens", pool.can_swap_in(two, 2), False)
    _refused(
        "no block is free, swap_in",
        lambda: pool.swap_in(two),
        pool,
        [one, two, three],
        "1",
        "0",
    )
    pool.release(three)
    expect("... and one is: number of copies", len(pool.swap_in(two)), 1)


@_SUITE.property("BlockManager", hint="the other one still reads there")
def _swap_shared(p: SimpleNamespace) -> None:
    """A fork that is swapped out leaves its parent what both held."""
    pool, parent = p.BlockManager(4, 2, num_swap_blocks=4), _seq(range(3))
    _compute(pool, parent)
    child, held = _fork(pool, parent, "a-1"), list(parent.block_ids)
    pool.swap_out(child)
    given = "2 blocks shared, the fork is swapped out"
    expect(f"{given}: the parent's blocks", parent.block_ids, held)
    expect(f"{given}: reference counts", _counts(pool, parent), [1, 1])
    expect(f"{given}: num_free", pool.num_free, 2)
    _books(pool, given)
    pool.swap_in(child)
    common = set(child.block_ids) & set(held)
    expect(f"{given} and in: blocks of both", sorted(common), [])
    _books(pool, f"{given} and in")


@_SUITE.property("BlockManager", hint="where are its blocks at that time?")
def _swapped_release(p: SimpleNamespace) -> None:
    """A swapped sequence that is released gives its CPU blocks back."""
    pool, seq = p.BlockManager(2, 2, num_swap_blocks=2), _seq(range(4))
    for turn in (1, 2):
        seq.num_computed = 0
        _compute(pool, seq)
        given = f"2 blocks, 2 of CPU memory, turn {turn}"
        expect(f"{given}: can_swap_out", pool.can_swap_out(seq), True)
        pool.swap_out(seq)
        pool.release(seq)
        expect(f"{given}, swap_out, release: num_free", pool.num_free, 2)
        _books(pool, f"{given}, swap_out, release")


@_SUITE.property("BlockManager", hint="after a swap all of its blocks are other ones")
def _swapped_commit(p: SimpleNamespace) -> None:
    """What came back from CPU memory can be offered again, from the beginning."""
    pool, one = p.BlockManager(4, 2, True, 4), _seq(range(5))
    _begin(pool, one)
    pool.swap_out(one)
    other = _seq(range(50, 58), "b")
    _compute(pool, other)  # takes every block: nothing of the first is kept
    pool.release(other)
    pool.swap_in(one)
    given = "5 tokens swapped out and in"
    expect(f"{given}: match before commit", pool.match(_seq(range(5), "c")), [])
    pool.commit(one, 0, 5)
    got = pool.match(_seq(range(5), "c"))
    expect(f"{given}, commit from 0: match", got, one.block_ids[:2])
    _books(pool, given)


# ----- the books


@_SUITE.property("BlockManager", hint="shared blocks are stored once")
def _tokens_held(p: SimpleNamespace) -> None:
    """tokens_held counts the computed tokens in held blocks, shared ones once."""
    pool, parent = p.BlockManager(6, 2), _seq(range(3))
    expect("a new pool: tokens_held()", pool.tokens_held(), 0)
    pool.grow(parent, 3)
    expect("room for 3, none computed: tokens_held()", pool.tokens_held(), 0)
    _compute(pool, parent)
    expect("3 computed: tokens_held()", pool.tokens_held(), 3)
    child = _fork(pool, parent, "a-1")
    expect("3 computed, a fork: tokens_held()", pool.tokens_held(), 3)
    child.add_token_id(9)
    _compute(pool, child)
    expect("... the fork writes 1: tokens_held()", pool.tokens_held(), 2 + 1 + 2)
    pool.release(parent)
    expect("... the parent goes: tokens_held()", pool.tokens_held(), 4)


@_SUITE.property("BlockManager", hint="count it all again, and compare")
def _integrity(p: SimpleNamespace) -> None:
    """check_integrity is an AssertionError when tables, counts or hits are wrong."""

    def count_more(pool: Any, one: Sequence, two: Sequence) -> None:
        pool.blocks[one.block_ids[0]].ref_count += 1

    def count_less(pool: Any, one: Sequence, two: Sequence) -> None:
        pool.blocks[one.block_ids[0]].ref_count -= 1

    def count_free(pool: Any, one: Sequence, two: Sequence) -> None:
        free = next(b for b in pool.blocks if b.ref_count == 0)
        free.ref_count = 1

    def lose(pool: Any, one: Sequence, two: Sequence) -> None:
        one.block_ids.pop()

    def twice(pool: Any, one: Sequence, two: Sequence) -> None:
        pool.blocks[one.block_ids[0]].ref_count += 1
        one.block_ids.append(one.block_ids[0])

    def take_free(pool: Any, one: Sequence, two: Sequence) -> None:
        free = next(i for i, b in enumerate(pool.blocks) if b.ref_count == 0)
        pool.blocks[free].ref_count = 1
        one.block_ids.append(free)

    def negative(pool: Any, one: Sequence, two: Sequence) -> None:
        next(b for b in pool.blocks if b.ref_count == 0).ref_count = -1

    def other_digest(pool: Any, one: Sequence, two: Sequence) -> None:
        pool.blocks[one.block_ids[0]].digest = b"another"

    for what, corrupt in (
        ("a held block counts one holder more", count_more),
        ("a held block counts one holder less", count_less),
        ("a free block counts a holder", count_free),
        ("a free block counts -1 holders", negative),
        ("a table lost its last block", lose),
        ("a table names a free block", take_free),
        ("a table names a block twice", twice),
        ("a block that hits find has another digest", other_digest),
    ):
        pool = p.BlockManager(8, 2, True)
        one, two = _seq(range(5)), _seq(range(50, 53), "b")
        _begin(pool, one)
        _begin(pool, two)
        _books(pool, "two sequences, nothing wrong")
        corrupt(pool, one, two)
        expect_error(f"{what}: check_integrity()", pool.check_integrity, AssertionError)


@_SUITE.property(
    "BlockManager", hint="which of the lines above goes with the last call?"
)
def _anything(p: SimpleNamespace) -> None:
    """Whatever happens in whatever order, the counts are those of the tables."""
    for caching in (False, True):
        for length in (4, 8, 16, 32, 64):
            for seed in range(12):
                _play(p, caching, length, seed)


def _play(p: SimpleNamespace, caching: bool, length: int, seed: int) -> None:
    """Some random calls of a pool of 6 blocks; the books after each."""
    rng = random.Random(seed)
    pool = p.BlockManager(6, 2, caching, num_swap_blocks=3)
    there: list[Sequence] = []
    away: list[Sequence] = []
    calls = []
    for number in range(length):
        kind = rng.choice(["begin", "begin", "go", "go", "fork", "release", "swap"])
        seq = rng.choice(there) if there else None
        if kind == "begin":
            tokens = [1, 2, 3, 4, 5, 6][: rng.randint(1, 6)]
            tokens[-1] = rng.choice([tokens[-1], 9])
            new = _seq(tokens, f"s{number}")
            hits = pool.match(new)
            calls.append(f"{new.seq_id} begins with {tokens}")
            if pool.can_grow(new, len(tokens), hits):
                pool.adopt(new, hits)
                _compute(pool, new)
                there.append(new)
        elif (
            kind == "swap" and away and pool.can_swap_in(away[0], away[0].num_computed)
        ):
            back = away.pop(0)
            calls.append(f"{back.seq_id} swaps in")
            pool.swap_in(back)
            pool.commit(back, 0, back.num_computed)
            there.append(back)
        elif seq is None:
            continue
        elif kind == "go":
            calls.append(f"{seq.seq_id} goes on")
            if pool.can_grow(seq, seq.get_len() + 1):
                seq.add_token_id(rng.randint(1, 9))
                _compute(pool, seq)
        elif kind == "fork":
            calls.append(f"{seq.seq_id} forks s{number}")
            there.append(_fork(pool, seq, f"s{number}"))
        elif kind == "swap" and pool.can_swap_out(seq):
            calls.append(f"{seq.seq_id} swaps out")
            pool.swap_out(seq)
            there.remove(seq)
            away.append(seq)
        else:
            calls.append(f"{seq.seq_id} is released")
            pool.release(seq)
            there.remove(seq)
        given = f"6 blocks of 2, caching {caching}: {'; '.join(calls)}"
        held = Counter(i for each in there for i in each.block_ids)
        counts = [block.ref_count for block in pool.blocks]
        wanted = [held[i] for i in range(6)]
        expect(f"{given}: reference counts", counts, wanted)
        expect(f"{given}: num_free", pool.num_free, 6 - len(held))
        for each in there:
            at = each.num_computed - 1  # who wrote last must be alone in its block
            last = each.block_ids[at // 2]
            sharers = [s for s in there if last in s.block_ids]
            past = {tuple(s.get_token_ids()[: at + 1]) for s in sharers}
            expect(f"{given}: pasts in the last block of one", len(past), 1)
        _books(pool, given)
