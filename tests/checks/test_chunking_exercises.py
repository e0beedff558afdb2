"""The exercises of notebook 13: the solutions pass, mistakes are rejected."""

from bisect import bisect_right

import pytest

from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.scheduler import Scheduler, chunk, decodes_first
from folovllm_lite.widgets import Job, run_schedule
from tests.checks.mutants import solutions

SOLVED = solutions("13_chunked_prefill.ipynb")


def test_the_solutions_pass(capsys):
    names = ("predict_counts", "limited", "choose_budget")
    checks.chunking_exercises({name: SOLVED[name] for name in names})
    assert "✗" not in capsys.readouterr().out


def test_the_puzzles_counts_are_the_schedulers():
    jobs = [Job("A", 4, 4), Job("B", 9, 2), Job("C", 3, 2, 2)]
    made = Scheduler(SchedulerConfig(6, 4), BlockManager(64, 4), chunk, decodes_first)
    found = [step.counts for step in run_schedule(jobs, made).steps]
    assert SOLVED["predict_counts"]() == found


def shared(most):
    shared.most = most
    return lambda missing, budget: min(missing, budget, shared.most)


def from_below(seconds, decoding, target):
    budget = decoding + 1
    if seconds(budget) > target:
        raise ValueError(f"{seconds(budget)} > {target}")
    while budget < 8192 and seconds(budget + 1) <= target:
        budget += 1
    return budget


def searched(strict=False, up=1, low=1, error=ValueError, most=8192, words=True):
    """A binary search with its mistakes."""

    def choose(seconds, decoding, target):
        first, last = decoding + low, most
        least = seconds(first)
        if least > target:
            raise error(f"{least} s, target {target} s" if words else "too slow")
        for _ in range(14):
            middle = (first + last + up) // 2
            good = seconds(middle) < target if strict else seconds(middle) <= target
            first, last = (middle, last) if good else (first, max(first, middle - 1))
            if first == last:
                break
        return first

    return choose


def for_sixteen(seconds, decoding, target):
    """Made for the example of the text."""
    return searched()(seconds, 16, target)


def worded(words):
    """A right search whose error says its numbers in another way."""

    def choose(seconds, decoding, target):
        if seconds(decoding + 1) > target:
            raise ValueError(words.format(seconds(decoding + 1), target))
        return searched()(seconds, decoding, target)

    return choose


def right_when_equal(seconds, decoding, target):
    """Stops at the first budget that takes as long as the target."""
    first, last = decoding + 1, 8192
    if seconds(first) > target:
        raise ValueError(f"{seconds(first)} s, target {target} s")
    while first < last:
        middle = (first + last + 1) // 2
        took = seconds(middle)
        if took == target:
            return middle
        first, last = (middle, last) if took < target else (first, middle - 1)
    return first


def searches_first(seconds, decoding, target):
    """Sees after its search that even the least is too slow, and measures on."""
    first, last = decoding, 8192
    while first < last:
        middle = (first + last + 1) // 2
        good = seconds(middle) <= target
        first, last = (middle, last) if good else (first, middle - 1)
    if first == decoding:
        looks = [seconds(decoding + 1) for _ in range(4)]
        raise ValueError(f"{looks[0]} s, target {target} s")
    return first


def by_bisect(seconds, decoding, target):
    """The library's own search."""
    budgets = range(decoding + 1, 8193)
    found = decoding + bisect_right(budgets, target, key=seconds)
    if found == decoding:
        raise ValueError(f"{seconds(decoding + 1)} s, target {target} s")
    return found


def names_the_tokens(seconds, decoding, target):
    """Says how many tokens are too slow, and not how slow."""
    if seconds(decoding + 1) > target:
        raise ValueError(f"{decoding + 1} tokens can't be done in {target} s")
    return searched()(seconds, decoding, target)


def drained(most):
    """One count for all sequences of a step, and for the next step."""
    left = [most]

    def share(missing, budget):
        count = min(missing, budget, left[0])
        left[0] = left[0] - count or most
        return count

    return share


def whole_or_none(most):
    """Cuts what is above the limit; what is below it fits in whole, or waits."""

    def share(missing, budget):
        if missing > most:
            return min(most, budget)
        return missing if missing <= budget else 0

    return share


def on_a_line(seconds, decoding, target):
    """As if each token took as long as any other."""
    least, most = decoding + 1, 8192
    first, last = seconds(least), seconds(most)
    if first > target:
        raise ValueError(f"{first} s, target {target} s")
    if last <= target:
        return most
    found = least + int((target - first) * (most - least) / (last - first) + 1e-9)
    return found if seconds(found) <= target else found - 1


WRONG = {
    "limited": [
        lambda most: lambda missing, budget: min(missing, most),
        lambda most: lambda missing, budget: min(budget, most),
        lambda most: lambda missing, budget: min(missing, budget),
        lambda most: lambda missing, budget: missing if missing <= most else 0,
        lambda most: lambda missing, budget: max(1, min(missing, budget, most)),
        lambda most: lambda missing, budget: min(missing, budget, most - 1),
        lambda most: lambda missing, budget: min(missing, budget, 4),
        lambda most: lambda missing, budget: (
            min(missing, budget, most) if missing > 4 else min(missing, budget)
        ),
        shared, drained, whole_or_none,
    ],
    "choose_budget": [
        from_below, searched(strict=True), searched(up=0), searched(low=0),
        searched(low=2), searched(error=RuntimeError), searched(most=4096),
        searched(words=False), lambda seconds, decoding, target: decoding + 1,
        on_a_line, for_sixteen, worded("{0} s are too slow"),
        worded("the target is {1} s"), right_when_equal, searches_first,
        lambda *given: float(searched()(*given)), names_the_tokens,
    ],
    "predict_counts": [
        lambda: [{"A": 4}, {"A": 1, "B": 5}],
        lambda: [{"A": 4, "B": 2}, {"A": 1, "B": 2, "C": 3}, {"A": 1, "B": 5}],
        lambda: [*SOLVED["predict_counts"](), {"A": 1}],
        lambda: SOLVED["predict_counts"]()[:3],
        lambda: {"A": 4},
        lambda: None,
    ],
}  # fmt: skip
RIGHT = {
    "limited": [
        lambda most: lambda missing, budget: sorted((missing, budget, most))[0],
    ],
    "choose_budget": [
        searched(), by_bisect, worded("at least {0:.3f} s, promised: {1:.3f}"),
        worded("target={1:g}, least={0:g}"),
    ],
    "predict_counts": [
        lambda: [{"B": 0, "C": 0} | step for step in SOLVED["predict_counts"]()],
        lambda: tuple(SOLVED["predict_counts"]()),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, piece", [(name, piece) for name in WRONG for piece in WRONG[name]]
)
def test_the_suite_rejects(name, piece, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.chunking_exercises(**{name: piece})


@pytest.mark.parametrize(
    "name, piece", [(name, piece) for name in RIGHT for piece in RIGHT[name]]
)
def test_the_suite_accepts(name, piece, capsys):
    checks.chunking_exercises(**{name: piece})
