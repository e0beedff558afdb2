"""What has to be true of whatever keeps keys and values for a scheduler."""

import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.harness import Suite, expect, fail, on
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams

_SUITE = memory = Suite(
    SimpleNamespace(Memory=lambda: BlockManager(6, 2, num_swap_blocks=6)),
    """Judge a Memory of `folovllm_lite.scheduler`: rows, blocks, or another.

    `checks.memory(Memory=lambda: Rows(3, 8))`: what is called makes a new memory each
    time, with room for two sequences of 6 tokens, and for 64 at most. How it keeps what
    it keeps is its own affair, so what only some can do (swap, share) may be answered
    with no.
    """,
)
_MOST = 64  # sequences: no judged memory has room for more


def _seq(tokens: Iterable[int], name: str = "a", **params: Any) -> Sequence:
    """A waiting sequence of these tokens."""
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams(**params))


def _new(number: int, length: int) -> Sequence:
    """The number-th sequence of a series of strangers."""
    first = 1000 * number
    return _seq(range(first, first + length), f"s{number}")


def _begin(kept: Any, seq: Sequence, end: int | None = None) -> bool:
    """Place `seq`, offer and compute its tokens; whether there was room."""
    end = seq.get_len() if end is None else end
    if not kept.place(seq, end):
        return False
    kept.offer(seq, end)
    seq.num_computed = end
    kept.moves = []
    return True


def _fork_of(kept: Any, parent: Sequence, name: str) -> Sequence:
    """A fork, which has nothing before the memory gives it something."""
    child = parent.fork(name)
    child.block_ids = []
    kept.fork(parent, child)
    return child


def _state(kept: Any, *seqs: Sequence) -> list:
    """What one can see of a memory from outside."""
    own = [(list(seq.block_ids), seq.num_computed) for seq in seqs]
    return [[tuple(move) for move in kept.moves], own]


_STATE = "moves, (block_ids, num_computed) of each"


class _Contents:
    """What a memory holds, simulated: by its moves, and by the block_ids of those who
    compute. One that keeps its addresses elsewhere can't be looked into.
    """

    def __init__(self, kept: Any):
        self.kept = kept
        self.size = getattr(kept, "block_size", kept.capacity)
        # (on the CPU, block): what stands in its slots, all tokens up to there
        self.stored: dict[tuple[bool, int], dict[int, tuple]] = {}

    def carry(self) -> None:
        """Make the moves."""
        for kind, old, new in self.kept.moves:
            held = self.stored.get((kind == "in", old), {})
            self.stored[kind == "out", new] = dict(held)
        self.kept.moves = []

    def compute(self, seq: Sequence) -> None:
        """Write all that `seq` misses."""
        self.carry()
        self.kept.offer(seq, seq.get_len())
        tokens = tuple(seq.get_token_ids())
        for i in range(seq.num_computed, len(tokens)) if seq.block_ids else ():
            block = self.stored.setdefault((False, seq.block_ids[i // self.size]), {})
            block[i % self.size] = tokens[: i + 1]
        seq.num_computed = len(tokens)

    def read(self, seq: Sequence, given: str) -> None:
        """Fail unless `seq` reads at each of its tokens what was computed there."""
        tokens = tuple(seq.get_token_ids())
        for i in range(seq.num_computed) if seq.block_ids else ():
            block = self.stored.get((False, seq.block_ids[i // self.size]), {})
            what = f"{given}: {seq.seq_id} reads at token {i} what came after"
            expect(what, block.get(i % self.size), tokens[: i + 1])


def _fill(kept: Any, length: int, first: int = 0) -> list[Sequence]:
    """Place strangers of `length` tokens until there is no room for one more."""
    there: list[Sequence] = []
    for number in range(first, first + _MOST + 1):
        seq = _new(number, length)
        if not _begin(kept, seq):
            return there
        there.append(seq)
    fail(f"sequences of {length} tokens are placed", f"room for {len(there)}", "an end")


@_SUITE.property("Memory", hint="room for its tokens, and none of them is computed")
def _begins(p: SimpleNamespace) -> None:
    """A prompt begins with place, and nothing of it is computed yet."""
    for length in (1, 3):
        kept, seq = p.Memory(), _seq(range(length))
        given = f"a new memory, {length} tokens"
        expect(f"{given}: found", kept.found(seq), 0)
        expect(f"{given}: place", kept.place(seq, length), True)
        expect(f"{given}, place: num_computed", seq.num_computed, 0)
        expect(f"{given}, place: moves", list(kept.moves), [])
        expect(f"{given}, place: its status", seq.status.name, "WAITING")


@_SUITE.property("Memory", hint="how long may a sequence be that is alone?")
def _capacity(p: SimpleNamespace) -> None:
    """A sequence that is alone has room for `capacity` tokens, and for no more."""
    kept = p.Memory()
    most = kept.capacity
    seq = _seq(range(most + 1))
    before = _state(kept, seq)
    given = f"capacity {most}, place for"
    expect(f"{given} {most + 1}", kept.place(seq, most + 1), False)
    expect(f"{given} {most + 1} is False: {_STATE}", _state(kept, seq), before)
    expect(f"{given} {most}", kept.place(seq, most), True)


@_SUITE.property("Memory", hint="one token more, again and again")
def _grows(p: SimpleNamespace) -> None:
    """It grows token by token up to `capacity`, and no further."""
    kept = p.Memory()
    most = kept.capacity
    seq = _seq(range(most + 1))
    _begin(kept, seq, 1)
    for end in range(2, most + 1):
        given = f"capacity {most}, a lone sequence, grow to {end}"
        expect(given, kept.grow(seq, end), True)
        seq.num_computed = end
        expect(f"{given}: moves", list(kept.moves), [])
    before = _state(kept, seq)
    given = f"capacity {most}, a lone sequence, grow to {most + 1}"
    expect(given, kept.grow(seq, most + 1), False)
    expect(f"{given} is False: {_STATE}", _state(kept, seq), before)
    kept, two = p.Memory(), [_new(number, 1) for number in (1, 2)]
    for seq in two:
        _begin(kept, seq)
    for end in range(2, 7):
        got = [kept.grow(seq, end) for seq in two]
        expect(f"two sequences grow to {end}", got, [True, True])
        for seq in two:
            seq.num_computed = end
    for seq in two:
        while kept.grow(seq, seq.num_computed + 1):
            seq.num_computed += 1
    left, ends = len(_fill(kept, 1, first=3)), [seq.num_computed for seq in two]
    given, kept = f"two grow to {ends} tokens and no further", p.Memory()
    got = [_begin(kept, _new(n, end)) for n, end in enumerate(ends, start=1)]
    expect(f"{given}; two of this length in a new memory: place", got, [True, True])
    there = len(_fill(kept, 1, first=3))
    expect(f"{given}, others of 1 token: room for as many as there", left, there)


@_SUITE.property("Memory", hint="look first, then take")
def _full(p: SimpleNamespace) -> None:
    """Who finds no room changes nothing, and begins when another has gone."""
    kept = p.Memory()
    length = max(1, kept.capacity // 2)
    there = _fill(kept, length)
    late = _new(500, length)
    before = _state(kept, late, *there)
    given = f"{len(there)} sequences of {length} tokens fill the memory, one more"
    for turn in ("place", "place again"):
        expect(f"{given}, {turn}", kept.place(late, length), False)
        expect(f"{given} is refused: {_STATE}", _state(kept, late, *there), before)
    kept.release(there[0])
    expect(f"{given}, the first is released, place", kept.place(late, length), True)
    reached = []
    for turns in (0, 3):
        kept = p.Memory()
        first, *others = _fill(kept, 1)
        most = max(1, kept.capacity - 1)
        answers = [kept.place(_new(500 + n, most), most) for n in range(turns)]
        expect(f"{len(others) + 1} of 1 token, {turns} more", any(answers), False)
        end = 1
        while end < kept.capacity and kept.grow(first, end + 1):
            first.num_computed = end = end + 1
        reached.append(end)
    given = "1 token each fills the memory; how far the first can grow"
    expect(f"{given} after 3 were refused", reached[1], reached[0])


@_SUITE.property("Memory", hint="a part of the room is no room")
def _no_growth(p: SimpleNamespace) -> None:
    """Who can't grow keeps what he has, and grows when others have gone."""
    for gone in (0, 1):
        kept = p.Memory()
        most = kept.capacity
        first, *others = _fill(kept, 1)
        given = f"{len(others) + 1} sequences of 1 token fill the memory"
        if gone:
            given += ", the last is released"
            kept.release(others.pop())
        for end in (most,) if gone else range(2, most + 1):
            before = _state(kept, first, *others)
            if kept.grow(first, end):
                first.num_computed = end
                continue
            what = f"{given}, the first can't grow to {end}"
            expect(f"{what}: {_STATE}", _state(kept, first, *others), before)
            for seq in others:
                kept.release(seq)
            got = kept.grow(first, end)
            expect(f"{what}, the others are released, grow", got, True)
            break


@_SUITE.property("Memory", hint="as much as it took, once")
def _gives_back(p: SimpleNamespace) -> None:
    """All that was released is there again, once; what holds nothing releases it."""
    kept = p.Memory()
    length = max(1, kept.capacity // 2)
    there = _fill(kept, length)
    given = f"room for {len(there)} sequences of {length} tokens"
    for turn in (1, 2):
        for seq in there:
            kept.release(seq)
            kept.release(seq)
        kept.release(_new(600, 1))
        again = _fill(kept, length, first=100 * turn)  # others, by other names
        what = f"{given}, all are released, turn {turn}: room for"
        expect(what, len(again), len(there))
        there = again


@_SUITE.property("Memory", hint="begin again")
def _cleared(p: SimpleNamespace) -> None:
    """clear() forgets everybody, and the moves that were to be made."""
    kept = p.Memory()
    length = max(1, kept.capacity // 2)
    there = _fill(kept, length)
    kept.swap_out(there[0])
    kept.clear()
    given = f"{len(there)} of {length} tokens, one is swapped out if it can be, clear()"
    expect(f"{given}: moves", list(kept.moves), [])
    alike = _seq(there[-1].get_token_ids(), "z")
    expect(f"{given}, one like the last: found", kept.found(alike), 0)
    expect(f"{given}: room for", len(_fill(kept, length)), len(there))
    kept.clear()
    parent = _seq(range(3))
    _begin(kept, parent)
    child = _fork_of(kept, parent, "a-1")
    kept.grow(child, 4)
    kept.clear()
    expect("3 tokens, a fork grows to 4, clear(): moves", list(kept.moves), [])


@_SUITE.property("Memory", hint="what does a scheduler do when the answer is no?")
def _swap(p: SimpleNamespace) -> None:
    """Who is swapped out comes back as he was; who can't be stays as he is."""
    answers = []
    for large in (False, True):
        kept = p.Memory()
        if large:
            seq = _new(1, kept.capacity)
            _begin(kept, seq)
            if kept.swap_out(seq):
                continue
            kept.release(seq)
        seq = _new(2, 1)
        _begin(kept, seq)
        answers.append(kept.swap_out(seq))
    given = "1 token, swap_out, after a sequence that was too large for it"
    expect(given, answers[-1], answers[0])
    kept = p.Memory()
    seq = _seq(range(max(1, kept.capacity // 2)))
    _begin(kept, seq)
    count, before = seq.num_computed, _state(kept, seq)
    given = f"a sequence of {count} tokens, swap_out"
    if not kept.swap_out(seq):
        expect(f"{given} is False: {_STATE}", _state(kept, seq), before)
        expect(f"{given} is False, grow", kept.grow(seq, count), True)
        return
    out = [tuple(move) for move in kept.moves]
    expect(f"{given}: kinds of moves", {move[0] for move in out}, {"out"})
    expect(f"{given}: num_computed", seq.num_computed, count)
    expect(f"{given}: found", kept.found(seq), count)
    kept.moves = []
    other = _new(1, 1)
    kept.place(other, 1)
    expect(f"{given}, place", kept.place(seq, count), True)
    expect(f"{given}, place: num_computed", seq.num_computed, count)
    back = [tuple(move) for move in kept.moves]
    wanted = [("in", move[2]) for move in out]
    expect(f"{given}, place: moves from", [move[:2] for move in back], wanted)


@_SUITE.property("Memory", hint="where is it, when it is nowhere here?")
def _swapped_release(p: SimpleNamespace) -> None:
    """Who is released while swapped out leaves nothing behind, however often."""
    kept = p.Memory()
    length = max(1, kept.capacity // 2)
    room = len(_fill(kept, length))
    kept.clear()
    answers = []
    for number in range(3):
        seq = _new(number, length)
        _begin(kept, seq)
        answers.append(kept.swap_out(seq))
        kept.release(seq)
        kept.moves = []
    given = f"a sequence of {length} tokens begins, is swapped out, is released"
    expect(f"{given}, 3 times: swap_out", answers, answers[:1] * 3)
    expect(f"{given}, 3 times: room for", len(_fill(kept, length)), room)


@_SUITE.property("Memory", hint="two futures, and one past")
def _fork(p: SimpleNamespace) -> None:
    """A fork and its parent go on side by side, and either may go first."""
    for first in (0, 1):
        kept = p.Memory()
        room = len(_fill(kept, 1))
        kept.clear()
        parent, contents = _seq(range(3)), _Contents(kept)
        kept.place(parent, 3)
        contents.compute(parent)
        child = _fork_of(kept, parent, "a-1")
        both = (parent, child)
        given = "3 tokens, a fork, both grow to 4"
        expect(given, [kept.grow(seq, 4) for seq in both], [True, True])
        expect(f"{given}: num_computed", [s.num_computed for s in both], [3, 3])
        for seq, token_id in zip(both, (7, 8), strict=True):
            seq.add_token_id(token_id)
            contents.compute(seq)
        for seq in both:
            contents.read(seq, f"{given}, one by token 7, one by 8")
        kept.release(both[first])
        given += f", {('the parent', 'the fork')[first]} is released"
        expect(f"{given}, the other grows to 5", kept.grow(both[1 - first], 5), True)
        kept.release(both[1 - first])
        kept.moves = []
        expect(f"{given}, then the other: room for", len(_fill(kept, 1)), room)


@_SUITE.property("Memory", hint="the last token's logits are what it is all for")
def _found(p: SimpleNamespace) -> None:
    """What is found is less than the prompt, changes nothing, and place keeps to it."""
    for length in (1, 2, 3, 4, 5):
        kept = p.Memory()
        _begin(kept, _seq(range(5)))
        seq = _seq(range(length), "b")
        given = f"5 tokens are offered, the first {length} of them ask"
        before = _state(kept, seq)
        count = kept.found(seq)
        expect(f"{given}, found: {_STATE}", _state(kept, seq), before)
        expect(f"{given}: found, again", kept.found(seq), count)
        if not 0 <= count < length:
            fail(f"{given}: found", count, f"0 to {length - 1}")
        expect(f"{given}: place", kept.place(seq, length), True)
        expect(f"{given}, place: num_computed", seq.num_computed, count)


@_SUITE.property("Memory", hint="who has computed what stands there?")
def _strangers(p: SimpleNamespace) -> None:
    """Nothing is found of what nobody offered, or of what was withdrawn."""
    kept = p.Memory()
    one = _seq(range(5))
    kept.place(one, 5)
    given = "5 tokens have room"
    expect(f"{given}, none is offered: found", kept.found(_seq(range(5), "b")), 0)
    kept.offer(one, 5)
    one.num_computed = 5
    expect(f"{given}, offered, others ask: found", kept.found(_new(1, 5)), 0)
    kept.withdraw(one)
    expect(f"{given}, withdrawn: found", kept.found(_seq(range(5), "b")), 0)
    kept.release(one)
    given += ", withdrawn and released"
    expect(f"{given}: found", kept.found(_seq(range(5), "b")), 0)


@_SUITE.property("Memory", hint="without its logits, what would be reported?")
def _scored(p: SimpleNamespace) -> None:
    """Who wants logprobs of his prompt computes all of it."""
    for count in (0, 2):
        kept = p.Memory()
        _begin(kept, _seq(range(5)))
        seq = _seq(range(5), "b", prompt_logprobs=count)
        given = f"5 tokens are offered, the same with prompt_logprobs={count}"
        expect(f"{given}: found", kept.found(seq), 0)
        kept.place(seq, 5)
        expect(f"{given}, place: num_computed", seq.num_computed, 0)


@_SUITE.property("Memory", hint="whoever reads the engine's stats adds them up")
def _told(p: SimpleNamespace) -> None:
    """stats() is a dict of numbers by name."""
    told = p.Memory().stats()
    expect("stats(): type", type(told).__name__, "dict")
    strange = {
        name: value
        for name, value in told.items()
        if not isinstance(name, str) or not isinstance(value, int | float)
    }
    expect("stats(): what is no number, or has no name", strange, {})


@_SUITE.property("Memory", hint="which of the calls above goes with the wrong token?")
def _reads_what_it_wrote(p: SimpleNamespace) -> None:
    """Whatever happens in whatever order, everybody reads what he has written."""
    for length in (4, 8, 16, 32):
        for seed in range(12):
            calls: list[str] = []
            with on(lambda: f"a new memory, {'; '.join(calls)}"):  # noqa: B023
                _play(p, length, seed, calls)


def _play(p: SimpleNamespace, length: int, seed: int, calls: list[str]) -> None:
    """Some random calls, noted; the simulated contents after each, by block_ids."""
    rng, kept = random.Random(seed), p.Memory()
    contents, most = _Contents(kept), min(6, kept.capacity)
    there: list[Sequence] = []
    for number in range(length):
        seq = rng.choice(there) if there else None
        kind = rng.choice(["place", "place", "grow", "grow", "fork", "release", "swap"])
        if kind == "place":
            tokens = [rng.choice([1, 2]) for _ in range(rng.randint(1, most))]
            seq = _seq(tokens, f"s{number}")
            calls.append(f"place({seq.seq_id}, {len(tokens)}) of {tokens}")
            if kept.place(seq, len(tokens)):
                there.append(seq)
                contents.compute(seq)
        elif seq is None:
            continue
        elif kind == "grow":
            calls.append(f"grow({seq.seq_id}, {seq.get_len() + 1})")
            if kept.grow(seq, seq.get_len() + 1):
                seq.add_token_id(rng.choice([1, 2]))
                contents.compute(seq)
        elif kind == "fork" and len(there) < 2:
            calls.append(f"fork({seq.seq_id}, s{number})")
            there.append(_fork_of(kept, seq, f"s{number}"))
            contents.carry()
        elif kind == "swap":
            calls.append(f"swap_out({seq.seq_id}), then place or release")
            if kept.swap_out(seq):
                contents.carry()
                if kept.place(seq, seq.get_len()):
                    contents.compute(seq)
                else:
                    kept.release(seq)
                    there.remove(seq)
        elif kind == "release":
            calls.append(f"release({seq.seq_id})")
            kept.release(seq)
            there.remove(seq)
        for each in there:
            contents.read(each, f"a new memory, {'; '.join(calls)}")
