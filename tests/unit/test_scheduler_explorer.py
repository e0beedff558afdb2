"""The scheduler explorer: what its timeline says is what the scheduler did."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.prefix_cache import PrefixCache
from folovllm_lite.scheduler import Scheduler, chunk, decodes_first
from folovllm_lite.widgets import (
    Job,
    SchedulerExplorer,
    draw_schedule,
    run_schedule,
    run_static,
    schedule_text,
)


def scheduler(budget=16, seqs=4, blocks=16, cut=False):
    config = SchedulerConfig(budget, seqs)
    how = (chunk, decodes_first) if cut else ()
    return Scheduler(config, BlockManager(blocks, 4), *how)


def test_a_timeline_that_was_worked_out_by_hand():
    jobs = [Job("A", 6, 3), Job("B", 9, 2, arrival=2), Job("C", 2, 1, arrival=2)]
    made = run_schedule(jobs, scheduler(budget=10))
    assert schedule_text(made).splitlines()[:3] == ["A Pdd", "B  Pd", "C  wP"]
    assert [step.tokens for step in made.steps] == [6, 10, 4]
    assert (made.first_token("B"), made.last_token("B")) == (2, 3)
    cut = run_schedule(jobs, scheduler(budget=6, cut=True))
    assert schedule_text(cut).splitlines()[:3] == ["A Pdd", "B  CPd", "C  wCP"]


def test_a_static_batch_waits_for_its_slowest():
    jobs = [Job("A", 3, 4), Job("B", 3, 1), Job("C", 3, 2)]
    made = run_static(jobs, 2)
    wanted = ["A Pddd", "B P---", "C wwwwPd"]
    assert schedule_text(made).splitlines()[:3] == wanted


jobs = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 6)),
    min_size=1,
    max_size=6,
)


@given(
    jobs, st.integers(4, 24), st.integers(1, 4), st.integers(5, 9), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_every_job_gets_each_of_its_tokens_once(
    sizes, budget, seqs, blocks, cut, cache
):
    """Unless it is preempted, when it computes again what it had."""
    jobs = [Job("ABCDEF"[i], *size) for i, size in enumerate(sizes)]
    pool = BlockManager(blocks, 4, PrefixCache(blocks, 4) if cache else None)
    how = (chunk, decodes_first) if cut else ()
    config = SchedulerConfig(budget if cut else 24, seqs)
    made = run_schedule(
        jobs, Scheduler(config, pool, *how), lambda _: pool.check_integrity()
    )
    for job in jobs:
        kinds = [step.kinds.get(job.name) for step in made.steps]
        assert kinds.count("done") == len(made.steps) - made.last_token(job.name)
        computed = sum(step.counts.get(job.name, 0) for step in made.steps)
        if made.preemptions() == 0:
            assert computed == job.prompt + job.output - 1
        else:
            assert computed >= job.prompt + job.output - 1
        assert made.first_token(job.name) >= job.arrival
    assert all(step.tokens <= made.budget for step in made.steps)
    signs = schedule_text(made).splitlines()[: len(jobs)]
    assert all(len(line) <= len(made.steps) + 2 for line in signs)


def test_a_dial_changes_the_picture():
    explorer = SchedulerExplorer()
    before = explorer.figure.value
    assert "10 steps, 0 preemptions" in explorer.status.value
    explorer.seqs.value = 2
    assert explorer.figure.value != before
    explorer.budget.value = 5
    assert "let prompts be cut" in explorer.status.value
    explorer.chunked.value = True
    assert "steps" in explorer.status.value
    assert explorer.picture.svg == explorer.picture.svg
    assert str(draw_schedule(explorer.schedule)) == schedule_text(explorer.schedule)


def test_a_scheduler_that_forgets_somebody_is_found_out():
    class Forgets(Scheduler):
        def add(self, seq):
            if seq.seq_id != "B":
                super().add(seq)

    made = Forgets(SchedulerConfig(16, 4), BlockManager(16, 4))
    with pytest.raises(RuntimeError, match=r"50 steps there are still \['B'\]"):
        run_schedule([Job("A", 2, 2), Job("B", 2, 2)], made, most=50)
