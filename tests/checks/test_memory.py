"""The suite for memories passes on blocks and on rows, and rejects mistakes.

A mutant is a memory with one mistake that somebody could make, or has made. Each has to
turn the line red that is about it, and not just any.
"""

import pytest

from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.prefix_cache import PrefixCache
from tests.checks.mutants import names_of, refuse


class Rows:
    """What a first engine has: one row of the full length for each sequence."""

    def __init__(self, count, length):
        self.count, self.capacity = count, length
        self.clear()

    def clear(self):
        self.free, self.moves = list(range(self.count)), []

    def found(self, seq):
        return 0

    def place(self, seq, end):
        if not self.free or end > self.capacity:
            return False
        seq.block_ids, seq.num_computed = [self.free.pop(0)], 0
        return True

    def grow(self, seq, end):
        return end <= self.capacity

    def release(self, seq):
        self.free += seq.block_ids
        seq.block_ids = []

    def swap_out(self, seq):
        return False

    def fork(self, parent, child):
        child.block_ids = [self.free.pop(0)]
        self.moves.append(("copy", parent.block_ids[0], child.block_ids[0]))

    def offer(self, seq, end):
        pass

    def withdraw(self, seq):
        pass

    def stats(self):
        return {"rows": self.count, "rows_held": self.count - len(self.free)}


class Elsewhere(Rows):
    """The same with a table of its own: nothing stands in the sequences."""

    def clear(self):
        super().clear()
        self.rows = {}

    def place(self, seq, end):
        if seq.seq_id in self.rows or not self.free or end > self.capacity:
            return False
        self.rows[seq.seq_id] = self.free.pop(0)
        seq.num_computed = 0
        return True

    def release(self, seq):
        if seq.seq_id in self.rows:
            self.free.append(self.rows.pop(seq.seq_id))

    def fork(self, parent, child):
        self.rows[child.seq_id] = self.free.pop(0)
        self.moves.append(("copy", self.rows[parent.seq_id], self.rows[child.seq_id]))


class Slots(Rows):
    """Rows that share a number of slots, each as many as it has tokens: notebook 10."""

    def __init__(self, count, length, slots=16):
        self.slots = slots
        super().__init__(count, min(length, slots))

    def clear(self):
        super().clear()
        self.held = {}

    def grow(self, seq, end):
        others = sum(self.held.values()) - self.held.get(seq.seq_id, 0)
        if end > min(self.capacity, self.slots - others):
            return False
        self.held[seq.seq_id] = end
        return True

    def place(self, seq, end):
        return bool(self.free) and self.grow(seq, end) and super().place(seq, end)

    def release(self, seq):
        super().release(seq)
        self.held.pop(seq.seq_id, None)


def blocks():
    return BlockManager(6, 2, num_swap_blocks=6)


def caching():
    return BlockManager(6, 2, PrefixCache(6, 2), num_swap_blocks=6)


RIGHT = {
    "blocks": blocks,
    "blocks without swap": lambda: BlockManager(6, 2),
    "blocks of one token": lambda: BlockManager(12, 1, num_swap_blocks=4),
    "prefix caching": caching,
    "rows": lambda: Rows(3, 8),
    "rows elsewhere": lambda: Elsewhere(3, 8),
    "rows that share slots": lambda: Slots(3, 8),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_memory_passes(name, capsys):
    checks.memory(Memory=RIGHT[name])
    out = capsys.readouterr().out
    assert "✗" not in out and "All 15 properties hold." in out


# ----- mistakes of rows


class ALongOneBegins(Rows):
    def place(self, seq, end):
        if not self.free:
            return False
        seq.block_ids, seq.num_computed = [self.free.pop(0)], 0
        return True


class CountsItselfAmongOthers(Slots):
    def grow(self, seq, end):
        if end > min(self.capacity, self.slots - sum(self.held.values())):
            return False
        self.held[seq.seq_id] = end
        return True


class CountsOneStep(Slots):
    def grow(self, seq, end):
        if not super().grow(seq, end):
            return False
        self.held[seq.seq_id] = end - seq.num_computed
        return True


class HoldsWhatItRefused(Slots):
    def place(self, seq, end):
        return self.grow(seq, end) and Rows.place(self, seq, end)


class HoldsWhatWasReleased(Slots):
    def release(self, seq):
        Rows.release(self, seq)


class CopiesWhatWasCleared(Rows):
    def clear(self):
        kept = getattr(self, "moves", [])
        super().clear()
        self.moves = kept


class GrowsForEver(Rows):
    def grow(self, seq, end):
        return True


class OneTooFew(Rows):
    def grow(self, seq, end):
        return end < self.capacity


class TheLastRowForTwo(Rows):
    def place(self, seq, end):
        if len(self.free) == 1 and end <= self.capacity:
            seq.block_ids, seq.num_computed = list(self.free), 0
            return True
        return super().place(seq, end)


class ComputedAtOnce(Rows):
    def place(self, seq, end):
        placed = super().place(seq, end)
        seq.num_computed = end if placed else 0
        return placed


class RefusedAndEmptied(Rows):
    def place(self, seq, end):
        seq.block_ids = self.free[:1]
        return super().place(seq, end)


class ForgetsToGiveBack(Rows):
    def release(self, seq):
        seq.block_ids = []


class GivesBackTwice(Elsewhere):
    def release(self, seq):
        if seq.seq_id in self.rows:
            self.free.append(self.rows[seq.seq_id])


class ClearedAndFull(Rows):
    def clear(self):
        self.free = getattr(self, "free", list(range(self.count)))
        self.moves = []


class SwapsToNowhere(Rows):
    def swap_out(self, seq):
        self.release(seq)
        return True


class SwapsOutAndSaysNo(Rows):
    def swap_out(self, seq):
        self.release(seq)
        return False


class AForkHasTheParentsRow(Rows):
    def fork(self, parent, child):
        child.block_ids = list(parent.block_ids)


class AForkIsNotCopied(Rows):
    def fork(self, parent, child):
        child.block_ids = [self.free.pop(0)]


class NumbersWithoutNames(Rows):
    def stats(self):
        return [self.count, len(self.free)]


# ----- mistakes of blocks


class Blocks(BlockManager):
    def __init__(self):
        super().__init__(6, 2, num_swap_blocks=6)


class Caching(BlockManager):
    def __init__(self):
        super().__init__(6, 2, PrefixCache(6, 2), 6)


class TakesWhatIsThere(Blocks):
    def grow(self, seq, end):
        missing = self.blocks_for(end) - len(seq.block_ids)
        if missing > len(self.free):
            self._fill(seq, (len(seq.block_ids) + len(self.free)) * self.block_size)
        return super().grow(seq, end)


class TakesALittleMore(Blocks):
    def grow(self, seq, end):
        if self.blocks_for(end) - len(seq.block_ids) > len(self.free):
            self.moves.append(("copy", 0, 0))
        return super().grow(seq, end)


class WritesToSharedBlocks(Blocks):
    def grow(self, seq, end):
        if self.blocks_for(end) - len(seq.block_ids) > len(self.free):
            return False
        self._fill(seq, end)
        return True


class CopiesTheWrongWay(Blocks):
    def grow(self, seq, end):
        grown = super().grow(seq, end)
        self.moves = [(k, b, a) if k == "copy" else (k, a, b) for k, a, b in self.moves]
        return grown


class ComesBackBackwards(Blocks):
    def _swap_in(self, seq):
        self.swapped[seq.seq_id].reverse()
        super()._swap_in(seq)


class ComesBackFromNothing(Blocks):
    def place(self, seq, end):
        placed = super().place(seq, end)
        if placed:
            seq.num_computed = 0
        return placed


class KeepsCpuBlocks(Blocks):
    def release(self, seq):
        away = self.swapped.get(seq.seq_id)
        super().release(seq)
        if away:
            self.free_swap = self.free_swap[len(away) :]


class FindsAll(Caching):
    def found(self, seq):
        found = super().found(seq)
        return seq.get_len() if found and found + 1 == seq.get_len() else found


class FindsAndComputesAgain(Caching):
    def place(self, seq, end):
        placed = super().place(seq, end)
        if placed and seq.num_computed > 0:
            seq.num_computed -= 1
        return placed


class OffersWhatHasRoom(Caching):
    def place(self, seq, end):
        placed = super().place(seq, end)
        if placed:
            self.free.offer(seq, end)
        return placed


class NeverWithdraws(Caching):
    def withdraw(self, seq):
        pass


class HitsForScoredPrompts(Caching):
    def _hits(self, seq):
        return [] if seq.seq_id in self.swapped else self.free.find(seq)


class ANumberIsMissing(Caching):
    def stats(self):
        return {**super().stats(), "prefix_hit_rate": None}


class SwapsOutAPart(BlockManager):
    def __init__(self):
        super().__init__(6, 2, num_swap_blocks=3)

    def swap_out(self, seq):
        if len(seq.block_ids) > len(self.free_swap):
            self.free_swap.clear()  # taken one by one, and not put back
        return super().swap_out(seq)


MUTANTS = {
    CountsItselfAmongOthers: "_grows",
    CountsOneStep: "_grows",
    HoldsWhatItRefused: "_full",
    HoldsWhatWasReleased: "_gives_back",
    CopiesWhatWasCleared: "_cleared",
    SwapsOutAPart: "_swap",
    ComputedAtOnce: "_begins",
    ALongOneBegins: "_capacity",
    GrowsForEver: "_grows",
    OneTooFew: "_grows",
    TheLastRowForTwo: "_full",
    RefusedAndEmptied: "_capacity",
    TakesWhatIsThere: "_no_growth",
    TakesALittleMore: "_no_growth",
    ForgetsToGiveBack: "_gives_back",
    GivesBackTwice: "_gives_back",
    ClearedAndFull: "_cleared",
    SwapsToNowhere: "_swap",
    SwapsOutAndSaysNo: "_swap",
    ComesBackFromNothing: "_swap",
    KeepsCpuBlocks: "_swapped_release",
    AForkHasTheParentsRow: "_fork",
    AForkIsNotCopied: "_fork",
    WritesToSharedBlocks: "_fork",
    CopiesTheWrongWay: "_reads_what_it_wrote",
    ComesBackBackwards: "_swap",
    FindsAll: "_found",
    FindsAndComputesAgain: "_found",
    OffersWhatHasRoom: "_strangers",
    NeverWithdraws: "_strangers",
    HitsForScoredPrompts: "_scored",
    NumbersWithoutNames: "_told",
    ANumberIsMissing: "_told",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_suite_rejects(mutant, capsys):
    make = mutant if issubclass(mutant, BlockManager) else lambda: mutant(3, 8)
    refuse(checks.memory, {"Memory": make}, MUTANTS[mutant], capsys)


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    assert names_of(checks.memory) == set(MUTANTS.values())
