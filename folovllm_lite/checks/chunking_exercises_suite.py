"""What has to be true of the exercises of notebook 13: a trace, a limit, a budget."""

import re
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

from folovllm_lite import scheduler as package
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.harness import Suite, expect, fail
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler, decodes_first

_SUITE = chunking_exercises = Suite(
    package,
    """Judge the exercises of 13: `predict_counts`, `limited` and `choose_budget`.

    Raises CheckFailed at the end if a property doesn't hold.
    """,
)
_COUNTS = [
    {"A": 4, "B": 2},
    {"A": 1, "B": 5},
    {"A": 1, "B": 2, "C": 3},
    {"A": 1, "B": 1, "C": 1},
]


# ----- 1. Trace


def _step_is(p: SimpleNamespace, number: int) -> None:
    """Compare without saying what is right: that would be the answer."""
    found = p.predict_counts()
    if not isinstance(found, list | tuple) or len(found) < number:
        fail("predict_counts()", found, f"a list with {number} steps or more")
    counts = found[number - 1]
    if isinstance(counts, dict):  # to name those who compute nothing is right, too
        counts = {name: count for name, count in counts.items() if count}
    if counts != _COUNTS[number - 1]:
        fail(f"step {number}", found[number - 1], "other counts")


@_SUITE.property("predict_counts", hint="what does the first prompt leave of the six?")
def _first_step(p: SimpleNamespace) -> None:
    """Step 1 holds a prompt and a chunk."""
    _step_is(p, 1)


@_SUITE.property("predict_counts", hint="who runs goes before who waits")
def _second_step(p: SimpleNamespace) -> None:
    """Step 2 goes on with the one that was cut, before it begins with another."""
    _step_is(p, 2)


@_SUITE.property("predict_counts", hint="count what is left of the prompt that was cut")
def _third_step(p: SimpleNamespace) -> None:
    """Step 3 ends one prompt and computes another."""
    _step_is(p, 3)


@_SUITE.property("predict_counts", hint="an answer of n tokens takes n - 1 decodes")
def _all_steps(p: SimpleNamespace) -> None:
    """There are as many steps as it takes, and no more."""
    _step_is(p, 4)
    expect("the number of steps", len(p.predict_counts()), 4)


# ----- 2. Modify


@_SUITE.property("limited", hint="three numbers bound it: which is the smallest?")
def _smallest_of_three(p: SimpleNamespace) -> None:
    """What is missing, what is left of the budget, and the limit each bound a share."""
    for most, missing, budget, wanted in (
        (4, 9, 9, 4),
        (4, 3, 9, 3),
        (4, 9, 2, 2),
        (4, 3, 2, 2),
        (4, 1, 9, 1),
        (4, 4, 9, 4),
        (2, 4, 9, 2),
        (4, 9, 0, 0),
        (1, 9, 9, 1),
        (64, 30_000, 48, 48),
        (64, 30_000, 100, 64),
    ):
        given = f"limited({most})({missing}, {budget})"
        expect(given, p.limited(most)(missing, budget), wanted)
    share = p.limited(4)
    for missing, budget, wanted in ((3, 9, 3), (9, 9, 4), (9, 2, 2), (9, 9, 4)):
        given = f"one limited(4) for all of a step, asked ({missing}, {budget})"
        expect(given, share(missing, budget), wanted)


@_SUITE.property(
    "limited", hint="does every call of limited make a function of its own?"
)
def _two_limits(p: SimpleNamespace) -> None:
    """Two of them, with other limits, know nothing of each other."""
    small, large = p.limited(2), p.limited(7)
    expect("limited(2), then limited(7): the first", small(9, 9), 2)
    expect("limited(2), then limited(7): the second", large(9, 9), 7)


@_SUITE.property("limited", hint="what the long one may not take is there for the next")
def _short_prompts_pass(p: SimpleNamespace) -> None:
    """A short prompt behind a long one begins in the same step, and ends soon."""
    made = Scheduler(
        SchedulerConfig(8, 8), BlockManager(99, 4), p.limited(4), decodes_first
    )
    seqs = {}
    for place, (name, length) in enumerate((("long", 60), ("short", 6))):
        data = SequenceData(list(range(length)))
        order = (0, place, 0)
        seqs[name] = Sequence(name, name, data, SamplingParams(), order=order)
        made.add(seqs[name])
    counts = []
    for _ in range(2):
        step = made.schedule()
        made.advance(step)
        counts.append({name: work.count for name, work in step.work.items()})
    given = "budget 8, limited(4), prompts of 60 and 6: the counts of two steps"
    expect(given, counts, [{"long": 4, "short": 4}, {"long": 4, "short": 2}])


# ----- 3. Design


class _Machine:
    """Measures a step, and counts how often it was asked."""

    def __init__(self, time: Callable[[int], float]):
        self.time, self.calls = time, 0

    def __call__(self, tokens: int) -> float:
        if not isinstance(tokens, int):
            raise TypeError(f"a step has a whole number of tokens, not {tokens!r}")
        self.calls += 1
        return self.time(tokens)


def _chosen(p: SimpleNamespace, time: Callable, decoding: int, target: float) -> int:
    """The budget, if it is a whole number: 400.0 tokens are no budget."""
    got = p.choose_budget(_Machine(time), decoding, target)
    if not isinstance(got, int):
        fail(f"{decoding} decode, target {target} s", repr(got), "an int")
    return got


@_SUITE.property("choose_budget", hint="try the next larger one by hand")
def _largest_budget(p: SimpleNamespace) -> None:
    """It is the largest budget whose step takes no longer than the target."""
    for target, wanted in ((0.5, 400), (0.2, 100), (0.1995, 99), (0.117, 17)):
        got = _chosen(p, lambda n: round(0.1 + 0.001 * n, 6), 16, target)
        given = (
            f"a step of n tokens takes 0.1 + 0.001 n s, 16 decode, target {target} s"
        )
        expect(given, got, wanted)
    got = _chosen(p, lambda n: n * n / 1e6, 16, 0.25)
    expect("n tokens take n * n / 1000000 s, 16 decode, target 0.25 s", got, 500)
    got = _chosen(p, lambda n: max(500, n) / 1000, 16, 0.5)
    given = "up to 500 tokens take 0.5 s, n tokens n / 1000 s, target 0.5 s"
    expect(given, got, 500)


@_SUITE.property("choose_budget", hint="the search has two ends: are both looked at?")
def _both_ends(p: SimpleNamespace) -> None:
    """8,192 is the most, and decoding + 1 is the least."""
    got = _chosen(p, lambda n: n * 1e-6, 16, 60.0)
    expect("a machine that keeps any promise", got, 8192)
    for decoding, target, wanted in (
        (16, 17.0, 17),
        (40, 41.5, 41),
        (0, 1.0, 1),
        (16, 8191.5, 8191),
        (8190, 9000.0, 8192),
    ):
        got = _chosen(p, float, decoding, target)
        given = f"n tokens take n s, {decoding} decode, target {target} s"
        expect(given, got, wanted)


@_SUITE.property("choose_budget", hint="what if the least budget is too slow already?")
def _refuses(p: SimpleNamespace) -> None:
    """A promise that can't be kept is a ValueError with the seconds and the target."""
    for decoding, target in ((16, 8.0), (40, 17.0), (0, 0.25)):
        least = (decoding + 1) / 2
        given = f"{decoding + 1} tokens take {least} s, target {target} s"
        try:
            got = p.choose_budget(_Machine(lambda n: n / 2), decoding, target)
        except ValueError as error:
            said = {
                float(number) for number in re.findall(r"\d+(?:\.\d+)?", str(error))
            }
            if not {least, target} <= said:
                wanted = f"a message that says {least} s and {target} s"
                fail(given, f"ValueError: {error}", wanted)
        else:
            fail(given, f"no error, but {got!r}", "a ValueError")


@_SUITE.property("choose_budget", hint="each look should rule out half of what is left")
def _few_calls(p: SimpleNamespace) -> None:
    """It measures at most 16 times."""
    for decoding, target in (
        *((16, target) for target in (0.117, 0.5, 4.0, 60.0)),
        *((0, target) for target in (0.101, 4.195, 8.2915, 0.05)),
    ):
        machine = _Machine(lambda n: 0.1 + 0.001 * n)
        with suppress(ValueError):  # a promise that can't be kept costs no more
            p.choose_budget(machine, decoding, target)
        if machine.calls > 16:
            given = f"{decoding} decode, target {target} s: calls of seconds"
            fail(given, machine.calls, "16 at most")
