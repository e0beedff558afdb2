"""The block explorer: what its grid says is what the pool holds."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.scheduler import Scheduler
from folovllm_lite.viz.paged_kv_cache import OWNERS
from folovllm_lite.widgets import (
    BlockExplorer,
    Job,
    PoolView,
    draw_blocks,
    draw_pool,
    pool_text,
    run_schedule,
    schedule_text,
    watch_blocks,
)


def scheduler(blocks=12, size=4, swap=0, seqs=8):
    pool = BlockManager(blocks, size, num_swap_blocks=swap)
    return Scheduler(SchedulerConfig(64, seqs), pool)


VIEW = PoolView(
    num_blocks=5,
    block_size=4,
    tables={"A": [0, 2], "B": [0, 1]},
    stored={"A": 6, "B": 8},
    num_swap_blocks=2,
    swapped={"C": [1]},
    names=("A", "B", "C"),
)


def test_a_pool_in_text():
    assert pool_text(VIEW).splitlines() == [
        "block  0  ■■■■  A B  (shared by 2)",
        "block  1  ■■■■  B",
        "block  2  ■■□□  A",
        "block  3  ····  free",
        "block  4  ····  free",
        "CPU blocks 1: C",
        "table of A: [0, 2], 6 tokens",
        "table of B: [0, 1], 8 tokens",
        "5 blocks of 4: 3 held, 1 of them shared, 2 free; 10 tokens in 12 slots",
    ]


def test_the_picture_says_the_same_as_the_text():
    picture = draw_pool(VIEW, "a title", "what happened")
    svg = ElementTree.fromstring(picture.svg)
    words = [each.text for each in svg.iter() if each.tag.endswith("text")]
    assert words[:2] == ["a title", "what happened"]
    assert words[2:7] == ["0: A B", "1: B", "2: A", "3: free", "4: free"]
    assert words[7:10] == ["in CPU memory", "0: free", "1: C"]
    assert words[10:] == [
        "A: 6 tokens in blocks [0, 2]",
        "B: 8 tokens in blocks [0, 1]",
    ]
    fills = re.findall(r'fill="(#\w+)"', picture.svg)
    # Slots, and the square before a table; a shared block has its first owner's colour.
    assert [fills.count(colour) for colour in OWNERS[:3]] == [4 + 2 + 1, 4 + 1, 1]
    assert picture.text.splitlines()[:2] == ["a title", "what happened"]


def test_forks_worked_out_by_hand():
    """Two completions of 6 tokens in blocks of 4: one copy, in the first decode."""
    made, steps = watch_blocks([Job("A", 6, 3, n=2)], scheduler())
    assert schedule_text(made).splitlines()[:2] == ["A  Pdd", "A2 fdd"]
    assert [step.moves for step in steps] == [(), (("copy", 1, 2),), ()]
    assert steps[0].view.tables == {"A": [0, 1]}  # looked at before it is forked
    assert steps[1].view.tables == {"A": [0, 2], "A2": [0, 1]}
    assert steps[1].view.owners(0) == ["A", "A2"]
    assert (made.first_token("A2"), made.last_token("A2")) == (1, 3)
    assert "blocks moved: copied 1 → 2" in steps[1].said


def test_who_is_swapped_out_is_shown_in_cpu_memory():
    jobs = [Job("A", 6, 6), Job("B", 5, 6)]
    made, steps = watch_blocks(jobs, scheduler(blocks=4, swap=4))
    (out,) = [step for step in steps if step.preempted]
    assert out.preempted == ("B",) and out.view.swapped == {"B": [0, 1]}
    assert "CPU blocks 0, 1: B" in str(draw_blocks(out, len(steps)))
    back = next(step for step in steps if any(move[0] == "in" for move in step.moves))
    assert back.view.swapped == {} and "B" in back.view.tables
    assert made.preemptions() == 1


jobs = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 6)),
    min_size=1,
    max_size=5,
)


@given(jobs, st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(0, 8))
def test_what_is_shown_is_what_the_pool_holds(sizes, n, size, swap):
    """Each step's blocks add up, and everybody gets each of its tokens."""
    jobs = [Job("ABCDE"[i], *each) for i, each in enumerate(sizes)]
    jobs[0] = Job("A", *sizes[0], n=n)
    made = scheduler(-(-20 // size), size, swap)
    found, steps = watch_blocks(jobs, made)
    assert len(found.steps) == len(steps)
    assert len(found.jobs) == len(jobs) + n - 1
    for step in steps:
        view = step.view
        held = [i for i in range(view.num_blocks) if view.owners(i)]
        assert sum(map(len, view.tables.values())) >= len(held)
        for name, table in view.tables.items():
            assert len(table) == -(-view.stored[name] // size)
            assert name not in view.swapped
        last = pool_text(view).splitlines()[-1]
        assert f"{len(held)} held" in last
        assert f"{view.num_blocks - len(held)} free" in last
    for job in found.jobs:
        assert found.first_token(job.name) <= found.last_token(job.name)
    made.memory.check_integrity()
    assert len(made.memory.free) == made.memory.num_blocks


def test_a_schedule_is_the_same_whether_it_is_watched_or_not():
    jobs = [Job("A", 6, 6, n=3), Job("B", 5, 9), Job("C", 9, 4, arrival=2)]
    watched, _ = watch_blocks(jobs, scheduler())
    assert schedule_text(watched) == schedule_text(run_schedule(jobs, scheduler()))


def test_a_dial_changes_the_picture():
    explorer = BlockExplorer()
    before = explorer.figure.value
    explorer.step.value = 3
    assert explorer.figure.value != before and "after step 3" in str(explorer)
    assert "sequences preempted: 0" in explorer.status.value
    assert "blocks copied: 1;" in explorer.status.value
    explorer.n.value = 4
    assert "blocks copied: 3;" in explorer.status.value
    explorer.n.value = 1
    assert "blocks copied: 0;" in explorer.status.value
    explorer.blocks.value, explorer.swap.value = 6, 8
    assert "swapped out: 0" not in explorer.status.value
    assert explorer.picture.svg == explorer.picture.svg


def test_a_step_that_is_no_more_is_left():
    explorer = BlockExplorer(blocks=6, step=12)
    assert explorer.step.value == 12
    explorer.n.value, explorer.blocks.value = 1, 24
    assert explorer.step.value == len(explorer.steps) == 10
    assert "after step 10 of 10" in str(explorer)


def test_a_pool_that_is_too_small_says_so_and_keeps_the_picture():
    explorer = BlockExplorer()
    before = explorer.figure.value
    explorer.blocks.value = 3
    assert "B has to keep 13 tokens" in explorer.status.value
    assert "room for 12" in explorer.status.value
    assert explorer.figure.value == before
    explorer.blocks.value = 4
    assert "steps in all" in explorer.status.value


def test_every_dial_is_reached_with_tab_and_the_picture_with_a_reader():
    explorer = BlockExplorer(swap=4)
    dials = [explorer.step, explorer.blocks, explorer.block_size, explorer.n]
    assert all(dial.description and dial.tabbable is not False for dial in dials)
    assert 'role="img" aria-label="after step 1' in explorer.figure.value
    assert 'aria-live="polite"' in explorer.status.value
    still = explorer._repr_mimebundle_()
    assert still["image/svg+xml"] == explorer.picture.svg
    assert still["text/plain"] == explorer.picture.text == repr(explorer)


def test_a_learners_pool_is_looked_at():
    class Hoards(BlockManager):
        """Never gives a copy: forks write over each other."""

        def grow(self, seq, end):
            self._fill(seq, end)
            return True

    explorer = BlockExplorer(memory=Hoards)
    assert "blocks copied: 0;" in explorer.status.value


def test_nobody_waits_for_ever_unseen():
    class Refuses(BlockManager):
        def place(self, seq, end):
            return False

    pool = Refuses(8, 4)
    with pytest.raises(RuntimeError, match="after 20 steps there are still"):
        watch_blocks([Job("A", 2, 2)], Scheduler(SchedulerConfig(64, 4), pool), most=20)
