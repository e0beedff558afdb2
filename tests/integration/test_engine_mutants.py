"""The oracle sees it when a part of the engine is wrong.

A judge that has never rejected anything proves nothing. So the state machine of
test_engine_oracle runs here on engines with one mistake patched in, and has to object.
The patches use what the parts promise each other (blocks, moves, slots, positions), not
how a part does it, so that a faster part needs no other mistakes.
"""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from folovllm_lite.block_manager import BlockManager
from folovllm_lite.engine import LLMEngine
from folovllm_lite.paged import PagedContext, PagedKVCache
from folovllm_lite.request import SequenceStatus
from folovllm_lite.runner import Runner, decodes
from folovllm_lite.scheduler import Scheduler
from tests.helpers import make_checkpoint
from tests.integration.test_engine_oracle import BLOCK, Machine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("mutants")))


def objections(
    checkpoint: str, examples: int, failing: bool = False
) -> list[Exception]:
    """What the state machine says of the engine as it is now.

    With `failing` steps fail now and then, which must cost nobody else a token.
    """
    found: list[Exception] = []

    class Judge(Machine):
        """Keeps the first objection: a replay on another engine may have none."""

        @contextlib.contextmanager
        def noted(self):
            try:
                yield
            except Exception as error:
                found.append(error)
                Machine.engines.clear()  # this one is full of what went wrong
                raise

        def one_step(self):
            with self.noted():
                super().one_step()

        def teardown(self):
            with self.noted():
                if not found:
                    super().teardown()

    class Failing(Judge):
        """Steps may fail, too."""

        @rule(moved=st.booleans())
        def fail(self, moved):
            """A step breaks, before its blocks are moved or after."""
            engine = self.engine
            move = engine.runner.cache.move

            def broken(step):
                if moved:
                    move(step.swap_out, step.swap_in, step.copies)
                raise RuntimeError("broken")

            with pytest.MonkeyPatch.context() as patch, self.noted():
                patch.setattr(engine.runner, "run", broken)
                with contextlib.suppress(RuntimeError):
                    engine.step()
                engine.blocks.check_integrity()
            self.asked = {name: self.asked[name] for name in engine._states}

    Machine.checkpoint, Machine.engines = checkpoint, {}
    with contextlib.suppress(Exception):
        run_state_machine_as_test(
            Failing if failing else Judge,
            settings=settings(
                max_examples=examples,
                stateful_step_count=12,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    return found


# ----- mistakes; each takes monkeypatch's setattr


def writes_to_shared_blocks(patch):
    patch(BlockManager, "_shared", lambda self, seq: None)


def copies_no_data_on_write(patch):
    move = PagedKVCache.move
    patch(PagedKVCache, "move", lambda self, out, into, _: move(self, out, into, []))


def copies_the_wrong_way(patch):
    move = PagedKVCache.move

    def wrong(self, out, into, copies):
        move(self, out, into, [(new, old) for old, new in copies])

    patch(PagedKVCache, "move", wrong)


def a_fork_begins_with_an_empty_block(patch):
    fork = BlockManager.fork

    def wrong(self, parent, child):
        fork(self, parent, child)
        if child.num_computed % self.block_size and self.num_free:
            self.blocks[child.block_ids.pop()].ref_count -= 1
            child.block_ids.append(self._take())

    patch(BlockManager, "fork", wrong)


def recompute_keeps_the_count(patch):
    preempt = Scheduler._preempt

    def wrong(self, seq, step, chosen):
        count = seq.num_computed
        budget = preempt(self, seq, step, chosen)
        if seq.status is SequenceStatus.WAITING:
            seq.num_computed = count
        return budget

    patch(Scheduler, "_preempt", wrong)


def positions_restart_after_a_hit_or_chunk(patch):
    context = Runner._context

    def wrong(self, work, *rest):
        made, first = context(self, work, *rest), 0
        for each in work:
            if each.count > 1:  # decoding rows count on
                rows = torch.arange(each.count, device=made.positions.device)
                made.positions[first : first + each.count] = rows
            first += each.count
        return made

    patch(Runner, "_context", wrong)


def the_last_slot_of_a_block_is_missed(patch):
    begin = PagedContext.__init__

    def wrong(self, cache, positions, slots, *rest):
        begin(
            self, cache, positions, slots - (slots % BLOCK == BLOCK - 1).long(), *rest
        )

    patch(PagedContext, "__init__", wrong)


def decoding_rows_see_what_others_have(patch):
    begin = PagedContext.__init__

    def wrong(self, *args):
        begin(self, *args)
        if self._num_rows:
            self._bias = torch.zeros_like(self._bias)

    patch(PagedContext, "__init__", wrong)


def a_chunk_forgets_its_past(patch):
    patch(PagedContext, "_mask_of", lambda self, segment: None)


def swaps_out_after_computing(patch):
    run = Runner.run

    def wrong(self, step):
        out, step.swap_out = step.swap_out, []
        hidden = run(self, step)
        self.cache.move(out, [], [])
        return hidden

    patch(Runner, "run", wrong)


def swaps_in_after_computing(patch):
    run = Runner.run

    def wrong(self, step):
        into, step.swap_in = step.swap_in, []
        hidden = run(self, step)
        self.cache.move([], into, [])
        return hidden

    patch(Runner, "run", wrong)


def swaps_in_backwards(patch):
    swap_in = BlockManager.swap_in

    def wrong(self, seq):
        moves = swap_in(self, seq)
        froms, tos = zip(*moves, strict=True)
        return list(zip(froms[::-1], tos, strict=True))

    patch(BlockManager, "swap_in", wrong)


def what_failed_is_still_offered(patch):
    patch(Scheduler, "undo", lambda self, step: None)


def who_shares_goes_first(patch):
    run = Runner.run

    def wrong(self, step):
        step.work.sort(key=lambda work: not decodes(work))
        return run(self, step)

    patch(Runner, "run", wrong)


def a_full_hit_leaves_no_token(patch):
    match = BlockManager.match

    def wrong(self, seq):
        seq.data.output_token_ids.append(0)  # it reaches one further
        try:
            return match(self, seq)
        finally:
            seq.data.output_token_ids.pop()

    patch(BlockManager, "match", wrong)


def evicted_blocks_are_still_found(patch):
    patch(BlockManager, "_forget", lambda self, block_id: None)


def aborted_requests_keep_their_blocks(patch):
    def wrong(self, request_id, reason=None):
        state = self._states.pop(request_id, None)
        if state is not None:
            state.abort(reason)
            for seq in state.sequences:
                for queue in (self.scheduler.running, self.scheduler.waiting):
                    if seq in queue:
                        queue.remove(seq)

    patch(LLMEngine, "abort_request", wrong)


MUTANTS = [
    writes_to_shared_blocks,
    copies_no_data_on_write,
    copies_the_wrong_way,
    a_fork_begins_with_an_empty_block,
    recompute_keeps_the_count,
    positions_restart_after_a_hit_or_chunk,
    the_last_slot_of_a_block_is_missed,
    decoding_rows_see_what_others_have,
    a_chunk_forgets_its_past,
    swaps_out_after_computing,
    swaps_in_after_computing,
    swaps_in_backwards,
    a_full_hit_leaves_no_token,
    who_shares_goes_first,
    evicted_blocks_are_still_found,
    aborted_requests_keep_their_blocks,
]


# This shows only if a step fails: what it was to compute isn't there.
FAILING = [what_failed_is_still_offered]


@pytest.mark.parametrize("failing", [False, True])
def test_without_a_mistake_it_says_nothing(checkpoint, failing):
    assert objections(checkpoint, 50, failing) == []


@pytest.mark.parametrize(
    "mistake, failing",
    [*((each, False) for each in MUTANTS), *((each, True) for each in FAILING)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_oracle_objects(mistake, failing, checkpoint, monkeypatch):
    mistake(monkeypatch.setattr)
    # Most are found within ten. But Hypothesis draws otherwise when other files are
    # collected beside this one, and with 150 it missed four of them once.
    examples = 1000
    first = objections(checkpoint, examples, failing)[:1]
    assert first, f"{examples} examples and no objection"
    # Wrong tokens, wrong books or no end: not a crash for a reason of the patch's own.
    assert isinstance(first[0], AssertionError), repr(first[0])
