"""Who computes how many tokens in the next step.

Everything is a count of tokens. A sequence needs `len(tokens) - num_computed` of them;
a decoding one needs 1, a new prompt all of its own, a prefix hit is a larger first
`num_computed`, and preemption by recompute a reset to 0. So there is one path for all
of them, and no notion of phases. Where keys and values live is a `Memory`'s business:
this module knows neither blocks nor tensors nor text.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceStatus

Move = tuple[str, int, int]  # ("out" to CPU memory | "in" from it | "copy", from, to)


class Memory(Protocol):
    """What the scheduler asks of whoever keeps keys and values: each verb in full, or
    nothing of it.
    """

    capacity: int  # tokens that a sequence can have if it is alone
    moves: list[Move]  # that its answers imply, in the order in which to make them

    def found(self, seq: Sequence) -> int:
        """How many tokens of a waiting sequence are there already."""

    def place(self, seq: Sequence, end: int) -> bool:
        """Let it begin, or come back, with room for its first `end` tokens."""

    def grow(self, seq: Sequence, end: int) -> bool:
        """Give a running one room for its first `end` tokens."""

    def release(self, seq: Sequence) -> None:
        """Take everything back; one that holds nothing is fine."""

    def swap_out(self, seq: Sequence) -> bool:
        """Move it to CPU memory."""

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` begin with what `parent` has."""

    def offer(self, seq: Sequence, end: int) -> None:
        """Its first `end` tokens may be found by others from now on."""

    def withdraw(self, seq: Sequence) -> None:
        """And now no more: what was planned was never computed."""

    def clear(self) -> None:
        """Forget everybody."""

    def stats(self) -> dict[str, float]:
        """What there is, and how much of it is in use."""


@dataclass(slots=True)
class Work:
    """The part of one sequence in a step: tokens [start, end)."""

    seq: Sequence
    start: int
    end: int

    @property
    def count(self) -> int:
        """How many tokens that are."""
        return self.end - self.start


@dataclass(slots=True)
class Step:
    """One step: make `moves` in their order, then compute `work`."""

    work: dict[str, Work] = field(default_factory=dict)  # by seq_id
    moves: list[Move] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(work.count for work in self.work.values())


def whole(missing: int, budget: int) -> int:
    """How many of the missing tokens a step takes: all, or none of them yet."""
    return missing if missing <= budget else 0


def chunk(missing: int, budget: int) -> int:
    """Of the missing tokens as many as the budget leaves: chunked prefill."""
    return min(missing, budget)


def as_they_came(running: list[Sequence]) -> list[Sequence]:
    """Whose turn it is: everybody's, in order."""
    return list(running)


def decodes_first(running: list[Sequence]) -> list[Sequence]:
    """Whose turn it is with chunked prefill: a chunk holds up nobody who decodes."""
    return sorted(running, key=lambda seq: seq.num_missing > 1)  # stable: order stays


@dataclass
class Scheduler:
    """First come, first served, within a budget of tokens and of sequences.

    Args:
        config: with `max_num_batched_tokens` set.
        memory: for keys and values.
        share, turns: what a step takes of a sequence, and in which order of them.

    Both lists are in `Sequence.order`, so what was preempted is back at its old place.
    """

    config: SchedulerConfig
    memory: Memory
    share: Callable[[int, int], int] = whole
    turns: Callable[[list[Sequence]], list[Sequence]] = as_they_came
    waiting: list[Sequence] = field(default_factory=list, init=False)
    running: list[Sequence] = field(default_factory=list, init=False)

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence."""
        insort(self.waiting, seq, key=_order)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` run beside its parent, from the same past."""
        self.memory.fork(parent, child)
        insort(self.running, child, key=_order)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence that is finished or aborted, and free its memory."""
        for queue in (self.running, self.waiting):
            first = bisect_left(queue, seq.order, key=_order)
            last = bisect_right(queue, seq.order, key=_order)
            queue[first:last] = [each for each in queue[first:last] if each is not seq]
        self.memory.release(seq)

    def clear(self) -> None:
        """Forget everybody."""
        self.waiting.clear()
        self.running.clear()
        self.memory.clear()

    def schedule(self) -> Step:
        """Choose the work of the next step and give it its memory."""
        step = Step()
        budget = self._continue(step)
        for work in step.work.values():  # nobody loses memory any more
            self.memory.offer(work.seq, work.end)
        if not step.preempted:  # what has just lost its memory must not take it back
            self._admit(step, budget)
        step.moves, self.memory.moves = self.memory.moves, []
        return step

    def _continue(self, step: Step) -> int:
        """Go on with what runs; returns the tokens left."""
        budget = self.config.max_num_batched_tokens
        for seq in self.turns(self.running):
            count = self.share(seq.num_missing, budget)
            end = seq.num_computed + count
            # It may have been preempted meanwhile, for one before it or for itself.
            while count and seq.status is SequenceStatus.RUNNING:
                if self.memory.grow(seq, end):
                    step.work[seq.seq_id] = Work(seq, seq.num_computed, end)
                    budget -= count
                    break
                budget += self._preempt(step)
        return budget

    def _admit(self, step: Step, budget: int) -> None:
        """Begin with what waits, in order, until something doesn't fit."""
        room = self.config.max_num_seqs - sum(seq.width for seq in self.running)
        while self.waiting and self.waiting[0].width <= room:
            seq = self.waiting[0]
            start = self.memory.found(seq)
            count = self.share(seq.get_len() - start, budget)
            if not count or not self.memory.place(seq, start + count):
                return
            step.work[seq.seq_id] = Work(seq, start, start + count)
            self.memory.offer(seq, start + count)  # who is next may begin alike
            budget, room = budget - count, room - seq.width
            seq.move_to(SequenceStatus.RUNNING)
            insort(self.running, self.waiting.pop(0), key=_order)

    def _preempt(self, step: Step) -> int:
        """Take the memory of the last in order; returns its tokens of this step."""
        seq = self.running.pop()
        undone = step.work.pop(seq.seq_id, None)
        step.preempted.append(seq)
        # Undone work leaves blocks that are not complete: not worth saving.
        saved = not undone and self.memory.swap_out(seq)
        if not saved:
            self.memory.release(seq)
            seq.num_computed = 0
        seq.move_to(SequenceStatus.SWAPPED if saved else SequenceStatus.WAITING)
        insort(self.waiting, seq, key=_order)
        return undone.count if undone else 0

    def advance(self, step: Step) -> None:
        """Count the step's tokens as computed: called when they are, not before."""
        for work in step.work.values():
            work.seq.num_computed = work.end


def _order(seq: Sequence) -> tuple[int, int, int]:
    return seq.order
