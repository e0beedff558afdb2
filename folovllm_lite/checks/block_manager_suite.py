"""What has to be true of blocks that are handed out, whoever wrote it."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from folovllm_lite import block_manager as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail, on
from folovllm_lite.prefix_cache import PrefixCache
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams

_SUITE = block_manager = Suite(
    package,
    """Judge FreeBlocks and BlockManager of `folovllm_lite.block_manager`.

    `checks.block_manager(BlockManager=Mine)` judges one class,
    `checks.block_manager(module)` both of a module. `grow` is judged as that method of
    the package's BlockManager.
    """,
    methods={"grow": "BlockManager.grow"},
)


def _seq(tokens: Iterable[int], name: str = "a", **params: Any) -> Sequence:
    """A waiting sequence of these tokens."""
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams(**params))


def _begin(pool: Any, seq: Sequence, end: int | None = None) -> bool:
    """Place `seq` and compute its tokens up to `end`; whether there was room."""
    end = seq.get_len() if end is None else end
    if not pool.place(seq, end):
        return False
    pool.offer(seq, end)
    seq.num_computed = end
    return True


def _go(pool: Any, seq: Sequence, end: int | None = None) -> bool:
    """Let a running `seq` compute its tokens up to `end`; whether there was room."""
    end = seq.get_len() if end is None else end
    if not pool.grow(seq, end):
        return False
    pool.offer(seq, end)
    seq.num_computed = end
    return True


def _fork(pool: Any, parent: Sequence, name: str) -> Sequence:
    """A second future of `parent`, which has no table before the pool gives it one."""
    child = parent.fork(name)
    child.block_ids = []
    pool.fork(parent, child)
    return child


def _moved(pool: Any, kind: str = "") -> list[tuple]:
    """The moves since this was asked last; of one kind, their (from, to)."""
    moves, pool.moves = [tuple(move) for move in pool.moves], []
    return [move[1:] for move in moves if move[0] == kind] if kind else moves


def _counts(pool: Any, seq: Sequence) -> list[int]:
    """How often each block of the table is held."""
    return [pool.refs[i] for i in seq.block_ids]


def _books(pool: Any, given: str) -> None:
    """Fail if the pool says of itself that something is wrong."""
    check = getattr(pool, "check_integrity", None)
    if check is None:
        return
    try:
        check()
    except AssertionError as error:
        fail(f"{given}: check_integrity()", f"AssertionError: {error}", "no error")


def _state(pool: Any, *seqs: Sequence) -> list:
    """What a call that was refused must leave as it was."""
    tables = [(list(seq.block_ids), seq.num_computed) for seq in seqs]
    return [len(pool.free), list(pool.refs), list(pool.moves), tables]


_STATE = "free blocks, refs, moves, (block_ids, num_computed)"


def _no(given: str, call: Callable, pool: Any, *seqs: Sequence) -> None:
    """Fail unless the answer of `call` is no, and nothing has changed."""
    before = _state(pool, *seqs)
    expect(given, call(), False)
    expect(f"{given} is False: {_STATE}", _state(pool, *seqs), before)
    _books(pool, given)


def _misused(given: str, call: Callable, pool: Any, *seqs: Sequence) -> None:
    """Fail unless `call` is a ValueError that changes nothing."""
    before = _state(pool, *seqs)
    expect_error(given, call, ValueError)
    expect(f"{given}, refused: {_STATE}", _state(pool, *seqs), before)
    _books(pool, f"{given}, refused")


# ----- what nobody holds


@_SUITE.property("FreeBlocks", hint="every block is free before anybody asks")
def _free_all(p: SimpleNamespace) -> None:
    """At first all blocks are free, each once, and len() counts what is left."""
    for count in (1, 3):
        free = p.FreeBlocks(count)
        expect(f"FreeBlocks({count}): len", len(free), count)
        taken = []
        for left in reversed(range(count)):
            taken.append(free.take())
            expect(f"FreeBlocks({count}), {count - left} taken: len", len(free), left)
        expect(f"FreeBlocks({count}), all taken", sorted(taken), list(range(count)))


@_SUITE.property(
    "FreeBlocks", hint="which of them makes the longest row of neighbours?"
)
def _lowest_first(p: SimpleNamespace) -> None:
    """The lowest free number goes first, in whatever order they came back."""
    for back in ((0, 1, 2), (2, 0, 1), (2, 1)):
        free = p.FreeBlocks(4)
        for _ in range(3):
            free.take()
        for block_id in back:
            free.put(block_id)
        given = f"4 blocks, 3 are taken, {back} come back: the next taken"
        expect(given, [free.take() for _ in back], sorted(back))


@_SUITE.property("FreeBlocks", hint="begin again")
def _free_clear(p: SimpleNamespace) -> None:
    """clear() makes all of them free, whoever has one."""
    free = p.FreeBlocks(3)
    free.take()
    free.take()
    free.clear()
    expect("3 blocks, 2 are taken, clear(): len", len(free), 3)
    expect("... taken after it", [free.take() for _ in range(3)], [0, 1, 2])


@_SUITE.property("FreeBlocks", hint="five verbs that belong to a later notebook")
def _forgets(p: SimpleNamespace) -> None:
    """It remembers nothing: whatever is offered, nothing is found."""
    free, seq = p.FreeBlocks(4), _seq(range(5))
    seq.block_ids = [free.take() for _ in range(3)]
    free.offer(seq, 5)
    expect("3 blocks are offered: find", list(free.find(_seq(range(5), "b"))), [])
    free.withdraw(seq.block_ids)
    for block_id in seq.block_ids:
        free.put(block_id)
    expect("... and come back: find", list(free.find(_seq(range(5), "b"))), [])
    expect("... and come back: len", len(free), 4)


# ----- holding


@_SUITE.property("BlockManager", hint="every block is free before anybody asks")
def _fresh(p: SimpleNamespace) -> None:
    """A new pool has all of its blocks free, and a pool of nothing is refused."""
    for count, size in ((1, 1), (1, 2), (3, 2)):
        pool = p.BlockManager(count, size)
        given = f"{count} blocks of {size} tokens"
        expect(f"{given}: free blocks", len(pool.free), count)
        expect(f"{given}: refs", list(pool.refs), [0] * count)
        expect(f"{given}: capacity in tokens", pool.capacity, count * size)
        expect(f"{given}: moves", list(pool.moves), [])
        _books(pool, given)
    for count, size in ((0, 2), (3, 0), (-1, 2)):
        expect_error(
            f"BlockManager({count}, {size})",
            lambda c=count, s=size: p.BlockManager(c, s),
            ValueError,
            str(count),
            str(size),
        )


@_SUITE.property("BlockManager", hint="a block that is begun counts as a whole one")
def _rounds_up(p: SimpleNamespace) -> None:
    """A sequence begins with blocks for its tokens, rounded up."""
    for tokens, wanted in ((1, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
        pool, seq = p.BlockManager(8, 4), _seq(range(9))
        given = f"8 blocks of 4 tokens, place for {tokens}"
        expect(given, pool.place(seq, tokens), True)
        expect(f"{given}: number of blocks", len(seq.block_ids), wanted)
        expect(f"{given}: free blocks", len(pool.free), 8 - wanted)
        expect(f"{given}: reference counts", _counts(pool, seq), [1] * wanted)
        expect(f"{given}: num_computed", seq.num_computed, 0)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="what is there already needn't be given again")
def _grow(p: SimpleNamespace) -> None:
    """A sequence grows by the blocks that are missing, and keeps those it has."""
    pool, seq = p.BlockManager(4, 2), _seq(range(7))
    _begin(pool, seq, 1)
    before = list(seq.block_ids)
    for end, blocks in ((2, 1), (3, 2), (7, 4)):
        given = f"4 blocks of 2 tokens, grow to {end} tokens"
        expect(given, _go(pool, seq, end), True)
        expect(f"{given}: moves", _moved(pool), [])
        expect(f"{given}: number of blocks", len(seq.block_ids), blocks)
        expect(f"{given}: those before", seq.block_ids[: len(before)], before)
        expect(f"{given}: free blocks", len(pool.free), 4 - blocks)
        expect(f"{given}: reference counts", _counts(pool, seq), [1] * blocks)
        _books(pool, given)
        before = list(seq.block_ids)
    pool, seq = p.BlockManager(2, 2), _seq(range(4))
    pool.place(seq, 4)
    seq.num_computed = 1
    given = "2 blocks of 2, placed for 4 tokens, 1 is computed, grow to 4"
    expect(given, pool.grow(seq, 4), True)
    expect(f"{given}: number of blocks", len(seq.block_ids), 2)


@_SUITE.property("BlockManager", hint="who may write to a block that two tables name?")
def _distinct(p: SimpleNamespace) -> None:
    """Two sequences that know nothing of each other never get the same block."""
    pool = p.BlockManager(6, 2)
    one, two = _seq([1, 2, 3], "a"), _seq([4, 5, 6], "b")
    for call, end in ((_begin, 1), (_go, 3)):
        call(pool, one, end)
        call(pool, two, end)
        common = set(one.block_ids) & set(two.block_ids)
        given = f"two sequences get room for {end} tokens: blocks of both"
        expect(given, sorted(common), [])


@_SUITE.property("BlockManager", hint="look first, then take")
def _too_few(p: SimpleNamespace) -> None:
    """What doesn't fit is answered with False, and changes nothing."""
    pool, one, two = p.BlockManager(3, 2), _seq(range(9)), _seq(range(9), "b")
    _no("3 free blocks of 2, place for 7", lambda: pool.place(one, 7), pool, one)
    expect("3 free blocks of 2, place for 6", pool.place(one, 6), True)
    pool.release(one)
    _begin(pool, one, 2)
    _begin(pool, two, 2)
    given = "1 free block of 2, 1 held, grow to 5"
    _no(given, lambda: pool.grow(one, 5), pool, one, two)
    expect("1 free block of 2, 1 held, grow to 4", pool.grow(one, 4), True)


@_SUITE.property("BlockManager", hint="what does the table look like the second time?")
def _release(p: SimpleNamespace) -> None:
    """What is released is free again, and releasing what holds nothing is fine."""
    pool, seq = p.BlockManager(3, 2), _seq(range(5))
    pool.release(seq)
    given = "release of a sequence that never began"
    expect(f"{given}: free blocks", len(pool.free), 3)
    _begin(pool, seq)
    for what in ("release", "a second release"):
        pool.release(seq)
        given = f"3 blocks held, {what}"
        expect(f"{given}: free blocks", len(pool.free), 3)
        expect(f"{given}: block_ids", seq.block_ids, [])
        expect(f"{given}: refs", list(pool.refs), [0, 0, 0])
        _books(pool, given)
    pool.place(seq, 5)
    given = "5 tokens computed, released, placed again"
    expect(f"{given}: num_computed", seq.num_computed, 0)


@_SUITE.property("BlockManager", hint="what must come before, and what only once?")
def _misuse(p: SimpleNamespace) -> None:
    """Calls that make no sense are a ValueError, and change nothing."""
    pool, one, two = (
        p.BlockManager(4, 2, num_swap_blocks=4),
        _seq([1, 2]),
        _seq([3], "b"),
    )
    given = "a sequence that holds nothing"
    _misused(f"{given}, grow", lambda: pool.grow(one, 2), pool, one)
    _misused(f"{given}, swap_out", lambda: pool.swap_out(one), pool, one)
    _misused(f"{given}, fork", lambda: pool.fork(one, two), pool, one, two)
    pool.place(one, 2)
    given = "a sequence that holds a block, and has computed nothing"
    _misused(f"{given}, fork", lambda: pool.fork(one, two), pool, one, two)
    one.num_computed = 2
    given = "a sequence that holds a block"
    _misused(f"{given}, place", lambda: pool.place(one, 2), pool, one)
    _begin(pool, two)
    _misused(f"{given}, fork to it", lambda: pool.fork(one, two), pool, one, two)
    alike = _seq([3], "b")
    given += ", fork to another one with its seq_id"
    _misused(given, lambda: pool.fork(one, alike), pool, one, two, alike)
    expect_error(
        "a pool of 4 blocks with 2 free ones",
        lambda: p.BlockManager(4, 2, PrefixCache(2, 2)),
        ValueError,
        "4",
        "2",
    )


@_SUITE.property("BlockManager", hint="who is left in the books?")
def _cleared(p: SimpleNamespace) -> None:
    """clear() forgets everybody: all is free, here and in CPU memory."""
    pool = p.BlockManager(4, 2, num_swap_blocks=2)
    one, two = _seq(range(3)), _seq(range(3), "b")
    _begin(pool, one)
    _begin(pool, two)
    pool.swap_out(two)
    pool.clear()
    given = "one holds 2 blocks, one is in CPU memory, clear()"
    expect(f"{given}: free blocks", len(pool.free), 4)
    expect(f"{given}: refs", list(pool.refs), [0] * 4)
    expect(f"{given}: moves", list(pool.moves), [])
    expect(f"{given}: tokens_held()", pool.tokens_held(), 0)
    _books(pool, given)
    three = _seq(range(4), "c")
    expect(f"{given}, another begins", _begin(pool, three), True)
    expect(f"{given}, and is swapped out", pool.swap_out(three), True)
    _books(pool, f"{given}, another begins and is swapped out")


# ----- sharing


@_SUITE.property("BlockManager", hint="count holders, and move nothing")
def _sharing(p: SimpleNamespace) -> None:
    """A fork holds its parent's blocks: no new ones, and each counts one more."""
    pool, parent = p.BlockManager(2, 2), _seq(range(3))
    _begin(pool, parent)
    for count, name in enumerate(("a-1", "a-2"), start=2):
        child = _fork(pool, parent, name)
        given = f"2 blocks, {count - 1} forks"
        expect(f"{given}: blocks of the fork", child.block_ids, parent.block_ids)
        expect(f"{given}: free blocks", len(pool.free), 0)
        expect(f"{given}: reference counts", _counts(pool, parent), [count] * 2)
        same = child.block_ids is parent.block_ids
        expect(f"{given}: both have one list", same, False)
        expect(f"{given}: moves", list(pool.moves), [])
        _books(pool, given)


@_SUITE.property("BlockManager", hint="free means that nobody is left")
def _last_holder(p: SimpleNamespace) -> None:
    """A shared block is free when its last holder lets go, whoever that is."""
    for order in ((0, 1), (1, 0)):
        pool, parent = p.BlockManager(3, 2), _seq(range(3))
        _begin(pool, parent)
        both = (parent, _fork(pool, parent, "a-1"))
        given = f"2 of 3 blocks shared, {('parent', 'fork')[order[0]]} is released"
        pool.release(both[order[0]])
        expect(f"{given}: free blocks", len(pool.free), 1)
        expect(f"{given}: the other's", _counts(pool, both[order[1]]), [1, 1])
        _books(pool, given)
        pool.release(both[order[1]])
        expect(f"{given}, then the other: free blocks", len(pool.free), 3)
        _books(pool, given)
        again = _seq(range(3))
        _begin(pool, again)
        _fork(pool, again, "a-1")
        given += ", then the other; two of the same names share anew"
        expect(f"{given}: free blocks", len(pool.free), 1)


@_SUITE.property("BlockManager", hint="which block does the next token go to?")
def _copy_on_write(p: SimpleNamespace) -> None:
    """Who writes to a shared block gets a copy of it; the others keep the original."""
    for tokens, end in ((1, 2), (3, 4), (1, 4), (3, 6)):
        for writer in ("fork", "parent"):
            pool, parent = p.BlockManager(6, 2), _seq(range(tokens))
            _begin(pool, parent)
            child = _fork(pool, parent, "a-1")
            seqs = {"fork": child, "parent": parent}
            one = seqs.pop(writer)
            (other,) = seqs.values()
            old, at = list(other.block_ids), tokens // 2
            for _ in range(end - tokens):
                one.add_token_id(9)
            given = (
                f"{tokens} tokens in blocks of 2, a fork, the {writer} grows to {end}"
            )
            expect(given, _go(pool, one), True)
            expect(f"{given}: the other's blocks", other.block_ids, old)
            expect(
                f"{given}: moves", _moved(pool), [("copy", old[at], one.block_ids[at])]
            )
            expect(f"{given}: its block is new", one.block_ids[at] in old, False)
            expect(f"{given}: those before", one.block_ids[:at], old[:at])
            expect(f"{given}: number of blocks", len(one.block_ids), end // 2)
            expect(f"{given}: counts", _counts(pool, one)[at:], [1] * (end // 2 - at))
            expect(f"{given}: the other's", _counts(pool, other)[-1:], [1])
            _books(pool, given)
    pool, parent = p.BlockManager(4, 2), _seq(range(5))
    pool.place(parent, 5)
    parent.num_computed = 1
    _, old = _fork(pool, parent, "a-1"), list(parent.block_ids)
    given = "3 blocks of 2, 1 token is computed, a fork, the parent grows to 2"
    expect(given, pool.grow(parent, 2), True)
    expect(f"{given}: moves", _moved(pool), [("copy", old[0], parent.block_ids[0])])
    expect(f"{given}: blocks behind", parent.block_ids[1:], old[1:])
    _books(pool, given)


@_SUITE.property("BlockManager", hint="what would the copy be good for?")
def _last_writer(p: SimpleNamespace) -> None:
    """The last of the holders writes in place: N sequences need N - 1 copies."""
    for forks in (0, 1, 3):
        pool, parent = p.BlockManager(6, 2), _seq(range(1))
        _begin(pool, parent)
        seqs = [parent, *(_fork(pool, parent, f"a-{i + 1}") for i in range(forks))]
        for seq in seqs:
            seq.add_token_id(9)
            _go(pool, seq)
        given = f"half a block, {forks} forks, everybody writes"
        expect(f"{given}: copies", len(_moved(pool, "copy")), forks)
        expect(f"{given}: free blocks", len(pool.free), 6 - 1 - forks)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="a full block is never written again")
def _full_blocks_stay(p: SimpleNamespace) -> None:
    """Full blocks stay shared, without a copy, while each goes on in its own."""
    pool, parent = p.BlockManager(4, 2), _seq(range(2))
    _begin(pool, parent)
    child = _fork(pool, parent, "a-1")
    for name, seq in (("fork", child), ("parent", parent)):
        seq.add_token_id(9)
        _go(pool, seq)
        given = f"a full block of 2, a fork, the {name} goes on"
        expect(f"{given}: moves", _moved(pool), [])
    given = "a full block of 2, a fork, both go on"
    expect(f"{given}: first blocks", child.block_ids[:1], parent.block_ids[:1])
    same = child.block_ids[1] == parent.block_ids[1]
    expect(f"{given}: second blocks are the same", same, False)
    expect(f"{given}: counts", _counts(pool, parent), [2, 1])
    _books(pool, given)


@_SUITE.property("BlockManager", hint="which blocks of the parent hold tokens yet?")
def _room_ahead(p: SimpleNamespace) -> None:
    """What a parent holds beyond its tokens isn't written by its fork too."""
    for order, computed in (((0, 1), 3), ((1, 0), 3), ((0, 1), 2)):
        pool, parent = p.BlockManager(8, 2), _seq(range(7))
        pool.place(parent, 7)
        parent.num_computed = computed
        both = (parent, _fork(pool, parent, "a-1"))
        given = f"4 blocks of 2, {computed} tokens computed, a fork"
        shared = parent.block_ids[: (computed + 1) // 2]
        expect(f"{given}: its blocks", both[1].block_ids, shared)
        for i in order:
            _go(pool, both[i], 7)
        common = set(both[0].block_ids) & set(both[1].block_ids)
        given += f", both grow to 7, {('the parent', 'the fork')[order[0]]} first"
        expect(f"{given}: blocks of both", sorted(common), both[0].block_ids[:1])
        _books(pool, given)


@_SUITE.property("BlockManager", hint="the copy needs a place of its own")
def _copies_need_room(p: SimpleNamespace) -> None:
    """A copy counts as a block: without a free one growing is refused."""
    for what, blocks, tokens, computed, end in (
        ("1 block of 4, shared by two, none is free", 1, 2, 2, 3),
        ("3 blocks of 4, shared by two who have computed 2 tokens", 3, 12, 2, 3),
        ("2 blocks of 4, 1 shared by two who have computed 2 tokens", 2, 2, 2, 5),
    ):
        pool, parent = p.BlockManager(blocks, 4), _seq(range(tokens))
        pool.place(parent, tokens)
        parent.num_computed = computed
        child = _fork(pool, parent, "a-1")
        call = lambda b=pool, s=parent, e=end: b.grow(s, e)  # noqa: E731
        _no(f"{what}, grow to {end}", call, pool, parent, child)
        pool.release(child)
        what += f", the fork is released, grow to {end}"
        expect(what, pool.grow(parent, end), True)
        expect(f"{what}: moves", _moved(pool), [])


@_SUITE.property("BlockManager", hint="who will read what comes into that block?")
def _released_move(p: SimpleNamespace) -> None:
    """Nothing comes into a block for one who was released; for another one it does."""
    pool, parent = p.BlockManager(8, 2), _seq(range(1))
    _begin(pool, parent)
    one, two = _fork(pool, parent, "a-1"), _fork(pool, parent, "a-2")
    for seq in (one, two):
        seq.add_token_id(9)
        pool.grow(seq, 2)
    given = "two forks get a copy each, the second is released in the same step: copies"
    pool.release(two)
    wanted = [(parent.block_ids[0], one.block_ids[0])]
    expect(given, _moved(pool, "copy"), wanted)
    pool, parent = p.BlockManager(8, 2), _seq(range(1))
    _begin(pool, parent)
    one = _fork(pool, parent, "a-1")
    pool.grow(one, 2)
    two = _fork(pool, one, "a-2")
    pool.release(one)
    given = "a fork gets a copy, is forked, and released: copies, for the second"
    wanted = [(parent.block_ids[0], two.block_ids[0])]
    expect(given, _moved(pool, "copy"), wanted)
    pool = p.BlockManager(8, 2, num_swap_blocks=8)
    one, two = _seq(range(2)), _seq(range(50, 52), "b")
    for seq in (one, two):
        _begin(pool, seq)
        pool.swap_out(seq)
    _moved(pool)
    for seq in (one, two):
        pool.place(seq, 2)
    given = "two come back, the second is released in the same step: blocks moved in"
    pool.release(two)
    expect(given, [to for _, to in _moved(pool, "in")], one.block_ids)


# ----- a free list that remembers


def _remembering(p: SimpleNamespace, blocks: int = 8, swap: int = 0) -> Any:
    """A pool whose free blocks are the package's PrefixCache."""
    return p.BlockManager(blocks, 2, PrefixCache(blocks, 2), swap)


@_SUITE.property("BlockManager", hint="a hit is one more holder, and tokens computed")
def _adopt(p: SimpleNamespace) -> None:
    """Blocks that are found count one holder more, and their tokens as computed."""
    for released in (False, True):
        pool, one = _remembering(p), _seq(range(5))
        _begin(pool, one)
        blocks = one.block_ids[:2]
        if released:
            pool.release(one)
        two = _seq(range(5), "b")
        given = f"2 blocks hit that {'nobody holds' if released else 'another holds'}"
        expect(f"{given}: found, in tokens", pool.found(two), 4)
        pool.place(two, 5)
        expect(f"{given}: block_ids", two.block_ids[:2], blocks)
        expect(f"{given}: number of blocks", len(two.block_ids), 3)
        expect(f"{given}: num_computed", two.num_computed, 4)
        counts = [1, 1, 1] if released else [2, 2, 1]
        expect(f"{given}: reference counts", _counts(pool, two), counts)
        expect(f"{given}: free blocks", len(pool.free), 5 if released else 4)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="found asks; who takes?")
def _asking(p: SimpleNamespace) -> None:
    """To ask what is found changes nothing."""
    pool, one = _remembering(p), _seq(range(5))
    _begin(pool, one)
    pool.release(one)
    two = _seq(range(5), "b")
    before = _state(pool, two)
    pool.found(two)
    expect(f"found(): {_STATE}", _state(pool, two), before)
    expect("found() again, in tokens", pool.found(two), 4)


@_SUITE.property("BlockManager", hint="a kept block can't be a hit and room as well")
def _hits_take_room(p: SimpleNamespace) -> None:
    """Blocks that are hit and held by nobody are no room for the rest."""
    pool, one = _remembering(p, 3), _seq(range(5))
    _begin(pool, one)
    pool.release(one)
    two = _seq(range(7), "b")
    given = "3 blocks of 2, 2 of them are hit"
    _no(f"{given}, place for 7", lambda: pool.place(two, 7), pool, two)
    expect(f"{given}, place for 6", pool.place(two, 6), True)
    pool, two = _remembering(p, 4), _seq(range(5), "b")
    _begin(pool, _seq(range(5)))
    given = "4 blocks of 2, another holds 3, 2 of them are hit and shared"
    expect(f"{given}, place for 5", pool.place(two, 5), True)
    pool, one, other = _remembering(p, 4), _seq(range(4)), _seq(range(50, 54), "c")
    for seq in (one, other):
        _begin(pool, seq)
        pool.release(seq)
    two = _seq(range(7), "b")
    given = "4 blocks of 2, all are kept, the 2 that were there first are hit"
    expect(f"{given}, place for 7", pool.place(two, 7), True)
    expect(f"{given}, place for 7: its blocks", sorted(two.block_ids), [0, 1, 2, 3])
    _books(pool, f"{given}, place for 7")


@_SUITE.property("BlockManager", hint="without its logits, what would be reported?")
def _scored(p: SimpleNamespace) -> None:
    """Who wants logprobs of his prompt computes all of it, whatever is there."""
    for count, wanted in ((None, 4), (0, 0), (2, 0)):
        pool, one = _remembering(p), _seq(range(5))
        _begin(pool, one)
        two = _seq(range(5), "b", prompt_logprobs=count)
        given = f"4 of 5 tokens are there, prompt_logprobs={count}"
        expect(f"{given}: found", pool.found(two), wanted)
        pool.place(two, 5)
        expect(f"{given}, place: num_computed", two.num_computed, wanted)
        common = set(one.block_ids) & set(two.block_ids)
        expect(f"{given}, place: common blocks", len(common), wanted // 2)


@_SUITE.property("BlockManager", hint="which of its ends will others ask for?")
def _end_goes_first(p: SimpleNamespace) -> None:
    """Of a released sequence the last block is handed back first."""
    pool, one = _remembering(p, 3), _seq(range(5))
    _begin(pool, one)
    pool.release(one)  # one block holds nothing, two are kept
    _begin(pool, _seq([50, 51, 52, 53], "b"))
    given = "3 blocks of 2, 5 tokens released, another takes 2 blocks: found"
    expect(given, pool.found(_seq(range(5), "c")), 2)


@_SUITE.property("BlockManager", hint="what may be found is the free list's business")
def _passes_on(p: SimpleNamespace) -> None:
    """What is offered is found, what is withdrawn isn't; who holds it still does."""
    pool, one = _remembering(p), _seq(range(5))
    pool.place(one, 5)
    expect(
        "5 tokens have room, none is offered: found", pool.found(_seq(range(5), "b")), 0
    )
    pool.offer(one, 4)
    expect("4 of 5 are offered: found", pool.found(_seq(range(5), "b")), 4)
    one.num_computed = 5
    held = list(one.block_ids)
    pool.withdraw(one)
    expect("... and withdrawn: found", pool.found(_seq(range(5), "b")), 0)
    expect("... and withdrawn: block_ids", one.block_ids, held)
    expect("... and withdrawn: reference counts", _counts(pool, one), [1, 1, 1])
    _books(pool, "withdrawn")


# ----- swapping


@_SUITE.property("BlockManager", hint="two pools, and each has its own free blocks")
def _swap(p: SimpleNamespace) -> None:
    """A sequence goes to CPU memory and comes back, block by block and in order."""
    pool, seq = p.BlockManager(4, 2, num_swap_blocks=3), _seq(range(5))
    _begin(pool, seq)
    old = list(seq.block_ids)
    given = "4 blocks of 2, 3 of them held, 3 of CPU memory, swap_out"
    expect(given, pool.swap_out(seq), True)
    out = _moved(pool, "out")
    expect(f"{given}: from which blocks", [a for a, _ in out], old)
    host = [b for _, b in out]
    expect(f"{given}: to how many", len(set(host)), 3)
    inside = all(0 <= i < 3 for i in host)
    expect(f"{given}: all to blocks 0 to 2", inside, True)
    expect(f"{given}: block_ids", seq.block_ids, [])
    expect(f"{given}: free blocks", len(pool.free), 4)
    expect(f"{given}: num_computed", seq.num_computed, 5)
    expect(f"{given}: found", pool.found(seq), 5)
    _books(pool, given)
    other = _seq(range(50, 52), "b")
    _begin(pool, other)
    given += ", another takes 1, place"
    expect(given, pool.place(seq, 5), True)
    back = _moved(pool, "in")
    expect(f"{given}: from which CPU blocks", [a for a, _ in back], host)
    expect(f"{given}: to which blocks", [b for _, b in back], seq.block_ids)
    common = set(seq.block_ids) & set(other.block_ids)
    expect(f"{given}: blocks of both", sorted(common), [])
    expect(f"{given}: reference counts", _counts(pool, seq), [1, 1, 1])
    expect(f"{given}: num_computed", seq.num_computed, 5)
    _books(pool, given)
    expect(f"{given}, swap_out again", pool.swap_out(seq), True)
    _books(pool, f"{given}, swap_out again")


@_SUITE.property("BlockManager", hint="who leaves first, and who takes what he left?")
def _order_of_moves(p: SimpleNamespace) -> None:
    """Moves stand in the order in which they were decided."""
    pool = p.BlockManager(2, 2, num_swap_blocks=4)
    one, two = _seq(range(2)), _seq(range(3), "b")
    _begin(pool, one)
    pool.swap_out(one)
    _begin(pool, two)
    pool.swap_out(two)
    pool.place(one, 2)
    kinds = [move[0] for move in pool.moves]
    given = "one goes out, another takes its block and goes out, the first comes back"
    expect(f"{given}: kinds of moves", kinds, ["out", "out", "out", "in"])
    pool = p.BlockManager(2, 2, num_swap_blocks=1)
    one, two = _seq(range(1)), _seq(range(2), "b")
    _begin(pool, one)
    _begin(pool, two)
    child = _fork(pool, one, "a-1")
    pool.swap_out(two)
    pool.grow(child, 2)
    kinds = [move[0] for move in pool.moves]
    given = "one goes out, and a fork copies into its block: kinds of moves"
    expect(given, kinds, ["out", "copy"])
    pool = p.BlockManager(3, 2, num_swap_blocks=1)
    one, two = _seq(range(1)), _seq(range(2), "b")
    _begin(pool, one)
    _begin(pool, two)
    pool.grow(_fork(pool, one, "a-1"), 2)
    given = "a fork copies, and another one, who has no part in it, goes out"
    expect(given, pool.swap_out(two), True)
    kinds = [move[0] for move in pool.moves]
    expect(f"{given}: kinds of moves", kinds, ["copy", "out"])


@_SUITE.property("BlockManager", hint="CPU memory ends too")
def _swap_room(p: SimpleNamespace) -> None:
    """Without room in CPU memory swap_out is False, and nothing changes."""
    pool, one = p.BlockManager(1, 2), _seq(range(2))
    _begin(pool, one)
    given = "a pool that was given no CPU memory, swap_out"
    _no(given, lambda: pool.swap_out(one), pool, one)
    pool = p.BlockManager(3, 2, num_swap_blocks=2)
    one, two = _seq(range(4)), _seq(range(2), "b")
    _begin(pool, one)
    _begin(pool, two)
    pool.swap_out(two)
    given = "2 blocks held, 1 of 2 in CPU memory is free, swap_out"
    _no(given, lambda: pool.swap_out(one), pool, one, two)
    pool.release(two)
    expect(f"{given}, and 2 are", pool.swap_out(one), True)
    _books(pool, given)


@_SUITE.property("BlockManager", hint="what do its blocks hold before the moves?")
def _swap_too_early(p: SimpleNamespace) -> None:
    """What a move has yet to bring can't be swapped out and lost."""
    for what in ("a fork is to get a copy", "it is to come back from CPU memory"):
        pool = p.BlockManager(4, 2, num_swap_blocks=4)
        seq, stored = _seq(range(1)), {}
        _begin(pool, seq)
        (old,) = seq.block_ids
        stored[False, old] = {0: "the token"}
        if "fork" in what:
            seq = _fork(pool, seq, "a-1")
            pool.grow(seq, 3)
        else:
            pool.swap_out(seq)
            _carry(pool, stored)
            del stored[False, old]  # there may be anything now
            pool.place(seq, 3)
        seq.add_token_id(9)
        seq.add_token_id(9)
        before = _state(pool, seq)
        given = f"{what}, and is swapped out before the moves are made"
        if pool.swap_out(seq):  # then a way back has to be there
            _carry(pool, stored)
            pool.place(seq, 3)
            _carry(pool, stored)
            got = stored.get((False, seq.block_ids[0]), {}).get(0)
            expect(f"{given}, and comes back: it reads", got, "the token")
        else:
            expect(f"{given} is False: {_STATE}", _state(pool, seq), before)
        _books(pool, given)


@_SUITE.property("BlockManager", hint="it was away, and has more to do now")
def _back_room(p: SimpleNamespace) -> None:
    """Coming back needs room for what is asked, not only for what went away."""
    pool = p.BlockManager(3, 2, num_swap_blocks=2)
    one, two = _seq(range(4)), _seq(range(4), "b")
    _begin(pool, one, 4)
    _begin(pool, two, 2)
    pool.swap_out(two)
    given = "2 tokens in CPU memory, 1 of 3 blocks of 2 is free"
    _no(f"{given}, place for 3", lambda: pool.place(two, 3), pool, one, two)
    expect(f"{given}: found", pool.found(two), 2)
    expect(f"{given}, place for 2", pool.place(two, 2), True)
    expect(f"{given}, place for 2: moves in", len(_moved(pool, "in")), 1)
    pool.swap_out(two)
    pool.release(one)
    _moved(pool)
    given = "2 tokens in CPU memory, all blocks are free, place for 4"
    expect(given, pool.place(two, 4), True)
    expect(f"{given}: number of blocks", len(two.block_ids), 2)
    back = [b for _, b in _moved(pool, "in")]
    expect(f"{given}: moved to", back, two.block_ids[:1])
    _books(pool, given)


@_SUITE.property("BlockManager", hint="the other one still reads there")
def _swap_shared(p: SimpleNamespace) -> None:
    """A fork that is swapped out leaves its parent what both held."""
    pool, parent = p.BlockManager(4, 2, num_swap_blocks=4), _seq(range(3))
    _begin(pool, parent)
    child, held = _fork(pool, parent, "a-1"), list(parent.block_ids)
    pool.swap_out(child)
    given = "2 blocks shared, the fork is swapped out"
    expect(f"{given}: the parent's blocks", parent.block_ids, held)
    expect(f"{given}: reference counts", _counts(pool, parent), [1, 1])
    expect(f"{given}: free blocks", len(pool.free), 2)
    _books(pool, given)
    pool.place(child, 3)
    common = set(child.block_ids) & set(held)
    expect(f"{given} and in: blocks of both", sorted(common), [])
    _books(pool, f"{given} and in")


@_SUITE.property("BlockManager", hint="where are its blocks at that time?")
def _swapped_release(p: SimpleNamespace) -> None:
    """A swapped sequence that is released gives its CPU blocks back."""
    pool = p.BlockManager(2, 2, num_swap_blocks=2)
    for turn in (1, 2):
        seq = _seq(range(4))
        _begin(pool, seq)
        given = f"2 blocks, 2 of CPU memory, turn {turn}"
        expect(f"{given}: swap_out", pool.swap_out(seq), True)
        pool.release(seq)
        expect(f"{given}, swap_out, release: free blocks", len(pool.free), 2)
        expect(f"{given}, swap_out, release: found", pool.found(_seq(range(4))), 0)
        _books(pool, f"{given}, swap_out, release")


@_SUITE.property("BlockManager", hint="after a swap all of its blocks are other ones")
def _swapped_offer(p: SimpleNamespace) -> None:
    """What came back from CPU memory can be offered again, from the beginning."""
    pool, one = _remembering(p, 4, 4), _seq(range(5))
    _begin(pool, one)
    pool.swap_out(one)
    other = _seq(range(50, 58), "b")
    _begin(pool, other)  # takes every block: nothing of the first is kept
    pool.release(other)
    pool.place(one, 5)
    given = "5 tokens swapped out and in"
    expect(f"{given}: found before offer", pool.found(_seq(range(5), "c")), 0)
    pool.offer(one, 5)
    expect(f"{given}, offered: found", pool.found(_seq(range(5), "c")), 4)
    _books(pool, given)


# ----- the books


@_SUITE.property("BlockManager", hint="shared blocks are stored once")
def _tokens_held(p: SimpleNamespace) -> None:
    """tokens_held counts the computed tokens in held blocks, shared ones once."""
    pool, parent = p.BlockManager(6, 2), _seq(range(3))
    expect("a new pool: tokens_held()", pool.tokens_held(), 0)
    pool.place(parent, 3)
    expect("room for 3, none computed: tokens_held()", pool.tokens_held(), 0)
    _go(pool, parent)
    expect("3 computed: tokens_held()", pool.tokens_held(), 3)
    child = _fork(pool, parent, "a-1")
    expect("3 computed, a fork: tokens_held()", pool.tokens_held(), 3)
    child.add_token_id(9)
    _go(pool, child)
    expect("... the fork writes 1: tokens_held()", pool.tokens_held(), 2 + 1 + 2)
    pool.release(parent)
    expect("... the parent goes: tokens_held()", pool.tokens_held(), 4)


@_SUITE.property("BlockManager", hint="asked is what began; found is what was there")
def _stats(p: SimpleNamespace) -> None:
    """stats() tells blocks, how many are held, tokens in them, and the share found."""
    pool = _remembering(p)
    wanted = {"blocks": 8, "blocks_held": 0, "tokens_held": 0, "prefix_hit_rate": 0.0}

    def told(given: str) -> None:
        got = {name: pool.stats().get(name) for name in wanted}
        expect(f"{given}: stats()", sorted(got.items()), sorted(wanted.items()))

    told("8 blocks of 2, nobody began")
    _begin(pool, _seq(range(5)))
    wanted |= {"blocks_held": 3, "tokens_held": 5}
    told("5 tokens began")
    _begin(pool, _seq(range(5), "b"))
    wanted |= {"blocks_held": 4, "tokens_held": 6, "prefix_hit_rate": 0.4}
    told("the same 5 again, 4 of them are found")
    late = _seq(range(50, 55), "c")
    pool.place(_seq(range(50, 60), "d"), 10)
    told("... and 10 more find no room")
    _begin(pool, late, 3)
    wanted |= {"blocks_held": 6, "tokens_held": 9, "prefix_hit_rate": 4 / 15}
    told("... and 5 strangers begin with 3 of their tokens")
    pool = p.BlockManager(8, 2, PrefixCache(8, 2), 8)
    one = _seq(range(5))
    _begin(pool, one)
    _begin(pool, _seq(range(5), "b"))
    pool.swap_out(one)
    pool.place(one, 5)
    wanted |= {"blocks_held": 6, "tokens_held": 10, "prefix_hit_rate": 0.4}
    told("5 tokens, the same again, the first are swapped out and in")


@_SUITE.property("BlockManager", hint="count it all again, and compare")
def _integrity(p: SimpleNamespace) -> None:
    """check_integrity is an AssertionError when tables, counts or free list are off."""

    def count_more(pool: Any, one: Sequence) -> None:
        pool.refs[one.block_ids[0]] += 1

    def count_less(pool: Any, one: Sequence) -> None:
        pool.refs[one.block_ids[0]] -= 1

    def count_free(pool: Any, one: Sequence) -> None:
        pool.refs[list(pool.refs).index(0)] = 1

    def negative(pool: Any, one: Sequence) -> None:
        pool.refs[list(pool.refs).index(0)] = -1

    def lose(pool: Any, one: Sequence) -> None:
        one.block_ids.pop()

    def twice(pool: Any, one: Sequence) -> None:
        pool.refs[one.block_ids[0]] += 1
        one.block_ids.append(one.block_ids[0])

    def take_free(pool: Any, one: Sequence) -> None:
        free = list(pool.refs).index(0)
        pool.refs[free] = 1
        one.block_ids.append(free)

    def leak(pool: Any, one: Sequence) -> None:
        pool.free.take()

    for what, corrupt in (
        ("a held block counts one holder more", count_more),
        ("a held block counts one holder less", count_less),
        ("a free block counts a holder", count_free),
        ("a free block counts -1 holders", negative),
        ("a table lost its last block", lose),
        ("a table names a free block", take_free),
        ("a table names a block twice", twice),
        ("a block is neither free nor held", leak),
    ):
        pool = p.BlockManager(8, 2)
        one, two = _seq(range(5)), _seq(range(50, 53), "b")
        _begin(pool, one)
        _begin(pool, two)
        _books(pool, "two sequences, nothing wrong")
        corrupt(pool, one)
        expect_error(f"{what}: check_integrity()", pool.check_integrity, AssertionError)


@_SUITE.property(
    "BlockManager", hint="which of the lines above goes with the last call?"
)
def _anything(p: SimpleNamespace) -> None:
    """Whatever happens in whatever order, everybody reads what he has written."""
    for caching in (False, True):
        for length in (4, 8, 16, 32, 64):
            for seed in range(45, 60):  # 59 swaps out what is yet to be copied
                calls: list[str] = []
                about = f"6 blocks of 2, 3 on the CPU, caching {caching}: "
                with on(lambda: about + "; ".join(calls)):  # noqa: B023
                    _play(p, caching, length, seed, calls)


_KINDS = ("begin", "go", "go", "fork", "fork", "release", "swap", "back")


def _play(
    p: SimpleNamespace, caching: bool, length: int, seed: int, calls: list[str]
) -> None:
    """Some random calls of a pool of 6 blocks, noted; books and contents after each.

    A step is one call or several: its moves are made, and its tokens computed, after
    the last of them.
    """
    rng = random.Random(seed)
    pool = _remembering(p, 6, 3) if caching else p.BlockManager(6, 2, None, 3)
    there: list[Sequence] = []
    away: list[Sequence] = []
    planned: list[Sequence] = []  # whose tokens the step has yet to compute
    stored: dict[tuple[bool, int], dict[int, tuple]] = {}  # (on the CPU, block): slots
    for number in range(length):
        kind = rng.choice(_KINDS)
        seq = rng.choice(there) if there else None
        # Who is planned has had his turn in this step.
        if rng.random() < 0.3 or (seq in planned and kind in ("go", "fork")):
            calls.append("the step is made")
            _make(pool, stored, planned)
        if kind == "begin":
            tokens = [1, 2, 3, 4, 5][: rng.randint(1, 5)]
            tokens[-1] = rng.choice([tokens[-1], 9])
            new = _seq(tokens, f"s{number}")
            calls.append(f"place({new.seq_id}, {len(tokens)}) of {tokens}")
            if pool.place(new, len(tokens)):
                there.append(new)
                planned.append(new)
        elif kind == "back" and not away:
            continue
        elif kind == "back":
            calls.append(f"place({away[0].seq_id}, {away[0].get_len()}), swapped out")
            if pool.place(away[0], away[0].get_len()):
                there.append(away.pop(0))
                planned.append(there[-1])
        elif seq is None:
            continue
        elif kind == "go":
            calls.append(f"grow({seq.seq_id}, {seq.get_len() + 1})")
            if pool.grow(seq, seq.get_len() + 1):
                seq.add_token_id(rng.randint(1, 9))
                planned.append(seq)
        elif kind == "fork":
            calls.append(f"fork({seq.seq_id}, s{number})")
            there.append(_fork(pool, seq, f"s{number}"))
        elif kind == "swap":
            calls.append(f"swap_out({seq.seq_id})")
            if pool.swap_out(seq):
                there.remove(seq)
                away.append(seq)
        else:
            calls.append(f"release({seq.seq_id})")
            pool.release(seq)
            there.remove(seq)
        planned = [each for each in planned if each in there]
        given = f"6 blocks of 2, 3 on the CPU, caching {caching}: {'; '.join(calls)}"
        held = Counter(i for each in there for i in each.block_ids)
        expect(f"{given}: refs", list(pool.refs), [held[i] for i in range(6)])
        expect(f"{given}: free blocks", len(pool.free), 6 - len(held))
        for each in there:
            if each not in planned:
                _read(stored, each, given)
        _books(pool, given)


def _carry(pool: Any, stored: dict) -> None:
    """Make the moves in the simulated blocks."""
    for kind, old, new in _moved(pool):
        stored[kind == "out", new] = dict(stored.get((kind == "in", old), {}))


def _make(pool: Any, stored: dict, planned: list[Sequence]) -> None:
    """Make the moves, then write the tokens of the `planned` to simulated blocks."""
    _carry(pool, stored)
    while planned:
        seq = planned.pop(0)
        pool.offer(seq, seq.get_len())
        tokens = tuple(seq.get_token_ids())
        for i in range(seq.num_computed, len(tokens)):
            block = stored.setdefault((False, seq.block_ids[i // 2]), {})
            block[i % 2] = tokens[: i + 1]
        seq.num_computed = len(tokens)


def _read(stored: dict, seq: Sequence, given: str) -> None:
    """Fail unless the blocks hold what `seq` is about to read."""
    tokens = tuple(seq.get_token_ids())
    for i in range(seq.num_computed):
        got = stored.get((False, seq.block_ids[i // 2]), {}).get(i % 2)
        what = f"{given}: {seq.seq_id} reads at token {i} what was computed after"
        expect(what, got, tokens[: i + 1])
