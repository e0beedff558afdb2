"""The exercises of notebook 10: the solutions pass, mistakes are rejected."""

from math import isqrt

import pytest

from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.scheduler import Scheduler
from folovllm_lite.widgets import Job, run_schedule, schedule_text
from tests.checks.mutants import solutions

SOLVED = solutions("10_continuous_batching.ipynb")


def test_the_solutions_pass(capsys):
    names = ("predict_lines", "fair_turns", "priority_of")
    checks.scheduling_exercises({name: SOLVED[name] for name in names})
    assert "✗" not in capsys.readouterr().out


def test_the_puzzles_lines_are_the_schedulers():
    jobs = [Job("A", 5, 3), Job("B", 4, 2), Job("C", 2, 4, 2), Job("D", 3, 1, 2)]
    made = run_schedule(jobs, Scheduler(SchedulerConfig(8, 3), BlockManager(12, 1)))
    lines = dict(line.split() for line in schedule_text(made).splitlines()[:4])
    assert SOLVED["predict_lines"]() == lines


def by_output(running):
    return sorted(running, key=lambda seq: seq.get_output_len())


def in_place(running):
    running.sort(key=lambda seq: seq.get_output_len())
    return running


def by_length(running):
    return sorted(running, key=lambda seq: seq.get_len())


def most_first(running):
    return sorted(running, key=lambda seq: -seq.get_output_len())


def equals_turned_round(running):
    return sorted(running[::-1], key=lambda seq: seq.get_output_len())


def the_least_alone(running):
    least = min((seq.get_output_len() for seq in running), default=0)
    return [seq for seq in running if seq.get_output_len() == least]


def by_the_tokens(running):
    return sorted(running, key=lambda seq: seq.data.output_token_ids)


def by_their_sum(running):
    return sorted(running, key=lambda seq: sum(seq.data.output_token_ids))


def in_its_order(running):
    for seq in running:
        seq.order = (seq.get_output_len(), *seq.order)
    return sorted(running, key=lambda seq: seq.order)


def one_after_another(running):
    yield from by_output(running)


WRONG = {
    "fair_turns": [
        list, lambda running: running, in_place, by_length, most_first,
        equals_turned_round, the_least_alone, by_the_tokens, by_their_sum, in_its_order,
        one_after_another,
    ],
    "priority_of": [
        lambda tokens, arrival: tokens,  # starves
        lambda tokens, arrival: arrival,  # first come, first served
        lambda tokens, arrival: arrival - tokens,  # long ones first
        lambda tokens, arrival: -arrival - tokens,
        lambda tokens, arrival: arrival / 2 + tokens,  # no int
        lambda tokens, arrival: 1000 * tokens + arrival % 1000,  # time goes round
        lambda tokens, arrival: tokens - arrival,  # worse with age
        lambda tokens, arrival: arrival + 1001 * tokens,  # passed a little too long
        lambda tokens, arrival: 1000 * (arrival // 10) + tokens,  # passes in rounds
        lambda tokens, arrival: 10**6 * (arrival // 100) + tokens,  # in longer ones
        lambda tokens, arrival: 10 * arrival + tokens,  # waits hardly less
        lambda tokens, arrival: arrival + isqrt(tokens),
        lambda tokens, arrival: arrival + 2 * tokens if arrival % 7 else 10**9,
        lambda tokens, arrival: arrival + (tokens > 300),
        lambda tokens, arrival: max(arrival, tokens),  # late, nobody passes
        lambda tokens, arrival: arrival**2 // 50 + tokens,
        lambda tokens, arrival: arrival + tokens if arrival < 1000 else arrival,
        lambda tokens, arrival: arrival + tokens + 2 * (arrival % 2),
        lambda tokens, arrival: arrival + tokens if tokens != 2 else -(10**9),
        lambda tokens, arrival: arrival + tokens - 10**6 * (5 < tokens < 50),
        lambda tokens, arrival: arrival + tokens - 10**6 * (tokens >= 4000),
    ],
    "predict_lines": [
        lambda: {"A": "Pdd", "B": "wPd", "C": "PxPdd", "D": "wPP"},
        lambda: {"A": "Pdd", "B": "Pdd", "C": "PxPdd", "D": "wwP"},
        lambda: {"A": "Pdd", "B": "wPd", "C": "PdPdd", "D": "wwP"},
        lambda: {"A": "Pdx", "B": "wPd", "C": "PxPdd", "D": "wwP"},
        lambda: {"A": "Pdd"},
        lambda: None,
    ],
}  # fmt: skip
RIGHT = {
    "fair_turns": [
        by_output,
        lambda running: sorted(
            running, key=lambda seq: (seq.data.get_output_len(), seq.order)
        ),
        lambda running: [
            seq
            for count in sorted({seq.get_output_len() for seq in running})
            for seq in running
            if seq.get_output_len() == count
        ],
    ],
    "priority_of": [
        lambda tokens, arrival: arrival + tokens,
        lambda tokens, arrival: 10 * arrival + 15 * tokens,
        lambda tokens, arrival: 5 * arrival + tokens,
        lambda tokens, arrival: arrival + 8 * isqrt(tokens),
        lambda tokens, arrival: arrival + 2 * tokens - 10**6,
        lambda tokens, arrival: arrival + 10 * tokens.bit_length(),
        lambda tokens, arrival: arrival + 1000 * tokens,  # the last allowed
        lambda tokens, arrival: arrival // 10 + tokens,
        lambda tokens, arrival: arrival - 60 * (tokens <= 5),
    ],
}


@pytest.mark.parametrize(
    "name, piece", [(name, piece) for name in WRONG for piece in WRONG[name]]
)
def test_the_suite_rejects(name, piece, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.scheduling_exercises(**{name: piece})


@pytest.mark.parametrize(
    "name, piece", [(name, piece) for name in RIGHT for piece in RIGHT[name]]
)
def test_the_suite_accepts(name, piece, capsys):
    checks.scheduling_exercises(**{name: piece})
