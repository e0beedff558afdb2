"""What has to be true of the exercises of notebook 11: tables, a reserve, holes."""

import random
from types import SimpleNamespace
from typing import Any

from folovllm_lite import block_manager as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler

_SUITE = paged_exercises = Suite(
    package,
    """Judge the exercises of notebook 11: `predict_pool`, `CarefulManager`, and
    `fragment` with `blocks_to_move`.
    """,
)


def _seq(name: str, tokens: int) -> Sequence:
    return Sequence(name, name, SequenceData([0] * tokens), SamplingParams())


def _begin(pool: Any, name: str, tokens: int) -> Sequence | None:
    """A sequence whose tokens are computed; None if there is no room."""
    seq = _seq(name, tokens)
    if not pool.place(seq, tokens):
        return None
    seq.num_computed = tokens
    return seq


# ----- 1. trace: nine calls


def _traced() -> dict[str, list]:
    """What the exercise's calls leave behind."""
    pool, copies = package.BlockManager(8, 4), []

    def fork(parent: Sequence, name: str) -> Sequence:
        child = parent.fork(name)
        pool.fork(parent, child)
        return child

    def go(seq: Sequence, tokens: int) -> None:
        assert pool.grow(seq, tokens)
        copies.extend(move[1:] for move in pool.moves)
        pool.moves, seq.num_computed = [], tokens  # every call is a step of its own

    a, b = _begin(pool, "a", 6), _begin(pool, "b", 4)
    a2 = fork(a, "a2")
    go(a, 7)
    go(a2, 7)
    b2 = fork(b, "b2")
    go(b, 5)
    go(b2, 6)
    pool.release(a)
    go(a2, 9)
    tables = {seq.seq_id: seq.block_ids for seq in (a2, b, b2)}
    return {**tables, "copies": copies, "free": sorted(pool.free.numbers)}


def _expect_traced(p: SimpleNamespace, *names: str) -> None:
    """The predictions under some keys, without telling the right ones."""
    got = p.predict_pool()
    for name in names:
        if not isinstance(got, dict) or name not in got:
            fail("predict_pool()", got, f"a dict with the key {name!r}")
        try:
            found = [list(x) if isinstance(x, tuple) else x for x in got[name]]
        except TypeError:
            found = None
        wanted = [list(x) if isinstance(x, tuple) else x for x in _traced()[name]]
        if found != wanted:
            fail(f"the puzzle's {name}", got[name], "what the calls leave behind")


@_SUITE.property(
    "predict_pool",
    hint="b's only block is full when it is forked: does anybody write into it again?",
)
def _full_block(p: SimpleNamespace) -> None:
    """The tables of b and b2 are right: they share what is full, and go on apart."""
    _expect_traced(p, "b", "b2")


@_SUITE.property(
    "predict_pool",
    hint="a copy is for who writes while somebody else holds the block; who is left "
    "alone with it?",
)
def _copies(p: SimpleNamespace) -> None:
    """The copies are those that are needed, each (from, to)."""
    _expect_traced(p, "copies")


@_SUITE.property(
    "predict_pool",
    hint="which blocks does a give up for good, and which goes out first after that?",
)
def _given_back(p: SimpleNamespace) -> None:
    """The table of a2, and the free blocks at the end, are right."""
    _expect_traced(p, "a2", "free")


# ----- 2. modify: a reserve for those who run


def _state(pool: Any, seq: Sequence) -> list:
    own = [list(seq.block_ids), seq.num_computed]
    return [len(pool.free), list(pool.refs), list(pool.holders), *own]


@_SUITE.property(
    "CarefulManager",
    hint="the pool's own constructor has to run too: super().__init__(...)",
)
def _no_reserve(p: SimpleNamespace) -> None:
    """With a reserve of 0 it is a BlockManager."""
    for tokens in (4, 8):  # to the block: the next property's
        pool, plain = p.CarefulManager(4, 4, 0), package.BlockManager(4, 4)
        for each in (pool, plain):
            _begin(each, "a", 4)
        given = f"CarefulManager(4, 4, 0), a holds 1 block, place for {tokens}"
        mine, other = _seq("b", tokens), _seq("b", tokens)
        expect(given, pool.place(mine, tokens), plain.place(other, tokens))
        state, wanted = _state(pool, mine), _state(plain, other)
        what = "free blocks, refs, holders, block_ids and num_computed of b"
        expect(f"{given}: {what}", state, wanted)
    pool = p.CarefulManager(4, 4, 0)
    seq = _begin(pool, "a", 4)
    pool.release(seq)
    given = "CarefulManager(4, 4, 0), a has computed 4, is released, place for 4"
    expect(given, pool.place(seq, 4), True)
    expect(f"{given}: num_computed", seq.num_computed, 0)
    expect_error(f"{given}, place again", lambda: pool.place(seq, 4), ValueError)


@_SUITE.property(
    "CarefulManager", hint="count what would be left after it, not what is there before"
)
def _keeps_reserve(p: SimpleNamespace) -> None:
    """Who begins beside others leaves the reserve free, to the block."""
    for reserve, tokens, wanted in (
        (2, 16, True), (2, 17, False), (1, 20, True), (1, 21, False), (5, 4, True),
        (5, 5, False), (6, 1, False),
    ):  # fmt: skip
        pool = p.CarefulManager(8, 4, reserve)
        _begin(pool, "a", 8)
        late = _seq("b", 40)  # the rest comes in later steps
        before = _state(pool, late)
        given = f"8 blocks of 4, reserve {reserve}, a holds 2, place for {tokens}"
        expect(given, pool.place(late, tokens), wanted)
        if not wanted:
            expect(f"{given} is False: what has changed", _state(pool, late), before)
    pool = p.CarefulManager(8, 4, 2)
    _begin(pool, "a", 8)
    gone = _seq("b", 16)
    pool.place(gone, 16)
    pool.release(gone)
    given = "8 blocks of 4, reserve 2, a holds 2, b had 4 and is gone, another b: place"
    expect(f"{given} for 17", pool.place(_seq("b", 17), 17), False)
    pool = p.CarefulManager(8, 4, 2)
    parent = _begin(pool, "a", 8)
    child = parent.fork("a2")
    pool.fork(parent, child)
    pool.release(parent)
    given = "8 blocks of 4, reserve 2, a held 2, a fork holds them still, b: place"
    expect(f"{given} for 17", pool.place(_seq("b", 17), 17), False)


@_SUITE.property("CarefulManager", hint="for whom is the reserve?")
def _growing(p: SimpleNamespace) -> None:
    """Who runs already may grow into the reserve."""
    pool = p.CarefulManager(4, 4, 2)
    a, b = _begin(pool, "a", 4), _begin(pool, "b", 4)
    if a is None or b is None:
        fail("4 blocks of 4, reserve 2, two of 4 tokens begin", "no room", "room")
    for seq, end in ((a, 5), (b, 5)):
        given = f"4 blocks of 4, reserve 2, a and b hold 4 tokens, {seq.seq_id} grows"
        expect(f"{given} to {end}", pool.grow(seq, end), True)
        seq.num_computed = end
    given = "4 blocks of 4, reserve 2, none is free, a has room in its own, it grows"
    expect(f"{given} to 8", pool.grow(a, 8), True)


@_SUITE.property(
    "CarefulManager", hint="if nobody runs, who will ever give anything back?"
)
def _alone(p: SimpleNamespace) -> None:
    """Who is alone may have the whole pool: or it would wait for ever."""
    for reserve in (1, 4, 9):
        pool = p.CarefulManager(4, 4, reserve)
        given = f"4 blocks of 4, reserve {reserve}, nobody is there, place for 16"
        seq = _seq("a", 16)
        expect(given, pool.place(seq, 16), True)
        pool.release(seq)
        pool.release(seq)
        seq = _seq("b", 16)
        expect(f"{given}, released twice, another", pool.place(seq, 16), True)
        pool.clear()
        seq = _seq("c", 16)
        expect(f"{given}, clear(), another", pool.place(seq, 16), True)
    pool = p.CarefulManager(4, 4, 1)
    given = "4 blocks of 4, reserve 1, nobody is there, place for 17"
    expect(given, pool.place(_seq("a", 17), 17), False)
    pool = p.CarefulManager(8, 4, 7)
    _begin(pool, "a", 8)
    given = "8 blocks of 4, reserve 7, a was alone and holds 2, place for 1 beside it"
    expect(given, pool.place(_seq("b", 1), 1), False)


def _crowd(seed: int) -> list:
    # Here, because `widgets` imports the pictures, and this is one suite of many.
    from folovllm_lite.widgets.schedule import Job

    rng = random.Random(seed)
    return [
        Job(f"j{i}", rng.randint(2, 12), rng.randint(2, 12), 1 + i // 2)
        for i in range(12)
    ]


def _served(pool: Any, seed: int) -> int:
    """Serve a crowd; how many preemptions there were."""
    from folovllm_lite.widgets.schedule import run_schedule

    scheduler = Scheduler(SchedulerConfig(64, 8), pool)
    check = getattr(pool, "check_integrity", lambda: None)
    return run_schedule(_crowd(seed), scheduler, lambda _: check()).preemptions()


@_SUITE.property("CarefulManager", hint="does everybody who waits begin some day?")
def _crowds(p: SimpleNamespace) -> None:
    """With a reserve every job of a crowd ends, and fewer are preempted in all."""
    plain = sum(_served(package.BlockManager(12, 4), seed) for seed in range(6))
    careful = sum(_served(p.CarefulManager(12, 4, 3), seed) for seed in range(6))
    if careful >= plain:
        fail(
            "6 crowds of 12 jobs, 12 blocks of 4, reserve 3: steps with a preemption",
            careful,
            f"fewer than the {plain} without a reserve",
        )


# ----- 3. design: holes


class _OnePiece:
    """A memory that keeps each sequence in one piece, in the first or best hole."""

    def __init__(self, slots: int, best: bool):
        self.slots, self.best = slots, best
        self.held: dict[str, tuple[int, int]] = {}  # name -> first slot, one past last

    def holes(self) -> list[tuple[int, int]]:
        """(slots, first) of each free piece."""
        edges = [(0, 0), *sorted(self.held.values()), (self.slots, self.slots)]
        pairs = zip(edges, edges[1:], strict=False)
        return [(b[0] - a[1], a[1]) for a, b in pairs if b[0] > a[1]]

    def place(self, name: str, tokens: int) -> bool:
        fits = [hole for hole in self.holes() if hole[0] >= tokens]
        if not fits:
            return False
        _, first = min(fits) if self.best else min(fits, key=lambda hole: hole[1])
        self.held[name] = (first, first + tokens)
        return True


_SIZES = (64, 128, 192, 256)


def _fragmented(p: SimpleNamespace, slots: int, best: bool = False) -> _OnePiece:
    """A memory after the learner's calls."""
    memory, calls = _OnePiece(slots, best), p.fragment(slots)
    if not isinstance(calls, list | tuple):
        fail(f"fragment({slots})", calls, "a list of calls")
    for number, call in enumerate(calls):
        given = f"fragment({slots}), call {number}"
        known = ("place", "release")
        if not isinstance(call, list | tuple) or not call or call[0] not in known:
            fail(given, call, '("place", name, tokens) or ("release", name)')
        if len(call) != (3 if call[0] == "place" else 2):
            fail(given, call, '("place", name, tokens) or ("release", name)')
        name = call[1]
        if (name in memory.held) == (call[0] == "place"):
            there = sorted(map(str, memory.held))
            fail(given, call, f"a name that fits: these are there: {there[:8]}")
        if call[0] == "release":
            del memory.held[name]
        elif not isinstance(call[2], int) or call[2] < 1:
            fail(given, call, "at least 1 token")
        elif not memory.place(name, call[2]):
            holes = sorted(hole for hole, _ in memory.holes())
            fail(given, call, f"a piece that fits; the holes are {holes}")
    return memory


@_SUITE.property("fragment", hint="go through your calls with memory of 64 slots")
def _possible(p: SimpleNamespace) -> None:
    """Every call can be made: there is room for each piece, and who leaves is there."""
    for slots in _SIZES:
        _fragmented(p, slots)


@_SUITE.property("fragment", hint="how long may the longest hole be?")
def _refused(p: SimpleNamespace) -> None:
    """Then no piece of a quarter of the slots fits, wherever one looks for it."""
    for slots in _SIZES:
        for best in (False, True):
            longest = max(
                [hole for hole, _ in _fragmented(p, slots, best).holes()] or [0]
            )
            if longest >= slots // 4:
                where = "the best" if best else "the first"
                fail(
                    f"fragment({slots}), each piece goes into {where} hole that fits",
                    f"a hole of {longest} slots",
                    f"none of {slots // 4}",
                )


@_SUITE.property(
    "fragment", hint="who has to stay so that a hole ends there, and who not?"
)
def _nearly_empty(p: SimpleNamespace) -> None:
    """And nine tenths of the slots are free all the same."""
    for slots in _SIZES:
        free = sum(hole for hole, _ in _fragmented(p, slots).holes())
        if free < 0.9 * slots:
            fail(
                f"fragment({slots})", f"{free} free slots", f"{0.9 * slots:.0f} or more"
            )


def _pools() -> list[tuple[list[int], int, int]]:
    """Free blocks, block size, tokens that want room."""
    rng, found = random.Random(0), []
    for free in ([], [3], [0, 2], [0, 2, 4, 6], [1, 5, 7]):
        for size in (1, 4):
            for tokens in (1, size, 2 * size, 2 * size + 1, 4 * size):
                found.append((free, size, tokens))
    for _ in range(40):
        free = sorted(rng.sample(range(16), rng.randint(0, 16)))
        found.append((free, rng.choice([1, 2, 4, 16]), rng.randint(1, 64)))
    return found


@_SUITE.property(
    "blocks_to_move",
    hint="what does place look at: which blocks are free, or how many?",
)
def _moves(p: SimpleNamespace) -> None:
    """It says what a BlockManager with these free blocks shows."""
    for free, size, tokens in _pools():
        pool = package.BlockManager(16, size)
        for number in range(16):
            _begin(pool, f"s{number}", size)
        for number in range(16):
            if number in free:
                pool.release(pool.holders[f"s{number}"])
        wanted = 0 if pool.place(_seq("late", tokens), tokens) else None
        got = p.blocks_to_move(list(free), size, tokens)
        expect(f"blocks_to_move({free}, {size}, {tokens})", got, wanted)
