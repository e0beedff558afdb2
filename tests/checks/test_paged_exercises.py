"""The exercises of notebook 11: solutions pass, plausible wrong answers don't."""

import pytest

from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager
from tests.checks.mutants import names_of, red, solutions

SOLVED = solutions("11_paged_kv_cache.ipynb")
EXERCISES = ("predict_pool", "CarefulManager", "fragment", "blocks_to_move")
SUITE = checks.paged_exercises


def test_the_solutions_pass(capsys):
    SUITE({name: SOLVED[name] for name in EXERCISES})
    assert "✗" not in capsys.readouterr().out


# ----- 1. trace

ANSWER = {
    "a2": [0, 1, 3], "b": [2, 4], "b2": [2, 5], "copies": [(1, 3)], "free": [6, 7],
}  # fmt: skip


def test_the_answer_is_what_the_calls_leave():
    SUITE(predict_pool=lambda: ANSWER)
    tuples = {key: tuple(map(tuple, x)) if key == "copies" else tuple(x)
              for key, x in ANSWER.items()}  # fmt: skip
    SUITE(predict_pool=lambda: tuples)


PREDICTIONS = {
    "both writers copy": {"copies": [(1, 3), (1, 4)], "b": [2, 5], "b2": [2, 6]},
    "a fork copies at once": {"copies": [(0, 3), (1, 4)], "a2": [3, 4, 0]},
    "a full block is copied": {"copies": [(1, 3), (2, 4)], "b": [4, 5]},
    "the writer keeps the original": {"a2": [0, 3, 1], "copies": [(1, 3)]},
    "freed blocks go last": {"a2": [0, 1, 6], "free": [3, 7]},
    "release frees shared blocks": {"free": [0, 6, 7], "a2": [0, 1, 3]},
    "no copy at all": {"copies": []},
}


@pytest.mark.parametrize("slip", PREDICTIONS)
def test_the_suite_rejects_a_prediction(slip, capsys):
    with pytest.raises(checks.CheckFailed):
        SUITE(predict_pool=lambda: {**ANSWER, **PREDICTIONS[slip]})
    lines = capsys.readouterr().out.splitlines()
    told = {line.strip() for line in lines if "expected:" in line}
    assert told == {"expected: what the calls leave behind"}  # and not the answer


@pytest.mark.parametrize("answer", [None, [], {}, {**ANSWER, "free": 2}, "a2"])
def test_what_is_no_prediction_is_told_so(answer, capsys):
    with pytest.raises(checks.CheckFailed):
        SUITE(predict_pool=lambda: answer)
    assert "Error" not in capsys.readouterr().out


# ----- 2. modify


class Careful(BlockManager):
    def __init__(self, num_blocks, block_size, reserve):
        super().__init__(num_blocks, block_size)
        self.reserve = reserve


class LooksBefore(Careful):
    """Counts what is free before it begins, not after."""

    def place(self, seq, end):
        if self.holders and len(self.free) < self.reserve:
            return False
        return super().place(seq, end)


class NeverAlone(Careful):
    def place(self, seq, end):
        if len(self.free) - self.blocks_for(end) < self.reserve:
            return False
        return super().place(seq, end)


class CountsTokens(Careful):
    def place(self, seq, end):
        room = len(self.free) * self.block_size - end
        if self.holders and room < self.reserve:
            return False
        return super().place(seq, end)


class CountsTheText(Careful):
    """Of a prompt that comes in chunks it counts all at once."""

    def place(self, seq, end):
        left = len(self.free) - self.blocks_for(seq.get_len())
        if self.holders and left < self.reserve:
            return False
        return super().place(seq, end)


class WhatIsGoneIsGone(Careful):
    """When the reserve is touched already, anybody may begin."""

    def place(self, seq, end):
        left = len(self.free) - self.blocks_for(end)
        if self.holders and left < self.reserve <= len(self.free):
            return False
        return super().place(seq, end)


class CountsWhoBegan(Careful):
    """A fork is nobody to it, and who is released twice counts twice."""

    begun = 0

    def place(self, seq, end):
        if self.begun and len(self.free) - self.blocks_for(end) < self.reserve:
            return False
        placed = super().place(seq, end)
        self.begun += placed
        return placed

    def release(self, seq):
        super().release(seq)
        self.begun -= 1


class ForksAreNobody(CountsWhoBegan):
    def release(self, seq):
        self.begun -= seq.seq_id in self.holders
        BlockManager.release(self, seq)

    def clear(self):
        super().clear()
        self.begun = 0


class AloneIsAlwaysRight(Careful):
    def place(self, seq, end):
        alone = not self.holders
        if not alone and len(self.free) - self.blocks_for(end) < self.reserve:
            return False
        return super().place(seq, end) or alone


class NobodyGrowsInAFullPool(Careful):
    def place(self, seq, end):
        if self.holders and len(self.free) - self.blocks_for(end) < self.reserve:
            return False
        return super().place(seq, end)

    def grow(self, seq, end):
        return bool(self.free) and super().grow(seq, end)


class PlacesByItself(Careful):
    """Writes `place` anew, and forgets what else it does."""

    def place(self, seq, end):
        left = len(self.free) - self.blocks_for(end)
        if left < (self.reserve if self.holders else 0):
            return False
        seq.block_ids = []
        self._fill(seq, end)
        self.holders[seq.seq_id] = seq
        return True


class OneTooMany(Careful):
    def place(self, seq, end):
        if self.holders and len(self.free) - self.blocks_for(end) <= self.reserve:
            return False
        return super().place(seq, end)


class RemembersNames(Careful):
    """Who ran once under a name needn't leave the reserve under it again."""

    def __init__(self, num_blocks, block_size, reserve):
        super().__init__(num_blocks, block_size, reserve)
        self.known = set()

    def place(self, seq, end):
        left = len(self.free) - self.blocks_for(end)
        if self.holders and left < self.reserve and seq.seq_id not in self.known:
            return False
        self.known.add(seq.seq_id)
        return super().place(seq, end)


class KeepsItFromAll(NeverAlone):
    """Nobody gets the reserve, not even who runs: a smaller pool."""

    def grow(self, seq, end):
        if len(self.free) <= self.reserve:
            return False
        return super().grow(seq, end)


class PlacesFirst(Careful):
    """Looks afterwards, and forgets to give back."""

    def place(self, seq, end):
        alone = not self.holders
        if not super().place(seq, end):
            return False
        return alone or len(self.free) >= self.reserve


class TakesThemAway(BlockManager):
    """The reserve is taken out of the pool for good."""

    def __init__(self, num_blocks, block_size, reserve):
        super().__init__(num_blocks - reserve or 1, block_size)


class DoesNothing(Careful):
    pass


class GivesBack(Careful):
    """Another right one: takes, looks, and gives back."""

    def place(self, seq, end):
        if not super().place(seq, end):
            return False
        if len(self.holders) > 1 and len(self.free) < self.reserve:
            self.release(seq)
            return False
        return True


class AsksTheFreeList(Careful):
    """Another right one: alone is who finds all blocks free."""

    def place(self, seq, end):
        left = len(self.free) - self.blocks_for(end)
        if len(self.free) < self.num_blocks and left < self.reserve:
            return False
        return super().place(seq, end)


# ----- 3. design


def fills_with_ones(slots):
    """Every second slot stays: no hole, but half of the memory is held."""
    calls = [("place", i, 1) for i in range(slots)]
    return calls + [("release", i) for i in range(1, slots, 2)]


def leaves_one_long_hole(slots):
    """The last hole is one slot too long."""
    step, calls = slots // 4, []
    for i in range(3):
        calls += [("place", f"f{i}", step - 1), ("place", f"h{i}", 1)]
    return calls + [("release", f"f{i}") for i in range(3)]


def holes_of_a_quarter(slots):
    step, calls = slots // 4, []
    for i in range(3):
        calls += [("place", f"f{i}", step), ("place", f"h{i}", 1)]
    return calls + [("release", f"f{i}") for i in range(3)]


def more_than_there_is(slots):
    return [("place", "a", slots), ("place", "b", 1)]


def leaves_nothing(slots):
    return [("place", "a", slots), ("release", "a")]


def just_full(slots):
    return [("place", "a", slots)]


def releases_twice(slots):
    return [*SOLVED["fragment"](slots), ("release", "filler 0")]


def knows_64_only(slots):
    return SOLVED["fragment"](64)


def says_it(slots):
    return "place holders at every quarter"


def forgets_the_tokens(slots):
    return [("place", "a")]


def many_small_holes(slots):
    """Another right one: pieces of an eighth, held apart by single tokens."""
    step, calls = slots // 5, []
    for i in range(5):
        calls += [("place", f"f{i}", step - 1), ("place", f"h{i}", 1)]
    return calls + [("release", f"f{i}") for i in range(5)]


def moves_holes(free, size, tokens):
    """As in memory of one piece: the needed blocks have to stand in a row."""
    need = -(-tokens // size)
    if len(free) < need:
        return None
    return 0 if need <= 1 or free[need - 1] - free[0] == need - 1 else need


def counts_whole_blocks(free, size, tokens):
    return 0 if len(free) >= tokens // size else None


def always_none_needed(free, size, tokens):
    return 0


def says_no(free, size, tokens):
    return len(free) * size >= tokens


def counts_tokens_as_blocks(free, size, tokens):
    return 0 if len(free) >= tokens else None


def slots_suffice(free, size, tokens):
    """Another right one."""
    return 0 if len(free) * size >= tokens else None


MUTANTS = {
    "CarefulManager": [
        LooksBefore, NeverAlone, CountsTokens, OneTooMany, KeepsItFromAll, PlacesFirst,
        TakesThemAway, DoesNothing, RemembersNames, CountsTheText, WhatIsGoneIsGone,
        CountsWhoBegan, ForksAreNobody, AloneIsAlwaysRight, NobodyGrowsInAFullPool,
        PlacesByItself,
    ],
    "fragment": [
        fills_with_ones, leaves_one_long_hole, holes_of_a_quarter, more_than_there_is,
        leaves_nothing, just_full, releases_twice, knows_64_only, says_it,
        forgets_the_tokens,
    ],
    "blocks_to_move": [
        moves_holes, counts_whole_blocks, always_none_needed, says_no,
        counts_tokens_as_blocks,
    ],
}  # fmt: skip
RIGHT = [
    ("CarefulManager", GivesBack),
    ("CarefulManager", AsksTheFreeList),
    ("fragment", many_small_holes),
    ("blocks_to_move", slots_suffice),
]


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, many in MUTANTS.items() for mutant in many],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        SUITE(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


@pytest.mark.parametrize("name, other", RIGHT, ids=lambda x: getattr(x, "__name__", x))
def test_the_suite_accepts_another_right_answer(name, other):
    SUITE(**{name: other})


def test_every_property_is_needed(capsys):
    """Each line is red for some mutant."""
    seen = set()
    for name, many in MUTANTS.items():
        for mutant in many:
            with pytest.raises(checks.CheckFailed):
                SUITE(**{name: mutant})
            seen |= set(red(SUITE, capsys.readouterr().out))
    for slip in PREDICTIONS.values():
        with pytest.raises(checks.CheckFailed):
            SUITE(predict_pool=lambda slip=slip: {**ANSWER, **slip})
        seen |= set(red(SUITE, capsys.readouterr().out))
    assert seen == names_of(SUITE)


def test_whoever_is_never_alone_waits_for_ever(capsys):
    with pytest.raises(checks.CheckFailed):
        SUITE(CarefulManager=NeverAlone)
    assert "✗ Who is alone may have the whole pool" in capsys.readouterr().out
