"""What has to be true of the exercises of notebook 10: a trace, turns, a policy."""

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from heapq import heappop, heappush
from types import SimpleNamespace

from folovllm_lite import scheduler as package
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.harness import Suite, expect, fail
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceData, SequenceStatus
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler

_SUITE = scheduling_exercises = Suite(
    package,
    """Judge the exercises of notebook 10: `predict_lines`, `fair_turns`, `priority_of`.

    Raises CheckFailed at the end if a property doesn't hold.
    """,
)


def _sequence(name: str, tokens: int, order: tuple[int, int, int]) -> Sequence:
    data = SequenceData(list(range(tokens)))
    return Sequence(name, name, data, SamplingParams(), order=order)


# ----- 1. Trace


def _line(p: SimpleNamespace, name: str, wanted: str) -> None:
    """Compare without saying what is right: that would be the answer."""
    found = p.predict_lines()
    if not isinstance(found, dict) or name not in found:
        fail("predict_lines()", found, f"a dict with the key {name!r}")
    got = found[name].strip() if isinstance(found[name], str) else found[name]
    if got != wanted:
        fail(f"the line of {name}", got, "another line")


@_SUITE.property(
    "predict_lines", hint="who is first in order never waits, and loses nothing"
)
def _first_line(p: SimpleNamespace) -> None:
    """The line of A is that of the scheduler."""
    _line(p, "A", "Pdd")


@_SUITE.property(
    "predict_lines", hint="5 tokens of A and 4 of B: how many may a step have?"
)
def _waiting_line(p: SimpleNamespace) -> None:
    """So is the line of B."""
    _line(p, "B", "wPd")


@_SUITE.property(
    "predict_lines",
    hint="count the slots after each step, and see who comes last in the order when "
    "there is one too few; how many tokens does it have when it comes back?",
)
def _preempted_line(p: SimpleNamespace) -> None:
    """So is the line of C."""
    _line(p, "C", "PxPdd")


@_SUITE.property(
    "predict_lines", hint="nobody passes C, and nobody enters when somebody was lost"
)
def _last_line(p: SimpleNamespace) -> None:
    """And so is the line of D."""
    _line(p, "D", "wwP")


# ----- 2. Modify


def _running(*outputs: int) -> list[Sequence]:
    """Running sequences that have generated so many tokens each."""
    found = []
    for i, count in enumerate(outputs):
        seq = _sequence("abcdefgh"[i], 2, (0, i, 0))
        # The more tokens, the smaller they are: lists and sums say something else.
        seq.data.output_token_ids += [60 // max(1, count)] * count
        seq.status = SequenceStatus.RUNNING
        found.append(seq)
    return found


@_SUITE.property("fair_turns", hint="the scheduler's own list has to stay in its order")
def _turns_list(p: SimpleNamespace) -> None:
    """All that run get their turn once, in a new list; the given one stays as it is."""
    for outputs in ((), (1,), (3, 1, 2)):
        given = _running(*outputs)
        before = deepcopy(given)
        found = p.fair_turns(given)
        what = f"fair_turns of sequences with {outputs} tokens generated"
        if not isinstance(found, list):
            fail(what, found, "a list")
        names = sorted(seq.seq_id for seq in found)
        expect(f"{what}: who gets a turn", names, [seq.seq_id for seq in before])
        expect(f"{what}: the given list is as before", given == before, True)
        expect(f"{what}: it is another list", found is given, False)


@_SUITE.property(
    "fair_turns",
    hint="who has had the fewest turns? Not its length: a long prompt was no turn",
)
def _turns_order(p: SimpleNamespace) -> None:
    """Who has generated the least goes first, and equals keep their order."""
    for outputs, wanted in (
        ((2, 1), "ba"),
        ((1, 1, 1), "abc"),
        ((2, 1, 2, 1), "bdac"),
        ((0, 5, 3), "acb"),
    ):
        found = "".join(seq.seq_id for seq in p.fair_turns(_running(*outputs)))
        expect(f"sequences a, b ... with {outputs} tokens generated", found, wanted)
    given = _running(1, 1)
    given[0].seq_id, given[1].seq_id = names = ["r9-0", "r10-0"]
    found = [seq.seq_id for seq in p.fair_turns(given)]
    expect("sequences r9-0, r10-0 with 1 token each", found, names)
    given = _running(1, 2)
    given[0].data.prompt_token_ids += range(20)
    found = "".join(seq.seq_id for seq in p.fair_turns(given))
    expect("a has a prompt of 22 and 1 token, b a prompt of 2 and 2", found, "ab")


@_SUITE.property("fair_turns", hint="run it with budget 2, and print who has work")
def _turns_together(p: SimpleNamespace) -> None:
    """With a budget of 2, each of five sequences gets a token in every 3 steps."""
    made = Scheduler(SchedulerConfig(16, 8), BlockManager(99, 4), turns=p.fair_turns)
    seqs = [_sequence("abcde"[i], 2, (0, i, 0)) for i in range(5)]
    for seq in seqs:
        made.add(seq)
    last, gap = {}, 0
    for number in range(30):
        if number == 2:
            made.config.max_num_batched_tokens = 2
        step = made.schedule()
        made.advance(step)
        for work in step.work.values():
            work.seq.add_token_id(7)
            if number > 5:
                gap = max(gap, number - last.get(work.seq.seq_id, number))
            last[work.seq.seq_id] = number
    missing = [seq.seq_id for seq in seqs if last.get(seq.seq_id, 0) < 27]
    expect("30 steps: without a token in the last three", missing, [])
    if gap > 3:
        fail("5 sequences, 2 tokens a step: longest wait", f"{gap} steps", "3 steps")


# ----- 3. Design


def _serve(
    priority_of: Callable[[int, int], int], jobs: list[tuple[int, int]]
) -> list[int]:
    """The step in which each (tokens, arrival) begins.

    One is served at a time, and a job of n tokens takes n steps. Of equal priorities
    the earlier goes first.
    """
    begun = [-1] * len(jobs)
    coming = deque(sorted(range(len(jobs)), key=lambda i: jobs[i][1]))
    waiting: list[tuple[int, int, int]] = []
    step = 0
    while coming or waiting:
        while coming and jobs[coming[0]][1] <= step:
            i = coming.popleft()
            heappush(waiting, (priority_of(*jobs[i]), jobs[i][1], i))
        if waiting:
            i = heappop(waiting)[2]
            begun[i], step = step, step + jobs[i][0]
        else:
            step = jobs[coming[0]][1]
    return begun


@_SUITE.property("priority_of", hint="add_request refuses anything else")
def _priority_is_an_int(p: SimpleNamespace) -> None:
    """A priority is an int, the same for the same request."""
    for tokens, arrival in ((1, 0), (7, 3), (4000, 100_000)):
        found = p.priority_of(tokens, arrival)
        given = f"priority_of({tokens}, {arrival})"
        if type(found) is not int:
            fail(given, repr(found), "an int")
        expect(f"{given}, once more", p.priority_of(tokens, arrival), found)


@_SUITE.property("priority_of", hint="lower goes first")
def _short_passes(p: SimpleNamespace) -> None:
    """Up to 5 tokens pass 50 or more that came at most 2 steps earlier."""
    for long, short in (
        ((100, 0), (5, 0)),
        ((500, 10), (5, 11)),
        ((64, 3), (4, 5)),
        ((50, 7), (5, 9)),
        ((50, 1000), (5, 1002)),
        ((10_000, 123_456), (1, 123_458)),
    ):
        got = p.priority_of(*short) < p.priority_of(*long)
        expect(f"(tokens, arrival) {short} goes before {long}", got, True)
    for step in range(5_000):  # also across the border of any epoch
        short, long = (5, step + 2), (50, step)
        if not p.priority_of(*short) < p.priority_of(*long):
            fail(f"(tokens, arrival) {short} goes before {long}", False, True)


@_SUITE.property("priority_of", hint="two that are alike should be served as they came")
def _equals_keep_order(p: SimpleNamespace) -> None:
    """Of two equally long requests the earlier goes first."""
    for tokens in (1, 5, 20, 50, 4000):
        for first, then in ((3, 40), (3, 4), (4, 5), (0, 999), (12_345, 12_346)):
            early, late = p.priority_of(tokens, first), p.priority_of(tokens, then)
            given = f"{tokens} tokens, step {first} before step {then}"
            expect(given, early <= late, True)


@_SUITE.property(
    "priority_of", hint="what makes a late request worse than an early one?"
)
def _nobody_starves(p: SimpleNamespace) -> None:
    """Nobody passes a request of t tokens who comes 1000 * t steps later, or more."""
    for tokens in (1, 20, 200, 4000):
        for arrival, more in ((0, 0), (37, 0), (5000, 1), (5, 10_000)):
            for short in (1, 2, 5, 20, 4000):
                early, late = (tokens, arrival), (short, arrival + 1000 * tokens + more)
                # Of equal priorities the earlier goes first.
                got = p.priority_of(*early) <= p.priority_of(*late)
                expect(f"(tokens, arrival) {early} goes before {late}", got, True)


def _crowd() -> list[tuple[int, int]]:
    """(tokens, arrival) of 40 requests, as the exercise describes them."""
    return [(4 if i % 4 else 100, 5 * i) for i in range(40)]


@_SUITE.property(
    "priority_of",
    hint="how far may a short one pass? if arrival weighs too much, hardly at all",
)
def _mean_falls(p: SimpleNamespace) -> None:
    """In the crowd the mean wait is a tenth shorter than first come, first served."""
    jobs = _crowd()
    mine, plain = (
        sum(
            begun - arrival
            for begun, (_, arrival) in zip(_serve(rule, jobs), jobs, strict=True)
        )
        for rule in (p.priority_of, lambda tokens, arrival: arrival)
    )
    if mine > 0.9 * plain:
        got = f"{mine / len(jobs):.1f} steps, and {plain / len(jobs):.1f} in order"
        fail("40 requests: the mean wait", got, "at least a tenth less")
