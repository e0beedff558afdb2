"""Who computes how many tokens in the next step.

Everything is a count of tokens. A sequence needs `len(tokens) - num_computed` of them;
a decoding one needs 1, a new prompt all of its own, a chunk is what the budget leaves,
a prefix hit a larger first `num_computed`, and preemption by recompute a reset to 0. So
there is one path for all of them, and no notion of phases. This module knows neither
tensors nor text.
"""

from bisect import insort
from dataclasses import dataclass, field

from folovllm_lite.block_manager import BlockManager, Moves
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceStatus


@dataclass(slots=True)
class Work:
    """The part of one sequence in a step: tokens [start, start + count)."""

    seq: Sequence
    start: int
    count: int
    copies: Moves = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first token after it."""
        return self.start + self.count


@dataclass(slots=True)
class Step:
    """One step: swap out, swap in, copy, compute `work`, in this order."""

    work: list[Work] = field(default_factory=list)
    swap_out: Moves = field(default_factory=list)  # (block, CPU block)
    swap_in: Moves = field(default_factory=list)  # (CPU block, block)
    swapped: list[Sequence] = field(default_factory=list)  # those that go out
    preempted: int = 0

    @property
    def copies(self) -> Moves:
        """Copy-on-write, (from block, to block)."""
        return [move for work in self.work for move in work.copies]

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(work.count for work in self.work)


class Scheduler:
    """First come, first served, within a budget of tokens and of sequences.

    Args:
        config: with `max_num_batched_tokens` set.
        blocks: of the KV cache.
        swap: preempt by swapping to CPU memory while there is room, not by recompute.

    A sequence stands in `waiting` or in `running`; both are kept in the order of
    (priority, arrival, index), so what was preempted is back at its old place.
    """

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, swap: bool = False
    ):
        self.config = config
        self.blocks = blocks
        self.swap = swap
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence."""
        insort(self.waiting, seq, key=_order)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` run beside its parent, on the same blocks."""
        self.blocks.fork(parent, child)
        insort(self.running, child, key=_order)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence that is finished or aborted, and free its blocks."""
        for queue in (self.running, self.waiting):
            if seq in queue:
                queue.remove(seq)
        self.blocks.release(seq)

    def schedule(self) -> Step:
        """Choose the work of the next step and give it its blocks."""
        step = Step()
        chosen: dict[str, Work] = {}
        budget = self._continue(step, chosen)
        for work in chosen.values():  # nothing loses its place any more
            self.blocks.commit(work.seq, work.start, work.end)
        if not step.preempted:  # what has just lost its blocks must not take them back
            self._admit(step, chosen, budget)
        step.work = list(chosen.values())
        return step

    def _continue(self, step: Step, chosen: dict[str, Work]) -> int:
        """Go on with what runs, decodes first; returns the tokens left."""
        budget = self.config.max_num_batched_tokens
        missing = [(seq.num_missing, seq) for seq in self.running]
        # A stable sort: within decodes, and within prefills, the order stays.
        for needed, seq in sorted(missing, key=lambda pair: pair[0] > 1):
            count = self._count(needed, budget)
            if not count or seq.status is not SequenceStatus.RUNNING:
                continue
            end = seq.num_computed + count
            while not self.blocks.can_grow(seq, end):
                victim = self.running[-1]
                budget += self._preempt(victim, step, chosen)
                if victim is seq:
                    break
            else:
                copies = self.blocks.grow(seq, end)
                chosen[seq.seq_id] = Work(seq, seq.num_computed, count, copies)
                budget -= count
        return budget

    def _admit(self, step: Step, chosen: dict[str, Work], budget: int) -> None:
        """Begin with what waits, in order, until something doesn't fit."""
        room = self.config.max_num_seqs - sum(seq.width for seq in self.running)
        while self.waiting and self.waiting[0].width <= room:
            seq = self.waiting[0]
            swapped = seq.status is SequenceStatus.SWAPPED
            hits = [] if swapped or seq.scores_prompt else self.blocks.match(seq)
            start = seq.num_computed or len(hits) * self.blocks.block_size
            count = self._count(seq.get_len() - start, budget)
            if not count:
                return
            if swapped:
                if not self.blocks.can_swap_in(seq, start + count):
                    return
                step.swap_in += self.blocks.swap_in(seq)
            else:
                if not self.blocks.can_grow(seq, start + count, hits):
                    return
                self.blocks.adopt(seq, hits)
            copies = self.blocks.grow(seq, start + count)
            work = chosen[seq.seq_id] = Work(seq, start, count, copies)
            # Who is next may begin alike, and finds these blocks already. After a swap
            # all of them are new ones: they are offered from the beginning.
            self.blocks.commit(seq, 0 if swapped else start, work.end)
            budget -= count
            room -= seq.width
            self.waiting.pop(0)
            seq.move_to(SequenceStatus.RUNNING)
            insort(self.running, seq, key=_order)

    def _count(self, missing: int, budget: int) -> int:
        """How many of the missing tokens this step takes; 0 if it has to wait."""
        if missing > budget and not self.config.enable_chunked_prefill:
            return 0
        return min(missing, budget)

    def _preempt(self, seq: Sequence, step: Step, chosen: dict[str, Work]) -> int:
        """Take the blocks of `seq`; returns the tokens it had in this step."""
        undone = chosen.pop(seq.seq_id, None)
        self.running.remove(seq)
        step.preempted += 1
        # Blocks that are only now coming back, or were copied only now, hold nothing
        # yet.
        if self.swap and not undone and self.blocks.can_swap_out(seq):
            step.swap_out += self.blocks.swap_out(seq)
            step.swapped.append(seq)
            seq.move_to(SequenceStatus.SWAPPED)
        else:
            self.blocks.release(seq)
            seq.num_computed = 0
            seq.move_to(SequenceStatus.WAITING)
        insort(self.waiting, seq, key=_order)
        return undone.count if undone else 0

    def advance(self, step: Step) -> None:
        """Count the step's tokens as computed: called when they are, not before."""
        for work in step.work:
            work.seq.num_computed = work.end

    def undo(self, step: Step) -> None:
        """Offer nothing of a step that failed: its blocks were never written."""
        for work in step.work:
            self.blocks.withdraw(work.seq)


def _order(seq: Sequence) -> tuple[int, int, int]:
    return seq.order
