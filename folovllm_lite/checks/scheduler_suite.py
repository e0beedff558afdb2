"""What has to be true of the scheduler, whoever wrote it."""

import random
from types import SimpleNamespace
from typing import Any

from folovllm_lite import scheduler as package
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.harness import Suite, expect, fail, on
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.prefix_cache import PrefixCache
from folovllm_lite.request import Sequence, SequenceData, SequenceStatus
from folovllm_lite.sampling_params import SamplingParams

_SUITE = scheduler = Suite(
    package,
    """Judge the pieces of `folovllm_lite.scheduler`, or some of them.

    `checks.scheduler(Scheduler=Mine)` judges a class, `checks.scheduler(chunk=mine)` a
    function, `checks.scheduler(module)` all of a module. `admit` is judged as the
    method `_admit` of the package's Scheduler. The memory is the package's own
    BlockManager.
    """,
    methods={"admit": "Scheduler._admit"},
)


def _at_most_two(missing: int, budget: int) -> int:
    """Another share: a chunk that leaves something of the budget."""
    return min(missing, budget, 2)


def _made(
    p: SimpleNamespace,
    budget: int = 16,
    seqs: int = 8,
    chunked: bool = False,
    blocks: int = 32,
    caching: bool = False,
    swap: int = 0,
    **functions: Any,
) -> Any:
    """A scheduler over blocks of 2 tokens; `functions` are its share and turns."""
    config = SchedulerConfig(budget, seqs, enable_chunked_prefill=chunked)
    free = PrefixCache(blocks, 2) if caching else None
    memory = BlockManager(blocks, 2, free, swap)
    share, turns = (p.chunk, p.decodes_first) if chunked else (p.whole, p.as_they_came)
    return p.Scheduler(config, memory, **{"share": share, "turns": turns, **functions})


def _seq(
    name: str,
    length: int,
    arrival: int = 0,
    priority: int = 0,
    width: int = 1,
    first: int = 0,
    **params: Any,
) -> Sequence:
    """A new sequence of `length` tokens; alike only if `first` is."""
    data = SequenceData(list(range(first, first + length)))
    order = (priority, arrival, 0)
    made = Sequence(name, f"{name}'s", data, SamplingParams(**params), order=order)
    made.width = width
    return made


def _several(scheduler: Any, *lengths: int) -> list[Sequence]:
    """Sequences a, b, c ... of these lengths, added in this order."""
    seqs = [
        _seq("abcdefgh"[i], length, i, first=100 * i)
        for i, length in enumerate(lengths)
    ]
    for seq in seqs:
        scheduler.add(seq)
    return seqs


def _shares(step: Any) -> dict[str, tuple[int, int]]:
    """Who computes which tokens: seq_id to (first, number)."""
    return {w.seq.seq_id: (w.start, w.count) for w in _sorted(step)}


def _sorted(step: Any) -> list:
    return sorted(step.work.values(), key=lambda work: work.seq.seq_id)


def _finish(scheduler: Any, step: Any) -> Any:
    """Compute a step, and give a token to everybody who has caught up."""
    scheduler.advance(step)
    for work in step.work.values():
        if work.seq.num_missing == 0:
            work.seq.add_token_id(7)
    return step


def _step(scheduler: Any) -> Any:
    return _finish(scheduler, scheduler.schedule())


def _names(seqs: list[Sequence]) -> list[str]:
    return [seq.seq_id for seq in seqs]


def _status(seqs: list[Sequence]) -> list[str]:
    return [seq.status.name for seq in seqs]


def _moves(step: Any, kind: str) -> list[tuple[int, int]]:
    """Where the moves of a kind go: (from, to), in their order."""
    return [(old, new) for each, old, new in step.moves if each == kind]


def _books(scheduler: Any, given: str) -> None:
    """Fail if the pool says that something is wrong."""
    try:
        scheduler.memory.check_integrity()
    except AssertionError as error:
        fail(f"{given}: check_integrity()", f"AssertionError: {error}", "no error")


# ----- the functions that are handed in


@_SUITE.property("whole", hint="what if one token too few is left?")
def _whole(p: SimpleNamespace) -> None:
    """With whole a step takes all that is missing, or nothing."""
    for missing, budget, wanted in ((1, 1, 1), (3, 4, 3), (4, 4, 4), (5, 4, 0)):
        expect(f"whole({missing}, {budget})", p.whole(missing, budget), wanted)
    expect("whole(0, 4)", p.whole(0, 4), 0)
    expect("whole(2, 0)", p.whole(2, 0), 0)


@_SUITE.property("chunk", hint="two counts limit it")
def _chunk(p: SimpleNamespace) -> None:
    """With chunk it takes what the budget leaves, and no more than is missing."""
    for missing, budget, wanted in (
        (1, 1, 1),
        (3, 4, 3),
        (5, 4, 4),
        (9, 7, 7),
        (2, 0, 0),
        (0, 4, 0),
        (1800, 64, 64),
    ):
        expect(f"chunk({missing}, {budget})", p.chunk(missing, budget), wanted)


def _turns(
    turns: Any, counts: tuple[int, ...], names: str = "abcdefgh"
) -> tuple[str, bool]:
    """The order in which sequences of so many missing tokens go; is it a new list?"""
    running = [_seq(names[i], count + 2 * i, i) for i, count in enumerate(counts)]
    for i, seq in enumerate(running):
        seq.num_computed = 2 * i  # so that what is missing is not the length
    before = _names(running)
    got = turns(running)
    if not isinstance(got, list | tuple):  # a generator would see the list change
        fail(f"turns of {counts} missing tokens: the answer", got, "a list")
    expect(f"turns of {counts} missing tokens: its list", _names(running), before)
    return "".join(_names(list(got))), got is not running


@_SUITE.property("as_they_came", hint="who loses its place leaves the scheduler's list")
def _as_they_came(p: SimpleNamespace) -> None:
    """as_they_came keeps the order, in a list of its own."""
    for counts in ((1,), (1, 3, 1), (5, 1)):
        wanted = ("abc"[: len(counts)], True)
        given = f"as_they_came, missing {counts}: order, a new list"
        expect(given, _turns(p.as_they_came, counts), wanted)


@_SUITE.property("decodes_first", hint="only the kind decides, not the number")
def _decodes_lead(p: SimpleNamespace) -> None:
    """decodes_first lets those go first that miss one token; else the order stays."""
    for counts, wanted in (
        ((), ""),
        ((1,), "a"),
        ((2, 1), "ba"),
        ((3, 1, 2, 1), "bdac"),
        ((2, 3, 1), "cab"),
        ((4, 1, 2, 1, 1, 3, 1), "bdegacf"),
        ((0, 2, 1), "acb"),
    ):
        given = f"decodes_first, missing {counts}: order, a new list"
        got = _turns(p.decodes_first, counts)
        if 0 in counts:  # one that misses nothing goes anywhere
            got, wanted = ("".join(x for x in got[0] if x != "a"), got[1]), "cb"
        expect(given, got, (wanted, True))
    got = _turns(p.decodes_first, (3, 1, 2, 1), "dcba")
    given = "decodes_first, d, c, b and a in this order, missing (3, 1, 2, 1)"
    expect(given, got, ("cadb", True))


# ----- one sequence


@_SUITE.property("Scheduler", hint="to be admitted is to get blocks, work and a place")
def _admission(p: SimpleNamespace) -> None:
    """A prompt that fits gets blocks, computes all of its tokens, and is running."""
    for length in (1, 3):
        made = _made(p)
        (seq,) = _several(made, length)
        expect(f"add: waiting, {length} tokens", _names(made.waiting), ["a"])
        step = made.schedule()
        given = f"a prompt of {length} tokens, schedule()"
        expect(f"{given}: work", _shares(step), {"a": (0, length)})
        expect(f"{given}: blocks of 2", len(seq.block_ids), (length + 1) // 2)
        expect(f"{given}: status", seq.status.name, "RUNNING")
        lists = (_names(made.waiting), _names(made.running))
        expect(f"{given}: waiting, running", lists, ([], ["a"]))
        expect(f"{given}: the work is that of (seq_id)", list(step.work), ["a"])
        expect(f"{given}: num_tokens", step.num_tokens, length)
    made = _made(p)
    step = made.schedule()
    expect("nothing waits, schedule(): work", _shares(step), {})


@_SUITE.property("Scheduler", hint="planned isn't done: who calls advance, and when?")
def _advance(p: SimpleNamespace) -> None:
    """Tokens count as computed in advance() and not before; then one is missing."""
    made = _made(p)
    (seq,) = _several(made, 3)
    step = made.schedule()
    expect("a prompt of 3, schedule(): num_computed", seq.num_computed, 0)
    made.advance(step)
    expect("... advance(): num_computed", seq.num_computed, 3)
    expect("... before a token is sampled: work", _shares(made.schedule()), {})
    for length in (4, 5):
        seq.add_token_id(7)
        step = made.schedule()
        given = f"a token is added, {length} in all, schedule()"
        expect(f"{given}: work", _shares(step), {"a": (length - 1, 1)})
        expect(f"{given}: num_computed", seq.num_computed, length - 1)
        made.advance(step)
        expect(f"{given}, advance(): num_computed", seq.num_computed, length)
        expect(f"{given}: blocks of 2", len(seq.block_ids), (length + 1) // 2)


@_SUITE.property("Scheduler", hint="order is a tuple, and tuples compare")
def _priorities(p: SimpleNamespace) -> None:
    """A lower priority goes first, and of two equal ones the earlier arrival."""
    for orders, wanted in (
        (((1, 0), (0, 1)), "ba"),
        (((0, 0), (0, 1)), "ab"),
        (((0, 1), (0, 0)), "ba"),
        (((1, 0), (0, 1), (1, 2), (-1, 3)), "dbac"),
    ):
        made = _made(p)
        seqs = [
            _seq("abcd"[i], 1, arrival, priority)
            for i, (priority, arrival) in enumerate(orders)
        ]
        for seq in seqs:
            made.add(seq)
        got = "".join(made.schedule().work)
        given = f"(priority, arrival) of a, b ...: {orders}: the order of their work"
        expect(given, got, wanted)


@_SUITE.property("Scheduler", hint="it may stand in either list, or in none")
def _remove(p: SimpleNamespace) -> None:
    """What is removed stands nowhere and holds nothing, wherever it was before."""
    made = _made(p, seqs=1)
    a, b = _several(made, 3, 3)
    _step(made)
    for seq, where in ((b, "waits"), (a, "runs"), (a, "is gone already")):
        made.remove(seq)
        given = f"a sequence that {where} is removed"
        left = [seq.seq_id in _names(q) for q in (made.waiting, made.running)]
        expect(f"{given}: still in waiting, in running", left, [False, False])
        expect(f"{given}: block_ids", seq.block_ids, [])
    expect("both are removed: free blocks of 32", len(made.memory.free), 32)
    expect("both are removed: work", _shares(made.schedule()), {})


@_SUITE.property("Scheduler", hint="whom does the memory still know?")
def _clear(p: SimpleNamespace) -> None:
    """clear() forgets everybody, and all of the memory is free again."""
    made = _made(p, seqs=1)
    _several(made, 3, 3)
    _step(made)
    made.clear()
    given = "one runs, one waits, clear()"
    lists = (_names(made.waiting), _names(made.running))
    expect(f"{given}: waiting, running", lists, ([], []))
    expect(f"{given}: free blocks of 32", len(made.memory.free), 32)
    expect(f"{given}: work", _shares(made.schedule()), {})
    (seq,) = _several(made, 3)
    expect(f"{given}, a new prompt: work", _shares(_step(made)), {"a": (0, 3)})
    _books(made, given)


# ----- limits


@_SUITE.property("Scheduler", hint="subtract what each takes, as you go")
def _budget(p: SimpleNamespace) -> None:
    """A step never has more tokens than max_num_batched_tokens."""
    for budget, lengths, wanted in (
        (4, (2, 2, 2), {"a": (0, 2), "b": (0, 2)}),
        (4, (4, 1), {"a": (0, 4)}),
        (5, (2, 2, 1), {"a": (0, 2), "b": (0, 2), "c": (0, 1)}),
    ):
        made = _made(p, budget)
        _several(made, *lengths)
        given = f"max_num_batched_tokens {budget}, prompts of {lengths}"
        expect(f"{given}: work", _shares(made.schedule()), wanted)
    made = _made(p, 2)
    _several(made, 1, 1, 1, 1)
    _step(made)
    expect(
        "budget 2, two decode, two wait: work", list(_shares(_step(made))), ["a", "b"]
    )
    made.config.max_num_batched_tokens = 1
    expect("budget 1, two decode: work", list(_shares(_step(made))), ["a"])


@_SUITE.property("Scheduler", hint="half a prompt is a chunk; may there be one?")
def _whole_prompts(p: SimpleNamespace) -> None:
    """Served whole, a prompt is computed at once, or waits."""
    made = _made(p, 4)
    _several(made, 3, 3)
    given = "budget 4, prompts of 3 and 3"
    expect(f"{given}: work", _shares(_step(made)), {"a": (0, 3)})
    expect(
        f"{given}, next step: work", _shares(_step(made)), {"a": (3, 1), "b": (0, 3)}
    )
    made = _made(p, 4)
    _several(made, 5)
    given = "budget 4, nothing runs, a prompt of 5"
    expect(f"{given}: work", _shares(_step(made)), {})
    expect(f"{given}: waiting", _names(made.waiting), ["a"])


@_SUITE.property("Scheduler", hint="min of two counts, and start where it ended")
def _chunks(p: SimpleNamespace) -> None:
    """Served in chunks, it takes what the budget leaves and goes on where it ended."""
    made = _made(p, 4, chunked=True)
    (seq,) = _several(made, 9)
    given = "chunks, budget 4, a prompt of 9"
    for number, share in enumerate([(0, 4), (4, 4), (8, 1), (9, 1)], 1):
        expect(f"{given}, step {number}: work", _shares(_step(made)), {"a": share})
        blocks = (sum(share) + 1) // 2
        expect(f"{given}, step {number}: blocks of 2", len(seq.block_ids), blocks)
    made = _made(p, 4, chunked=True)
    _several(made, 3, 3, 3)
    given = "chunks, budget 4, prompts of 3, 3 and 3"
    for number, wanted in enumerate(
        (
            {"a": (0, 3), "b": (0, 1)},
            {"a": (3, 1), "b": (1, 2), "c": (0, 1)},
            {"a": (4, 1), "b": (3, 1), "c": (1, 2)},
        ),
        1,
    ):
        expect(f"{given}, step {number}: work", _shares(_step(made)), wanted)

    made = _made(p, share=_at_most_two)
    _several(made, 5, 3)
    given = "share: 2 tokens at most, budget 16, prompts of 5 and 3"
    for number, wanted in enumerate(
        (
            {"a": (0, 2), "b": (0, 2)},
            {"a": (2, 2), "b": (2, 1)},
            {"a": (4, 1), "b": (3, 1)},
        ),
        1,
    ):
        expect(f"{given}, step {number}: work", _shares(_step(made)), wanted)


@_SUITE.property("Scheduler", hint="who waits for whom if the chunk goes first?")
def _decodes_first(p: SimpleNamespace) -> None:
    """Who decodes gets a token before any chunk does; chunks share what is left."""
    made = _made(p, 4, chunked=True)
    seqs = _several(made, 2, 2)
    _step(made)
    late = _seq("c", 8, arrival=-1, priority=-1, first=200)  # before the others
    made.add(late)
    wanted = {"a": (2, 1), "b": (2, 1), "c": (0, 2)}
    given = "chunks, budget 4, a and b decode, c has 8 tokens and priority"
    expect(f"{given}: work", _shares(_step(made)), wanted)
    wanted = {"a": (3, 1), "b": (3, 1), "c": (2, 2)}
    expect(f"{given}, next step: work", _shares(_step(made)), wanted)
    made.remove(seqs[0])
    wanted = {"b": (4, 1), "c": (4, 3)}
    expect(f"{given}, a is removed: work", _shares(_step(made)), wanted)


@_SUITE.property("Scheduler", hint="count those that run already, too")
def _max_seqs(p: SimpleNamespace) -> None:
    """Never do more than max_num_seqs sequences run."""
    for count in (1, 2):
        made = _made(p, seqs=count)
        seqs = _several(made, 1, 1, 1, 1)
        for number in (1, 2):
            got = list(_shares(_step(made)))
            given = f"max_num_seqs {count}, 4 prompts, step {number}: work of"
            expect(given, got, _names(seqs[:count]))
        made.remove(seqs[0])
        got = list(_shares(_step(made)))
        given = f"max_num_seqs {count}, one is removed: work of"
        expect(given, got, _names(seqs[1 : count + 1]))
    made = _made(p, seqs=1)
    _several(made, 1, 1)
    made.advance(made.schedule())
    given = "max_num_seqs 1, a runs and has no new token yet, b waits: work"
    expect(given, _shares(made.schedule()), {})


@_SUITE.property("Scheduler", hint="how many will it be in the next step?")
def _width(p: SimpleNamespace) -> None:
    """Sequences that are still to be forked count as many already."""
    made = _made(p, seqs=3)
    a, b = _seq("a", 2, 0, width=2), _seq("b", 2, 1, width=2)
    made.add(a)
    made.add(b)
    given = "max_num_seqs 3, two prompts of width 2"
    expect(f"{given}: work", list(_shares(made.schedule())), ["a"])
    for most, widths, wanted in ((2, (3,), []), (3, (2, 1, 1), ["a", "b"])):
        made = _made(p, seqs=most)
        for i, width in enumerate(widths):
            made.add(_seq("abc"[i], 2, i, width=width))
        given = f"max_num_seqs {most}, nothing runs, widths {widths}: work of"
        expect(given, list(_shares(made.schedule())), wanted)
    made = _made(p, seqs=3)
    one, a = _seq("a", 2, 0), _seq("b", 2, 1, width=3)
    made.add(one)
    made.add(a)
    given = "max_num_seqs 3, one of width 1 before one of width 3"
    expect(f"{given}: work", list(_shares(_step(made))), ["a"])
    made.remove(one)
    expect(f"{given}, the first ends: work", list(_shares(_step(made))), ["b"])
    made = _made(p, seqs=3, chunked=True, budget=2)
    a, b = _seq("a", 6, 0, width=3), _seq("b", 1, 1)
    made.add(a)
    made.add(b)
    _step(made)
    made.config.max_num_batched_tokens = 8
    given = "max_num_seqs 3, a chunk of one of width 3 is computed"
    expect(f"{given}: work", _shares(_step(made)), {"a": (2, 4)})


@_SUITE.property(
    "Scheduler", hint="which blocks does a fork begin with, and at which place?"
)
def _fork(p: SimpleNamespace) -> None:
    """A fork runs beside its parent on the same blocks, and the first writer copies."""
    made = _made(p, seqs=2)
    (parent,) = _several(made, 3)
    made.add(_seq("x", 1, 9))  # waits: the room is the fork's
    parent.width = 2
    made.advance(made.schedule())
    parent.width = 1
    child = parent.fork("a-1")
    child.order = (0, 0, 1)
    made.fork(parent, child)
    expect("a fork: running", _names(made.running), ["a", "a-1"])
    shared = list(parent.block_ids)
    expect("a fork: block_ids", child.block_ids, shared)
    for seq in (parent, child):
        seq.add_token_id(7)
    step = made.schedule()
    given = "3 tokens in blocks of 2, a fork, both write"
    expect(f"{given}: work", _shares(step), {"a": (3, 1), "a-1": (3, 1)})
    copies = _moves(step, "copy")
    expect(f"{given}: number of copies", len(copies), 1)
    expect(f"{given}: copied from", copies[0][0], shared[1])
    last = [seq.block_ids[1] for seq in (parent, child)]
    expect(f"{given}: one block", last[0] == last[1], False)
    expect(f"{given}: copied to one of theirs", copies[0][1] in last, True)
    _books(made, given)
    made = _made(p)
    (parent,) = _several(made, 3)
    made.add(_seq("y", 1, 9, first=50))
    _step(made)
    child = parent.fork("a-1")
    child.order = (0, 0, 1)
    made.fork(parent, child)
    given = "a fork while y runs, which came later: running, in order"
    expect(given, _names(made.running), ["a", "a-1", "y"])


# ----- order


@_SUITE.property("Scheduler", hint="what has to wait stops everybody behind it")
def _fcfs(p: SimpleNamespace) -> None:
    """Nobody overtakes: who doesn't fit keeps those behind waiting too."""
    for what, options, lengths in (
        ("tokens: budget 4", {"budget": 4}, (3, 3, 1)),
        ("blocks: 4 of 2 tokens", {"blocks": 4}, (4, 6, 1)),
    ):
        made = _made(p, **options)
        _several(made, *lengths)
        given = f"{what}, prompts of {lengths}"
        expect(f"{given}: work of", list(_shares(made.schedule())), ["a"])
        expect(f"{given}: waiting", _names(made.waiting), ["b", "c"])
    made = _made(p, seqs=2)
    for seq in (_seq("a", 1, 0), _seq("b", 1, 1, width=2), _seq("c", 1, 2)):
        made.add(seq)
    given = "max_num_seqs 2, widths of 1, 2 and 1"
    expect(f"{given}: work of", list(_shares(made.schedule())), ["a"])


# ----- prefix hits


@_SUITE.property("Scheduler", hint="a hit is a larger start; what is left to count?")
def _prefix(p: SimpleNamespace) -> None:
    """A prefix hit is a larger start, and only the rest takes tokens of the budget."""
    made = _made(p, 8, caching=True)
    one = _seq("a", 7)
    made.add(one)
    _step(made)
    two = _seq("b", 8, 1)
    made.add(two)
    made.add(_seq("c", 5, 2, first=200))
    step = made.schedule()
    given = "budget 8, 7 tokens are there, prompts of these + 1 and of 5 others"
    wanted = {"a": (7, 1), "b": (6, 2), "c": (0, 5)}
    expect(f"{given}: work", _shares(step), wanted)
    expect(f"{given}: common blocks", two.block_ids[:3], one.block_ids[:3])
    _finish(made, step)
    _books(made, given)


@_SUITE.property("Scheduler", hint="who is next may begin like the one before")
def _offered(p: SimpleNamespace) -> None:
    """Who begins like a neighbour of the same step shares the blocks that the neighbour
    is about to fill, and stands behind it.
    """
    for lengths, wanted in (
        ((5, 5), {"a": (0, 5), "b": (4, 1)}),
        ((4, 5), {"a": (0, 4), "b": (4, 1)}),
        ((3, 5), {"a": (0, 3), "b": (2, 3)}),
        ((7, 3), {"a": (0, 7), "b": (2, 1)}),
        ((1, 5), {"a": (0, 1), "b": (0, 5)}),
    ):
        made = _made(p, caching=True)
        seqs = [_seq("a", lengths[0]), _seq("b", lengths[1], 1)]
        for seq in seqs:
            made.add(seq)
        step = made.schedule()
        given = f"{lengths[0]} and {lengths[1]} tokens that begin alike, in one step"
        expect(f"{given}: work", _shares(step), wanted)
        expect(f"{given}: its order", list(step.work), ["a", "b"])
        hits = wanted["b"][0] // 2
        common = [seq.block_ids[:hits] for seq in seqs]
        expect(f"{given}: common blocks", common[1], common[0])
        _finish(made, step)
        _books(made, given)
    made = _made(p, caching=True)
    one = _seq("a", 2)
    for token_id in (2, 3, 4):  # as if it came back with what it has generated
        one.add_token_id(token_id)
    made.add(one)
    made.add(_seq("b", 5, 1))
    given = "2 tokens and 3 generated ones, and a prompt of the same 5, in one step"
    got = _shares(made.schedule())
    expect(f"{given}: work", got, {"a": (0, 5), "b": (4, 1)})
    made = _made(p, caching=True, share=_at_most_two)
    for i, length in enumerate((6, 5)):
        made.add(_seq("ab"[i], length, i))
    given = "share: 2 tokens at most, 6 and 5 tokens that begin alike"
    got = _shares(made.schedule())
    expect(f"{given}: work", got, {"a": (0, 2), "b": (2, 2)})


@_SUITE.property("Scheduler", hint="a chunk that runs on fills blocks, too")
def _offered_by_a_chunk(p: SimpleNamespace) -> None:
    """What a running chunk fills in a step, a prompt admitted in that step finds."""
    for lengths, wanted in (
        ((6, 5), {"a": (4, 2), "b": (4, 1)}),
        ((7, 7), {"a": (4, 3), "b": (6, 1)}),
    ):
        made = _made(p, 4, chunked=True, caching=True)
        made.add(_seq("a", lengths[0]))
        _step(made)
        made.add(_seq("b", lengths[1], 1))
        given = f"budget 4, 4 of {lengths[0]} tokens done, {lengths[1]} arrive: work"
        expect(given, _shares(made.schedule()), wanted)


# ----- preemption


@_SUITE.property("Scheduler", hint="whose loss hurts those before it the least?")
def _victim(p: SimpleNamespace) -> None:
    """When blocks run out the last in order loses its own, until the others fit."""
    made = _made(p, blocks=4)
    a, b = _several(made, 4, 4)
    _step(made)
    step = made.schedule()
    given = "4 blocks of 2, a and b hold 2 each, both go on"
    expect(f"{given}: work", _shares(step), {"a": (4, 1)})
    expect(f"{given}: preempted", len(step.preempted), 1)
    expect(f"{given}: status", _status([a, b]), ["RUNNING", "WAITING"])
    expect(f"{given}: blocks of b", b.block_ids, [])
    lists = (_names(made.running), _names(made.waiting))
    expect(f"{given}: running, waiting", lists, (["a"], ["b"]))
    expect(f"{given}: who was preempted", _names(step.preempted), ["b"])
    _books(made, given)
    made = _made(p, blocks=3)
    a, *_ = _several(made, 2, 1, 1)
    _step(made)
    for _ in range(3):
        a.add_token_id(7)
    step = made.schedule()
    given = "3 blocks of 2, a, b and c hold one each, a needs two more"
    expect(f"{given}: preempted", len(step.preempted), 2)
    expect(f"{given}: waiting", _names(made.waiting), ["b", "c"])
    expect(f"{given}: work", _shares(step), {"a": (2, 4)})
    _books(made, given)


@_SUITE.property("Scheduler", hint="where are the keys and values of its tokens now?")
def _lost(p: SimpleNamespace) -> None:
    """Without its blocks no token of a victim counts as computed, and all are kept."""
    made = _made(p, blocks=4)
    _, b = _several(made, 4, 4)
    _step(made)
    made.schedule()
    given = "4 blocks of 2, a and b hold 2 each, both go on, b is preempted"
    expect(f"{given}: num_computed of b", b.num_computed, 0)
    expect(f"{given}: tokens of b", b.get_token_ids(), [100, 101, 102, 103, 7])


@_SUITE.property("Scheduler", hint="the last in which order: of arrival alone?")
def _victim_by_priority(p: SimpleNamespace) -> None:
    """The victim is the last in the order of priority, however early it came."""
    made = _made(p, blocks=4)
    a, b = _seq("a", 4, 0, priority=1), _seq("b", 4, 1, first=100)
    made.add(a)
    made.add(b)
    _step(made)
    step = made.schedule()
    given = "4 blocks, a (priority 1) came before b (priority 0), both need one more"
    expect(f"{given}: work of", list(_shares(step)), ["b"])
    expect(f"{given}: status", _status([a, b]), ["WAITING", "RUNNING"])
    made = _made(p, blocks=4)
    (a,) = _several(made, 4)
    _step(made)
    b = _seq("b", 1, 1, priority=-1, first=100)
    made.add(b)
    _step(made)
    given = "4 blocks, a runs, b (priority -1) comes later"
    expect(f"{given}: running", sorted(_names(made.running)), ["a", "b"])
    _step(made)
    expect(f"{given}, both need one more: work of", list(_shares(_step(made))), ["b"])
    expect(f"{given}: status", _status([a, b]), ["WAITING", "RUNNING"])


@_SUITE.property("Scheduler", hint="its output is computed again like a prompt")
def _recompute(p: SimpleNamespace) -> None:
    """A preempted sequence comes back to its old place and is computed from 0."""
    made = _made(p, blocks=5)
    a, b = _several(made, 4, 3)
    _step(made)
    made.add(_seq("c", 1, 2, first=200))
    _step(made)  # c has to wait: all 5 blocks are held
    step = _step(made)
    given = "5 blocks of 2, a and b run, c waits, b is preempted"
    expect(f"{given}: preempted", len(step.preempted), 1)
    expect(f"{given}: waiting", _names(made.waiting), ["b", "c"])
    tokens = b.get_token_ids()
    expect(f"{given}: tokens of b", tokens, [100, 101, 102, 7, 7])
    made.remove(a)
    step = made.schedule()
    given += ", a ends"
    expect(f"{given}: work", _shares(step), {"b": (0, 5), "c": (0, 1)})
    expect(f"{given}: running", _names(made.running), ["b", "c"])
    _finish(made, step)
    expect(f"{given}, next step: work", _shares(_step(made))["b"], (5, 1))
    _books(made, given)
    made = _made(p, blocks=6)
    a, b = _several(made, 5, 2)
    _step(made)
    for index in (1, 2):
        child = b.fork(f"b-{index}")
        child.order = (0, 1, index)
        made.fork(b, child)
    a.add_token_id(7)
    step = _step(made)
    given = "6 blocks of 2, a and three of one request run, two of these are preempted"
    expect(f"{given}: work of", list(_shares(step)), ["a", "b"])
    expect(f"{given}: waiting", _names(made.waiting), ["b-1", "b-2"])
    made.remove(a)
    _step(made)
    expect(f"{given}, a ends: running", _names(made.running), ["b", "b-1", "b-2"])


@_SUITE.property("Scheduler", hint="what it lost a moment ago is free now")
def _no_admission(p: SimpleNamespace) -> None:
    """In a step that preempts nobody is admitted, even if there is room."""
    made = _made(p, blocks=5)
    _several(made, 4, 5)
    _step(made)
    made.add(_seq("c", 1, 2, first=200))
    made.add(_seq("d", 1, -1, -1, first=300))  # before all others
    step = made.schedule()
    given = "5 blocks of 2, a needs one more and takes it from b; c and d wait"
    expect(f"{given}: preempted", len(step.preempted), 1)
    expect(f"{given}: free blocks", len(made.memory.free), 2)
    expect(f"{given}: work of", list(_shares(step)), ["a"])
    expect(f"{given}: waiting", _names(made.waiting), ["d", "b", "c"])
    _finish(made, step)
    got = list(_shares(made.schedule()))
    expect(f"{given}, next step: work of", got, ["a", "d"])


@_SUITE.property("Scheduler", hint="it waits, and may hold something all the same")
def _remove_preempted(p: SimpleNamespace) -> None:
    """A preempted sequence that is removed leaves nothing behind, on either side."""
    for swap in (0, 4):
        made = _made(p, blocks=4, swap=swap)
        _, b = _several(made, 4, 4)
        _step(made)
        _step(made)
        given = f"4 blocks of 2, {swap} of CPU memory, b is preempted and then removed"
        made.remove(b)
        expect(f"{given}: still in waiting", _names(made.waiting), [])
        room = made.memory.num_swap_blocks - len(made.memory.free_swap)
        expect(f"{given}: CPU blocks in use", room, 0)
        _books(made, given)


@_SUITE.property("Scheduler", hint="what was planned for it has to be planned back")
def _undone(p: SimpleNamespace) -> None:
    """A victim with work in this step loses it, and others may use its tokens."""
    made = _made(p, 8, chunked=True, blocks=6)
    a, b, c = _several(made, 2, 2, 2)
    _step(made)
    made.config.max_num_batched_tokens = 6
    for seq in (a, b):  # as if more tokens were known: they count like chunks
        for _ in range(4):
            seq.add_token_id(7)
    # c takes 1 of the 6 tokens and a block, then a takes 5 and three, c's among them.
    step = made.schedule()
    given = "budget 6, 6 blocks of 2; c decodes, then a takes 5 tokens and c's blocks"
    expect(f"{given}: preempted", len(step.preempted), 1)
    expect(f"{given}: c has work", "c" in _shares(step), False)
    expect(f"{given}: work", _shares(step), {"a": (2, 5), "b": (2, 1)})
    expect(f"{given}: num_computed of c", c.num_computed, 0)
    _books(made, given)
    made = _made(p, chunked=True, blocks=6, turns=lambda seqs: [*seqs[2:], *seqs[:2]])
    a, b, c = _several(made, 2, 2, 2)
    _step(made)
    made.config.max_num_batched_tokens = 6
    for seq, count in ((a, 3), (b, 2), (c, 2)):
        for _ in range(count):
            seq.add_token_id(7)
    given = (
        "budget 6, 6 blocks of 2; c takes 3 tokens, a takes 3 and c's blocks, then b"
    )
    expect(f"{given}: work", _shares(made.schedule()), {"a": (2, 3), "b": (2, 3)})
    made = _made(p, blocks=6)
    _several(made, 2, 2, 2, 6)
    _step(made)
    made.config.max_num_batched_tokens = 2
    given = "budget 2, 6 blocks of 2, four decode, a takes the blocks of d"
    expect(f"{given}: work", list(_shares(_step(made))), ["a", "b"])


@_SUITE.property("Scheduler", hint="until when can somebody lose his place in a step?")
def _offered_late(p: SimpleNamespace) -> None:
    """What a victim would have computed in this step is found by nobody."""
    config = SchedulerConfig(16, 8)
    memory = BlockManager(5, 2, PrefixCache(5, 2))
    made = p.Scheduler(config, memory, share=p.chunk, turns=lambda seqs: seqs[::-1])
    a, c = _several(made, 2, 1)
    made.advance(made.schedule())
    for seq, count in ((a, 4), (c, 4)):
        for token_id in range(count):
            seq.add_token_id(token_id)
    made.schedule()  # c takes two blocks more, then a too, of which c loses one
    given = (
        "5 blocks of 2, the last in order goes first; c computes tokens 1 to 4, then "
        "loses its blocks to a"
    )
    expect(f"{given}: status of c", c.status.name, "WAITING")
    made.remove(a)
    made.remove(c)
    again = _seq("d", 5, 3)
    again.data.prompt_token_ids[:] = c.get_token_ids()
    made.add(again)
    got = _shares(made.schedule())
    expect(f"{given}; a and c go, d begins like c: work", got, {"d": (0, 5)})


@_SUITE.property("Scheduler", hint="a copy for nobody would overwrite somebody's block")
def _undone_copies(p: SimpleNamespace) -> None:
    """The copies planned for a victim are not made."""
    made = _made(p, 16, chunked=True, blocks=5)
    a, b = _several(made, 3, 3)
    made.advance(made.schedule())
    child = b.fork("b-1")
    child.order = (0, 1, 1)
    made.fork(b, child)
    for seq, count in ((a, 4), (b, 1), (child, 1)):
        for _ in range(count):
            seq.add_token_id(7)
    # b and its fork decode first, with a copy; then a needs two blocks more.
    step = made.schedule()
    given = "5 blocks of 2; b, of two who share, copies one; then a takes two from both"
    expect(f"{given}: work", _shares(step), {"a": (3, 4)})
    expect(f"{given}: copies", _moves(step, "copy"), [])
    _books(made, given)


# ----- swapping


@_SUITE.property("Scheduler", hint="copied, not forgotten: what stays as it was?")
def _swap(p: SimpleNamespace) -> None:
    """With swap a victim's blocks go to CPU memory, and come back as they were."""
    made = _made(p, blocks=4, swap=4)
    a, b = _several(made, 4, 4)
    _step(made)
    held = list(b.block_ids)
    step = _step(made)
    given = "4 blocks of 2, 4 of CPU memory, a and b hold 2 each, both go on"
    expect(f"{given}: work", _shares(step), {"a": (4, 1)})
    expect(f"{given}: status of b", b.status.name, "SWAPPED")
    expect(f"{given}: num_computed of b", b.num_computed, 4)
    expect(f"{given}: preempted", _names(step.preempted), ["b"])
    expect(f"{given}: swapped out from", [a for a, _ in _moves(step, "out")], held)
    expect(f"{given}: waiting", _names(made.waiting), ["b"])
    _books(made, given)
    host = [new for _, new in _moves(step, "out")]
    step = _step(made)
    expect(f"{given}, next step: moves in", _moves(step, "in"), [])
    expect(f"{given}, next step: work of", list(_shares(step)), ["a"])
    made.remove(a)
    step = made.schedule()
    given += ", a ends"
    expect(f"{given}: work", _shares(step), {"b": (4, 1)})
    back = _moves(step, "in")
    expect(f"{given}: swapped in from", [old for old, _ in back], host)
    expect(f"{given}: to", [new for _, new in back], b.block_ids[:2])
    expect(f"{given}: status of b", b.status.name, "RUNNING")
    _finish(made, step)
    step = _step(made)
    expect(f"{given}, next step: moves in", _moves(step, "in"), [])
    _books(made, given)
    made = _made(p, blocks=6, swap=4)
    _, b, c = _several(made, 2, 4, 4)
    _step(made)
    _step(made)
    expect("6 blocks of 2, a, b and c run on: status of c", c.status.name, "SWAPPED")
    made.add(_seq("d", 1, 3, -1, first=300))
    made.remove(b)
    given = "c, in CPU memory, and d, which has priority, wait; a runs and b ends"
    got = [(name, work.start) for name, work in made.schedule().work.items()]
    expect(f"{given}: whose work, from where", got, [("a", 3), ("d", 0), ("c", 4)])
    expect(f"{given}: running", _names(made.running), ["d", "a", "c"])
    made = _made(p, blocks=4, swap=4)
    a, _ = _several(made, 3, 4)
    made.advance(made.schedule())
    child = a.fork("a-1")
    child.order = (0, 0, 1)
    made.fork(a, child)
    for seq in (a, child):
        seq.add_token_id(7)
    kinds = [kind for kind, *_ in made.schedule().moves]
    given = "4 blocks of 2, a and its fork write, b leaves two blocks for their copy"
    expect(f"{given}: moves", kinds, ["out", "out", "copy"])


@_SUITE.property("Scheduler", hint="what did swap_out answer?")
def _no_swap(p: SimpleNamespace) -> None:
    """Without room for all of it in CPU memory a victim is recomputed."""
    for blocks, wanted in ((0, 0), (1, 0), (2, 4)):
        made = _made(p, blocks=4, swap=blocks)
        _, b = _several(made, 4, 4)
        _step(made)
        step = made.schedule()
        given = f"b holds 2 blocks and is preempted, CPU memory has {blocks}"
        status = "SWAPPED" if wanted else "WAITING"
        expect(f"{given}: status of b", b.status.name, status)
        expect(f"{given}: num_computed of b", b.num_computed, wanted)
        expect(f"{given}: blocks moved", len(_moves(step, "out")), wanted // 2)
        _books(made, given)


@_SUITE.property("Scheduler", hint="its newest block holds nothing yet")
def _undone_is_not_swapped(p: SimpleNamespace) -> None:
    """A victim with work in this step is recomputed: its blocks are not complete."""
    made = _made(p, 8, chunked=True, blocks=5, swap=8)
    a, b = _several(made, 2, 2)
    _step(made)
    for _ in range(6):
        a.add_token_id(7)
    step = made.schedule()
    given = "b decodes, then a takes its blocks; there is room in CPU memory"
    expect(f"{given}: preempted", len(step.preempted), 1)
    expect(f"{given}: status of b", b.status.name, "WAITING")
    expect(f"{given}: num_computed of b", b.num_computed, 0)
    expect(f"{given}: moves out", _moves(step, "out"), [])


@_SUITE.property("Scheduler", hint="after a swap all of its blocks are other ones")
def _swapped_prefix(p: SimpleNamespace) -> None:
    """What came back from CPU memory is offered to others from its beginning."""
    made = _made(p, blocks=6, caching=True, swap=6)
    a, b = _several(made, 6, 5)
    _step(made)
    _step(made)
    expect("6 blocks of 2, prompts of 6 and 5: status", b.status.name, "SWAPPED")
    for _ in range(4):  # a takes all the blocks: nothing of b's is left in the pool
        _step(made)
    made.remove(a)
    made.add(_seq("c", 5, 2, first=100))
    step = made.schedule()
    given = "b, swapped out, is back in this step, and c has the same prompt of 5"
    expect(f"{given}: its order", list(step.work), ["b", "c"])
    expect(f"{given}: work of c", _shares(step).get("c"), (4, 1))
    _books(made, given)


# ----- all together


@_SUITE.property("Scheduler", hint="which limit, or whose turn, was forgotten?")
def _everybody_ends(p: SimpleNamespace) -> None:
    """Within the limits everybody ends, and no token is computed twice or left out."""
    for count in (1, 2, 3, 4, 5, 6, 7, 8):
        for chunked in (False, True):
            for caching in (False, True):
                for swap in (0, 3):
                    steps: list[str] = []
                    with on(lambda: steps[-1]):  # noqa: B023
                        _play(p, count, chunked, caching, swap, steps)


def _play(
    p: SimpleNamespace,
    count: int,
    chunked: bool,
    caching: bool,
    swap: int,
    steps: list[str],
) -> None:
    """Serve `count` random sequences with 6 blocks of 2; check each of the steps,
    which are noted.
    """
    rng = random.Random(count)
    budget, most = (3 if chunked else 12), 3
    made = _made(p, budget, most, chunked, 6, caching, swap)
    new = [
        _seq(
            f"s{i}", rng.randint(1, 6), i, rng.randint(0, 1), first=rng.choice([0, 100])
        )
        for i in range(count)
    ]
    left = {seq.seq_id: rng.randint(1, 6) for seq in new}  # tokens to be generated
    stored: dict[tuple[bool, int], dict[int, tuple]] = {}  # (on the CPU, block): slots
    given = (
        f"{count} prompts of {[s.get_len() for s in new]}, 6 blocks of 2, budget "
        f"{budget}, max_num_seqs {most}, chunked {chunked}, caching {caching}, "
        f"{swap} CPU blocks"
    )
    for number in range(1, 60 * count + 1):
        steps.append(where := f"{given}, step {number}")
        if new:
            made.add(new.pop(0))
        computed = {s.seq_id: s.num_computed for s in made.running}
        step = made.schedule()
        if step.num_tokens > budget:
            fail(f"{where}: num_tokens", step.num_tokens, f"{budget} at most")
        if len(made.running) > most:
            fail(f"{where}: running", len(made.running), f"{most} at most")
        for work in step.work.values():
            seq = work.seq
            expect(f"{where}: {seq.seq_id} starts at", work.start, seq.num_computed)
            before = computed.get(seq.seq_id, seq.num_computed)
            expect(f"{where}: num_computed before advance()", seq.num_computed, before)
            enough = len(seq.block_ids) * 2 >= work.end and work.count > 0
            expect(f"{where}: {seq.seq_id} has work and room for it", enough, True)
            whole = chunked or work.end == seq.get_len()
            expect(f"{where}: {seq.seq_id} computes all at once", whole, True)
        for kind, old, new_place in step.moves:
            held = stored.get((kind == "in", old), {})
            stored[kind == "out", new_place] = dict(held)
        for work in step.work.values():
            _compute(stored, work, where)
        _books(made, where)
        made.advance(step)
        _books(made, f"{where}, advance()")
        for work in step.work.values():
            seq = work.seq
            if seq.num_missing:
                continue
            left[seq.seq_id] -= 1
            if left[seq.seq_id]:
                seq.add_token_id(7)
            else:
                seq.move_to(SequenceStatus.FINISHED_LENGTH_CAPPED)
                made.remove(seq)
        if not new and not any(left.values()):
            expect(f"{given}, at the end: free blocks", len(made.memory.free), 6)
            return
    fail(given, f"{sum(map(bool, left.values()))} go on for ever", "everybody ends")


def _compute(stored: dict, work: Any, where: str) -> None:
    """Write the tokens of `work` to the simulated blocks, and read all before them."""
    seq, tokens = work.seq, tuple(work.seq.get_token_ids())
    for i in range(work.start, work.end):
        stored.setdefault((False, seq.block_ids[i // 2]), {})[i % 2] = tokens[: i + 1]
    for i in range(work.end):
        got = stored.get((False, seq.block_ids[i // 2]), {}).get(i % 2)
        what = f"{where}: {seq.seq_id} reads at token {i} what was computed after"
        expect(what, got, tokens[: i + 1])
