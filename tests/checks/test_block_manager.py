"""The suite for the pool of blocks passes on the package and rejects mistakes.

A mutant is the package's module with one mistake that somebody could make, or has made.
Each has to turn the line red that is about it, and not just any.
"""

import pytest

from folovllm_lite import block_manager as module
from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager, FreeBlocks
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams
from tests.checks.mutants import mutant, red, refuse


def test_the_package_passes(capsys):
    checks.block_manager(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 38 properties hold." in out


_COPY = "            self.refs[old] -= 1  # the others hold it still: never 0 here\n"
_SWAPPED = "        self.release(seq)\n        self.swapped[seq.seq_id] = host\n"
_COUNTS = "        held = Counter(i for seq in self.holders.values() "

# name: (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "numbers_begin_at_one": (
        "_free_all",
        "self.numbers = list(range(self.num_blocks))",
        "self.numbers = list(range(1, self.num_blocks + 1))",
    ),
    "free_blocks_are_never_fewer": (
        "_free_all",
        "return len(self.numbers)",
        "return self.num_blocks",
    ),
    "the_last_one_goes_first": (
        "_lowest_first",
        "return heappop(self.numbers)",
        "return self.numbers.pop()",
    ),
    "what_comes_back_goes_first": (
        "_lowest_first",
        "heappush(self.numbers, block_id)",
        "self.numbers.insert(0, block_id)",
    ),
    "cleared_is_emptied": (
        "_free_clear",
        ('        """All are free."""\n', '        """All are free."""\n'
         "        if hasattr(self, 'numbers'):\n"
         "            self.numbers.clear()\n"
         "            return\n"),
    ),
    "finds_its_first_blocks": (
        "_forgets",
        "        return []\n\n    def claim",
        "        return self.numbers[:1]\n\n    def claim",
    ),
    "an_empty_pool_is_fine": ("_fresh", "num_blocks < 1 or", "num_blocks < 0 or"),
    "a_pool_is_refused_without_a_number": (
        "_fresh",
        '            f"a pool needs blocks: num_blocks is {num_blocks}, "\n'
        '                f"block_size is {block_size}"',
        '            "a pool needs blocks"',
    ),
    "a_block_of_one_token_is_refused": (
        "_fresh", "or block_size < 1:", "or block_size <= 1:"
    ),
    "capacity_in_blocks": (
        "_fresh",
        "return self.num_blocks * self.block_size",
        "return self.num_blocks",
    ),
    "rounds_down": (
        "_rounds_up",
        "-(-num_tokens // self.block_size)",
        "num_tokens // self.block_size",
    ),
    "one_block_too_many": (
        "_rounds_up",
        "-(-num_tokens // self.block_size)",
        "num_tokens // self.block_size + 1",
    ),
    "room_counts_as_computed": (
        "_rounds_up",
        "seq.num_computed = len(hits) * self.block_size\n",
        "seq.num_computed = end\n",
    ),
    "missing_is_what_is_not_computed": (
        "_grow",
        "max(0, self.blocks_for(end) - len(seq.block_ids))",
        "max(0, self.blocks_for(end) - self.blocks_for(seq.num_computed))",
    ),
    "every_growth_is_from_nothing": (
        "_grow",
        "        while len(seq.block_ids) < self.blocks_for(end):\n",
        "        for _ in range(self.blocks_for(end)):\n",
    ),
    "growing_moves_all": (
        "_grow",
        "        self._fill(seq, end)\n        return True\n\n    def fork",
        "        if self.blocks_for(end) > len(seq.block_ids):\n"
        "            self.release(seq)\n"
        "            self.holders[seq.seq_id] = seq\n"
        "            self.free.numbers.sort(reverse=True)\n"
        "        self._fill(seq, end)\n        return True\n\n    def fork",
    ),
    "two_get_the_same": (
        "_distinct",
        "        block_id = self.free.take()\n        self.refs[block_id] = 1\n",
        "        block_id = self.free.take()\n"
        "        if block_id == 1:\n"
        "            self.free.put(block_id)\n"
        "            block_id = 0\n"
        "        self.refs[block_id] += 1\n",
    ),
    "begins_before_it_looks": (
        "_too_few",
        "        if self.blocks_for(end) - len(hits) > len(self.free) - len(idle):\n",
        "        if self.blocks_for(end) - len(hits) > len(self.free) - len(idle):\n"
        "            seq.block_ids = [self._take() for _ in range(len(self.free))]\n"
        "            self.holders[seq.seq_id] = seq\n",
    ),
    "grows_as_far_as_it_goes": (
        "_too_few",
        "        if missing > len(self.free):\n            return False\n",
        "        if missing > len(self.free):\n"
        "            self._fill(seq, (len(seq.block_ids) + len(self.free))"
        " * self.block_size)\n            return False\n",
    ),
    "one_block_is_never_used": (
        "_too_few",
        "if missing > len(self.free):",
        "if missing >= len(self.free) > 0:",
    ),
    "placed_twice_holds_twice": (
        "_misuse",
        "        if seq.block_ids:\n            raise",
        "        if False:\n            raise",
    ),
    "grows_from_nothing": (
        "_misuse",
        '            raise ValueError(f"{seq.seq_id} holds no blocks: place it first")',
        "            return self.place(seq, end)",
    ),
    "forks_what_has_no_tokens": (
        "_misuse",
        "if child.seq_id in self.holders or not shared:",
        "if child.seq_id in self.holders or not parent.block_ids:",
    ),
    "forks_to_a_name_that_holds": (
        "_misuse",
        "if child.seq_id in self.holders or not shared:",
        "if child.block_ids or not shared:",
    ),
    "forks_of_nothing": (
        "_misuse",
        "if child.seq_id in self.holders or not shared:",
        "if child.seq_id in self.holders:",
    ),
    "forks_to_somebody": (
        "_misuse",
        "if child.seq_id in self.holders or not shared:",
        "if not shared:",
    ),
    "swaps_nothing_out": (
        "_misuse",
        '            raise ValueError(f"{seq.seq_id} holds no blocks to be swapped '
        'out")',
        "            pass",
    ),
    "any_free_list_will_do": (
        "_misuse",
        "if len(free) != num_blocks:",
        "if len(free) > num_blocks:",
    ),
    "cleared_and_cpu_memory_is_full": (
        "_cleared",
        "self.free_swap = list(reversed(range(self.num_swap_blocks)))",
        'self.free_swap = getattr(self, "free_swap", '
        "list(range(self.num_swap_blocks)))",
    ),
    "cleared_and_still_held": (
        "_cleared",
        "        self.holders: dict[str, Sequence] = {}  # by seq_id\n",
        '        self.holders = getattr(self, "holders", {})\n',
    ),
    "cleared_and_its_moves_are_made": (
        "_cleared",
        "        self.moves: list[Move] = []\n",
        '        self.moves = getattr(self, "moves", [])\n',
    ),
    "a_fork_has_the_parents_list": (
        "_sharing",
        "child.block_ids = shared",
        "child.block_ids = parent.block_ids",
    ),
    "a_fork_brings_its_own_table": (
        "_sharing", "        child.block_ids = shared\n", ""
    ),
    "a_fork_does_not_count": (
        "_sharing",
        "        for block_id in shared:\n            self.refs[block_id] += 1\n",
        "",
    ),
    "a_fork_gets_new_blocks": (
        "_sharing",
        "        child.block_ids = shared\n"
        "        for block_id in shared:\n"
        "            self.refs[block_id] += 1\n",
        "        child.block_ids = []\n"
        "        while self.free and len(child.block_ids) < len(parent.block_ids):\n"
        "            child.block_ids.append(self._take())\n",
    ),
    "what_it_had_computed_is_still_there": (
        "_release",
        "seq.num_computed = len(hits) * self.block_size\n",
        "seq.num_computed = max(seq.num_computed, len(hits) * self.block_size)\n",
    ),
    "the_table_stays": ("_release", "        seq.block_ids = []\n", ""),
    "releasing_a_stranger_fails": (
        "_release",
        "self.holders.pop(seq.seq_id, None)",
        "self.holders.pop(seq.seq_id)",
    ),
    "shared_blocks_are_freed_early": (
        "_last_holder",
        "            if not self.refs[block_id]:",
        "            if self.refs[block_id] <= 1:",
    ),
    "the_first_holder_takes_it_all": (
        "_last_holder",
        "            self.refs[block_id] -= 1\n            if not",
        "            self.refs[block_id] = 0\n            if not",
    ),
    "a_name_that_was_there_is_never_new": (
        "_last_holder", "        self.holders.pop(seq.seq_id, None)\n", ""
    ),
    "no_copy_on_write": (
        "_copy_on_write",
        "shared = at < len(seq.block_ids) and self.refs[seq.block_ids[at]] > 1",
        "shared = False",
    ),
    "the_block_of_the_last_token_is_copied": (
        "_copy_on_write",
        "at = seq.num_computed // self.block_size",
        "at = (end - 1) // self.block_size",
    ),
    "the_table_ends_with_the_copy": (
        "_copy_on_write",
        "            seq.block_ids[at] = new\n",
        "            seq.block_ids[at:] = [new]\n",
    ),
    "a_copy_is_all_it_gets": (
        "_copy_on_write",
        '            self.moves.append(("copy", old, new))\n',
        '            self.moves.append(("copy", old, new))\n            return True\n',
    ),
    "copies_come_first": (
        "_order_of_moves",
        'self.moves.append(("copy", old, new))',
        'self.moves.insert(0, ("copy", old, new))',
    ),
    "the_copied_block_is_still_held": ("_copy_on_write", _COPY, ""),
    "copies_the_wrong_way": (
        "_copy_on_write",
        '("copy", old, new)',
        '("copy", new, old)',
    ),
    "copies_are_not_told": (
        "_copy_on_write",
        'self.moves.append(("copy", old, new))',
        "pass",
    ),
    "the_copy_goes_to_the_end": (
        "_copy_on_write",
        "seq.block_ids[at] = new",
        "seq.block_ids.pop(at); seq.block_ids.insert(0, new)",
    ),
    "the_last_writer_copies_too": (
        "_last_writer",
        "self.refs[seq.block_ids[at]] > 1",
        "self.refs[seq.block_ids[at]] > (at + 1 < len(self.holders))",
    ),
    "copies_the_last_block": (
        "_full_blocks_stay",
        "at = seq.num_computed // self.block_size",
        "at = len(seq.block_ids) - 1",
    ),
    "a_copy_needs_no_room": (
        "_copies_need_room",
        ("missing = max(0, self.blocks_for(end) - len(seq.block_ids)) + shared",
         "missing = max(0, self.blocks_for(end) - len(seq.block_ids))"),
        ("        block_id = self.free.take()\n",
         "        block_id = self.free.take() if self.free else 0\n"),
    ),
    "a_copy_or_a_block": (
        "_copies_need_room",
        ("missing = max(0, self.blocks_for(end) - len(seq.block_ids)) + shared",
         "missing = max(shared, self.blocks_for(end) - len(seq.block_ids))"),
        ("        block_id = self.free.take()\n",
         "        block_id = self.free.take() if self.free else 0\n"),
    ),
    "a_long_table_is_room": (
        "_copies_need_room",
        ("max(0, self.blocks_for(end) - len(seq.block_ids))",
         "self.blocks_for(end) - len(seq.block_ids)"),
        ("        block_id = self.free.take()\n",
         "        block_id = self.free.take() if self.free else 0\n"),
    ),
    "a_released_copy_is_made": (
        "_released_move",
        'if m[0] == "out" or self.refs[m[2]]',
        "if True",
    ),
    "nobodys_copy_is_made": (
        "_released_move",
        'if m[0] == "out" or self.refs[m[2]]',
        'if m[0] != "copy"',
    ),
    "a_released_one_comes_in_all_the_same": (
        "_released_move",
        'if m[0] == "out" or self.refs[m[2]]',
        'if m[0] != "copy" or self.refs[m[2]]',
    ),
    "its_own_moves_are_dropped": (
        "_released_move",
        ("        # From the end: a list", "        own = list(seq.block_ids)\n"
         "        # From the end: a list"),
        ('if m[0] == "out" or self.refs[m[2]]', 'if m[0] == "out" or m[2] not in own'),
    ),
    "a_fork_shares_the_block_ahead": (
        "_room_ahead",
        "parent.block_ids[: self.blocks_for(parent.num_computed)]",
        "parent.block_ids[: parent.num_computed // self.block_size + 1]",
    ),
    "a_fork_shares_the_room_ahead": (
        "_room_ahead",
        "parent.block_ids[: self.blocks_for(parent.num_computed)]",
        "list(parent.block_ids)",
    ),
    "saved_before_it_is_copied": (
        "_swap_too_early",
        " or filled & set(seq.block_ids):",
        ":",
    ),
    "saved_if_the_last_block_is_there": (
        "_swap_too_early",
        " or filled & set(seq.block_ids):",
        " or seq.block_ids[-1] in filled:",
    ),
    "nobody_leaves_while_anything_moves": (
        "_order_of_moves",
        " or filled & set(seq.block_ids):",
        " or filled:",
    ),
    "saved_before_it_is_back": (
        "_swap_too_early",
        'for kind, _, to in self.moves if kind != "out"}',
        'for kind, _, to in self.moves if kind == "copy"}',
    ),
    "hits_are_room_too": (
        "_hits_take_room",
        ("> len(self.free) - len(idle):", "> len(self.free):"),
        ("        block_id = self.free.take()\n",
         "        block_id = self.free.take() if self.free else 0\n"),
    ),
    "takes_before_it_claims": (
        "_hits_take_room",
        ("        for block_id in idle:\n            self.free.claim(block_id)\n", ""),
        ("        self._fill(seq, end)\n        if seq.seq_id in self.swapped:",
         "        self._fill(seq, end)\n"
         "        for block_id in idle:\n"
         "            if block_id in self.free.kept:\n"
         "                self.free.claim(block_id)\n"
         "        if seq.seq_id in self.swapped:"),
    ),
    "a_hit_does_not_count": (
        "_adopt",
        "        for block_id in hits:\n            self.refs[block_id] += 1\n",
        "        for block_id in hits:\n            self.refs[block_id] = 1\n",
    ),
    "a_hit_is_still_free": (
        "_adopt",
        "            self.free.claim(block_id)\n",
        "            pass\n",
    ),
    "a_hit_counts_blocks_as_tokens": (
        "_adopt",
        "seq.num_computed = len(hits) * self.block_size\n",
        "seq.num_computed = len(hits)\n",
    ),
    "asking_takes": (
        "_asking",
        "        return len(self._hits(seq)) * self.block_size\n",
        "        hits = self._hits(seq)\n"
        "        for block_id in hits:\n"
        "            self.refs[block_id] += 1\n"
        "        return len(hits) * self.block_size\n",
    ),
    "scored_prompts_are_not_computed": (
        "_scored",
        "own = seq.seq_id in self.swapped or seq.scores_prompt",
        "own = seq.seq_id in self.swapped",
    ),
    "scores_of_zero_are_none": (
        "_scored",
        "own = seq.seq_id in self.swapped or seq.scores_prompt",
        "own = seq.seq_id in self.swapped or seq.sampling_params.prompt_logprobs",
    ),
    "gives_up_the_beginning_first": (
        "_end_goes_first",
        "for block_id in reversed(seq.block_ids):",
        "for block_id in seq.block_ids:",
    ),
    "offers_nothing": (
        "_passes_on",
        "        self.free.offer(seq, end)\n",
        "        pass\n",
    ),
    "offers_in_place": (
        "_passes_on",
        "            self.tokens_asked += seq.get_len()\n",
        "            self.tokens_asked += seq.get_len()\n"
        "            self.free.offer(seq, end)\n",
    ),
    "withdrawn_and_still_found": (
        "_passes_on",
        "        self.free.withdraw(seq.block_ids)\n",
        "        pass\n",
    ),
    "withdrawn_and_freed_under_others": (
        "_passes_on",
        "        self.free.withdraw(seq.block_ids)\n",
        "        self.free.withdraw(seq.block_ids)\n        self.release(seq)\n",
    ),
    "swapped_out_and_still_there": (
        "_swap",
        _SWAPPED,
        "        self.swapped[seq.seq_id] = host\n",
    ),
    "swapping_resets_the_count": (
        "_swap",
        _SWAPPED,
        _SWAPPED + "        seq.num_computed = 0\n",
    ),
    "back_and_nothing_is_computed": (
        "_swap",
        "            self._swap_in(seq)\n",
        "            self._swap_in(seq)\n            seq.num_computed = 0\n",
    ),
    "swapped_in_backwards": (
        "_swap",
        "pairs = zip(host, seq.block_ids, strict=False)",
        "pairs = zip(host[::-1], seq.block_ids, strict=False)",
    ),
    "swapped_in_and_still_there": ("_swap", "        self.free_swap += host\n", ""),
    "away_and_found_from_the_start": (
        "_swap",
        "            return seq.num_computed\n",
        "            return 0\n",
    ),
    "what_comes_in_comes_first": (
        "_order_of_moves",
        "self.moves += [(\"in\", place, block_id) for place, block_id in pairs]",
        "self.moves[:0] = [(\"in\", place, block_id) for place, block_id in pairs]",
    ),
    "there_is_always_cpu_memory": (
        "_swap_room", "num_swap_blocks: int = 0", "num_swap_blocks: int = 1"
    ),
    "cpu_memory_has_no_end": (
        "_swap_room",
        ("len(seq.block_ids) > len(self.free_swap)",
         "len(seq.block_ids) > self.num_swap_blocks"),
        ("[self.free_swap.pop() for _ in seq.block_ids]",
         "[self.free_swap.pop() if self.free_swap else 0 for _ in seq.block_ids]"),
    ),
    "swap_out_takes_before_it_looks": (
        "_swap_room",
        "        if len(seq.block_ids) > len(self.free_swap) or",
        "        if len(seq.block_ids) > len(self.free_swap):\n"
        "            self.free_swap.clear()\n"
        "        if len(seq.block_ids) > len(self.free_swap) or",
    ),
    "coming_back_needs_no_more": (
        "_back_room",
        "        if self.blocks_for(end) - len(hits)",
        "        end = seq.num_computed if seq.seq_id in self.swapped else end\n"
        "        if self.blocks_for(end) - len(hits)",
    ),
    "a_fork_that_leaves_takes_all": (
        "_swap_shared",
        _SWAPPED,
        "        for i in seq.block_ids:\n            self.refs[i] = 1\n" + _SWAPPED,
    ),
    "cpu_blocks_are_never_released": (
        "_swapped_release",
        "        self.free_swap += self.swapped.pop(seq.seq_id, [])\n",
        "        self.swapped.pop(seq.seq_id, None)\n",
    ),
    "back_and_never_offered_again": (
        "_swapped_offer",
        "        self.free.offer(seq, end)\n",
        "        if seq.num_computed < end:\n            self.free.offer(seq, end)\n",
    ),
    "counts_shared_tokens_twice": (
        "_tokens_held",
        "return sum(stored.values())",
        "return sum(seq.num_computed for seq in self.holders.values())",
    ),
    "counts_room_as_tokens": (
        "_tokens_held",
        "count = min(seq.num_computed - i * self.block_size, self.block_size)",
        "count = self.block_size",
    ),
    "asked_is_what_was_computed": (
        "_stats",
        "            self.tokens_asked += seq.get_len()\n",
        "            self.tokens_asked += seq.get_len() - seq.num_computed\n",
    ),
    "asked_is_what_has_room": (
        "_stats",
        "            self.tokens_asked += seq.get_len()\n",
        "            self.tokens_asked += end\n",
    ),
    "who_comes_back_asks_again": (
        "_stats",
        "            self._swap_in(seq)\n",
        "            self._swap_in(seq)\n            self.tokens_asked += end\n",
    ),
    "who_finds_no_room_has_asked": (
        "_stats",
        ("        idle = [block_id for",
         "        if seq.seq_id not in self.swapped:\n"
         "            self.tokens_asked += seq.get_len()\n"
         "        idle = [block_id for"),
        ("            self.tokens_asked += seq.get_len()\n"
         "            self.tokens_found",
         "            self.tokens_found"),
    ),
    "free_blocks_are_called_held": (
        "_stats",
        '"blocks_held": self.num_blocks - len(self.free)',
        '"blocks_held": len(self.free)',
    ),
    "checks_nothing": ("_integrity", _COUNTS, "        return\n" + _COUNTS),
    "checks_no_counts": (
        "_integrity",
        "        assert counts == held, (",
        "        assert set(held) <= set(counts), (",
    ),
    "checks_only_held_counts": (
        "_integrity",
        "        assert counts == held, (",
        "        assert all(counts.get(i) == n for i, n in held.items()), (",
    ),
    "checks_no_free_list": (
        "_integrity",
        "        self.free.check_integrity(held.keys())\n",
        "",
    ),
    "checks_no_table_for_doubles": (
        "_integrity",
        "assert len(set(seq.block_ids)) == len(seq.block_ids)",
        "assert True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *edits = MUTANTS[name]
    if isinstance(edits[0], str):
        edits = [tuple(edits[:2]), *edits[2:]]
    refuse(checks.block_manager, mutant(module, *edits), wanted, capsys)


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    named = {wanted for wanted, *_ in MUTANTS.values()}
    catch_all = {"_anything"}
    assert {
        each.holds.__name__ for each in checks.block_manager.properties
    } - catch_all == named


# ----- other right answers


class InAnyOrder(FreeBlocks):
    """Hands out the highest number first."""

    def take(self):
        return self.numbers.pop(self.numbers.index(max(self.numbers)))


class AnotherPlace(BlockManager):
    """Over a free list with an order of its own."""

    def __init__(self, num_blocks, block_size, free=None, num_swap_blocks=0):
        free = InAnyOrder(num_blocks) if free is None and num_blocks > 0 else free
        super().__init__(num_blocks, block_size, free, num_swap_blocks)


class CountsAnew:
    """Nothing of the package's: refs are counted when somebody asks."""

    def __init__(self, num_blocks, block_size, free=None, num_swap_blocks=0):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size}")
        self.free = FreeBlocks(num_blocks) if free is None else free
        if len(self.free) != num_blocks:
            raise ValueError(f"{num_blocks} blocks, {len(self.free)} of them free")
        self.count, self.size, self.host_count = num_blocks, block_size, num_swap_blocks
        self.asked = self.hit = 0
        self.capacity = num_blocks * block_size
        self._reset()

    def _reset(self):
        self.tables, self.away, self.moves = {}, {}, []
        self.host = set(range(self.host_count))

    @property
    def refs(self):
        held = [i for seq in self.tables.values() for i in seq.block_ids]
        return [held.count(i) for i in range(self.count)]

    def clear(self):
        self.free.clear()
        self._reset()

    def _hits(self, seq):
        if seq.scores_prompt or seq.seq_id in self.away:
            return []
        return list(self.free.find(seq))

    def found(self, seq):
        if seq.seq_id in self.away:
            return seq.num_computed
        return len(self._hits(seq)) * self.size

    def _needed(self, end):
        return (end + self.size - 1) // self.size

    def place(self, seq, end):
        if seq.block_ids:
            raise ValueError(seq.block_ids)
        hits, refs = self._hits(seq), self.refs
        idle = [i for i in hits if not refs[i]]
        missing = self._needed(end) - len(hits)
        if missing + len(idle) > len(self.free):
            return False
        for i in idle:
            self.free.claim(i)
        seq.block_ids = hits + [self.free.take() for _ in range(missing)]
        self.tables[seq.seq_id] = seq
        if seq.seq_id in self.away:
            host = self.away.pop(seq.seq_id)
            for old, new in zip(host, seq.block_ids, strict=False):
                self.moves.append(("in", old, new))
            self.host |= set(host)
        else:
            seq.num_computed = len(hits) * self.size
            self.asked += seq.get_len()
            self.hit += seq.num_computed
        return True

    def grow(self, seq, end):
        if not seq.block_ids:
            raise ValueError(seq.seq_id)
        at = seq.num_computed // self.size
        copy = at < len(seq.block_ids) and self.refs[seq.block_ids[at]] > 1
        missing = max(self._needed(end) - len(seq.block_ids), 0)
        if missing + copy > len(self.free):
            return False
        if copy:
            new = self.free.take()
            self.moves.append(("copy", seq.block_ids[at], new))
            seq.block_ids[at] = new
        seq.block_ids += [self.free.take() for _ in range(missing)]
        return True

    def fork(self, parent, child):
        if child.seq_id in self.tables or not parent.num_computed:
            raise ValueError(child.seq_id)
        child.block_ids = parent.block_ids[: self._needed(parent.num_computed)]
        self.tables[child.seq_id] = child

    def release(self, seq):
        self.tables.pop(seq.seq_id, None)
        refs, blocks, seq.block_ids = self.refs, seq.block_ids[::-1], []
        for i in blocks:
            if not refs[i]:
                self.free.put(i)
        self.host |= set(self.away.pop(seq.seq_id, []))
        self.moves = [m for m in self.moves if m[0] == "out" or refs[m[2]]]

    def swap_out(self, seq):
        if not seq.block_ids:
            raise ValueError(seq.seq_id)
        if len(seq.block_ids) > len(self.host):
            return False
        if any(kind != "out" and to in seq.block_ids for kind, _, to in self.moves):
            return False
        host = [self.host.pop() for _ in seq.block_ids]
        pairs = zip(seq.block_ids, host, strict=True)
        self.moves += [("out", i, to) for i, to in pairs]
        self.release(seq)
        self.away[seq.seq_id] = host
        return True

    def offer(self, seq, end):
        self.free.offer(seq, end)

    def withdraw(self, seq):
        self.free.withdraw(seq.block_ids)

    def tokens_held(self):
        slots = set()
        for seq in self.tables.values():
            for at in range(seq.num_computed):
                slots.add((seq.block_ids[at // self.size], at % self.size))
        return len(slots)

    def stats(self):
        return {
            "blocks": self.count,
            "blocks_held": sum(map(bool, self.refs)),
            "tokens_held": self.tokens_held(),
            "prefix_hit_rate": self.hit / self.asked if self.asked else 0.0,
        }

    def check_integrity(self):
        held = {i for seq in self.tables.values() for i in seq.block_ids}
        self.free.check_integrity(held)
        for seq in self.tables.values():
            assert len(set(seq.block_ids)) == len(seq.block_ids)


@pytest.mark.parametrize("other", [AnotherPlace, CountsAnew])
def test_another_right_answer_passes(other, capsys):
    """The suite asks for nothing private, and for no order of the numbers.

    Counts that are nowhere written can't be falsified: that property isn't theirs.
    """
    try:
        checks.block_manager(BlockManager=other)
    except checks.CheckFailed:
        assert other is CountsAnew
    assert red(checks.block_manager, capsys.readouterr().out) == ["_integrity"] * (
        other is CountsAnew
    )


# ----- what a property can't say: things of this implementation alone


def sequence(tokens, name="a"):
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams())


def compute(pool, seq):
    assert pool.place(seq, seq.get_len())
    pool.offer(seq, seq.get_len())
    seq.num_computed = seq.get_len()


def test_the_copied_block_stays_full_of_somebodys_tokens():
    """It once held for the writer alone: a fork's past was freed and overwritten."""
    pool, parent = BlockManager(3, 4), sequence(range(2))
    compute(pool, parent)
    child = parent.fork("a-1")
    pool.fork(parent, child)
    child.add_token_id(9)
    assert pool.grow(child, 3)
    ((_, old, new),) = pool.moves
    pool.release(parent)
    assert len(pool.free) == 2 and pool.refs[new] == 1
    assert old in pool.free.numbers and new not in pool.free.numbers
    pool.check_integrity()


def test_integrity_counts_the_cpu_blocks_too():
    pool, seq = BlockManager(2, 2, num_swap_blocks=2), sequence(range(4))
    compute(pool, seq)
    pool.swap_out(seq)
    pool.free_swap.append(0)
    with pytest.raises(AssertionError, match="CPU blocks"):
        pool.check_integrity()
