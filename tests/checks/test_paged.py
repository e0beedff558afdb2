"""The suites of the pool and of the runner: the package passes, mistakes are rejected.

A mutant is the package's module with one mistake that somebody could make. Each has to
turn the line red that is about it, and not just any.
"""

import random
from types import SimpleNamespace

import pytest
import torch

from folovllm_lite import checks, paged, runner
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.paged import PagedKVCache
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.runner import Runner
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Work
from tests.checks.mutants import mutant, names_of, refuse


def test_the_package_passes(capsys):
    checks.paged(paged)
    checks.runner(runner)
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("properties hold.") == 2


# name: (the line that turns red, what stands there, what stands instead)
POOL = {
    "no_room_for_values": (
        "_shapes",
        "shape = (*start, num_blocks",
        "shape = (1, *start[1:], num_blocks",
    ),
    "swap_of_another_dtype": (
        "_shapes",
        "torch.empty(shape, dtype=dtype)",
        "torch.empty(shape)",
    ),
    "bytes_of_the_keys": ("_bytes", "per_token = 2 *", "per_token = 1 *"),
    "bytes_of_float32": ("_bytes", "* dtype.itemsize", "* 4"),
    "bytes_of_a_token": ("_bytes", "per_token * block_size", "per_token"),
    "values_are_keys": ("_stored", "(1, slots, v.transpose", "(1, slots, k.transpose"),
    "knows_blocks_of_2_alone": (
        "_stored",
        "self.slots[0][layer].index_copy_(1, slots, k.transpose(0, 1))",
        "self.pool[0, layer][:, slots // 2, slots % 2] = k.transpose(0, 1)",
    ),
    "always_layer_0": ("_stored", "self.slots[0][layer]", "self.slots[0][0]"),
    "slots_backwards": (
        "_stored",
        "[1][layer].index_copy_(1, slots",
        "[1][layer].index_copy_(1, slots.flip(0)",
    ),
    "all_of_the_blocks": (
        "_gathered",
        ".flatten(1, 2)[:, :end]\n        return",
        ".flatten(1, 2)\n        return",
    ),
    "blocks_in_numeric_order": (
        "_gathered",
        "keys = self.pool[0, layer][:, blocks]",
        "keys = self.pool[0, layer][:, blocks.sort().values]",
    ),
    "gathers_layer_0": (
        "_gathered",
        "values = self.pool[1, layer]",
        "values = self.pool[1, 0]",
    ),
    "keys_alone_move": ("_moved", "] = taken", "][:1] = taken[:1]"),
    "the_wrong_way": (
        "_moved",
        "old, new = list(last.values()), list(last)",
        "new, old = list(last.values()), list(last)",
    ),
    "the_first_of_two_counts": (
        "_moved",
        "last = {new: old for _, old, new in group}",
        "last = {new: old for _, old, new in [*group][::-1]}",
    ),
    "by_kind": ("_moved", "groupby(moves, key", "groupby(sorted(moves), key"),
    "in_is_out": (
        "_moved",
        '"in": (self.swap, self.pool)',
        '"in": (self.pool, self.swap)',
    ),
}
STEPS = {
    "one_too_many": (
        "_cuts",
        "    room = limit\n    for each",
        "    room = limit + 1\n    for each",
    ),
    "the_limit_and_not_the_room": (
        "_cuts",
        "min(each.end, start + room)",
        "min(each.end, start + limit)",
    ),
    "all_begins_at_0": ("_cuts", "        start = each.start\n", "        start = 0\n"),
    "room_is_forgotten": ("_cuts", "            room -= end - start\n", ""),
    "the_whole_text": (
        "_token_ids",
        "get_slice(each.start, each.end)",
        "get_token_ids()",
    ),
    "the_prompt_is_all": (
        "_token_ids",
        "each.seq.data.get_slice(each.start, each.end)",
        "each.seq.data.prompt_token_ids[each.start : each.end]",
    ),
    "short_positions": (
        "_token_ids",
        "self.cache, rows[1], rows[2]",
        "self.cache, rows[1].int(), rows[2]",
    ),
    "positions_from_0": (
        "_token_ids",
        "positions.append(i)",
        "positions.append(i - each.start)",
    ),
    "block_by_place": (
        "_slots",
        "blocks[i // size] * size + i % size",
        "blocks[i % len(blocks)] * size + i % size",
    ),
    "short_slots": (
        "_slots",
        "self.cache, rows[1], rows[2]",
        "self.cache, rows[1], rows[2].int()",
    ),
    "knows_blocks_of_3_alone": (
        "_slots",
        "blocks[i // size] * size + i % size",
        "blocks[i // 3] * 3 + i % 3",
    ),
    "blocks_are_slots": (
        "_slots",
        "blocks[i // size] * size + i % size",
        "blocks[i // size] + i % size",
    ),
    "the_tables_order_is_lost": (
        "_slots",
        "blocks[i // size] * size",
        "sorted(blocks)[i // size] * size",
    ),
    "all_blocks": (
        "_segments",
        "needed = blocks[: -(-each.end // size)]",
        "needed = blocks",
    ),
    "rounded_down": (
        "_segments",
        "needed = blocks[: -(-each.end // size)]",
        "needed = blocks[: each.end // size]",
    ),
    "counts_what_it_has_yet_to_compute": (
        "_segments",
        "            needed = blocks[",
        "            each.seq.num_computed = each.end\n            needed = blocks[",
    ),
    "cuts_the_table_itself": (
        "_segments",
        "            needed = blocks[: -(-each.end // size)]\n",
        "            del blocks[-(-each.end // size) :]\n            needed = blocks\n",
    ),
    "the_new_ones_alone": (
        "_segments",
        "len(token_ids), each.end, needed",
        "len(token_ids), each.end - each.start, needed",
    ),
    "everybody_from_row_0": (
        "_segments",
        "first, blocks = len(token_ids), each",
        "first, blocks = 0, each",
    ),
    "moves_are_forgotten": (
        "_moves_first",
        "            self.cache.move(step.moves)\n",
        "",
    ),
    "in_order_of_names": (
        "_rows",
        "step.work.values(), limit",
        "[step.work[k] for k in sorted(step.work)], limit",
    ),
    "the_last_pass_counts": ("_rows", "torch.cat(parts)", "parts[-1]"),
    "never_cut": ("_rows", "limit = self.pass_tokens if", "limit = step.num_tokens if"),
}


@pytest.mark.parametrize("name", POOL)
def test_the_suite_of_pools_rejects(name, capsys):
    wanted, *edit = POOL[name]
    refuse(checks.paged, mutant(paged, edit), wanted, capsys)


@pytest.mark.parametrize("name", STEPS)
def test_the_suite_of_runners_rejects(name, capsys):
    wanted, *edit = STEPS[name]
    refuse(checks.runner, mutant(runner, edit), wanted, capsys)


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    assert names_of(checks.paged) == {wanted for wanted, *_ in POOL.values()}
    assert names_of(checks.runner) == {wanted for wanted, *_ in STEPS.values()}


# ----- other right answers


class OneByOne(PagedKVCache):
    """Token by token, and move by move."""

    def store(self, layer, slots, k, v):
        for token, slot in enumerate(slots.tolist()):
            block, place = divmod(slot, self.block_size)
            self.pool[0, layer, :, block, place] = k[token]
            self.pool[1, layer, :, block, place] = v[token]

    def gather(self, layer, blocks, end):
        pool = self.pool[:, layer, :, blocks]
        keys, values = pool.flatten(2, 3).narrow(2, 0, end)
        return keys, values

    def move(self, moves):
        for move in moves:
            super().move([move])


class TokenByToken(Runner):
    """The formula for one token, and tensors of their own for each kind."""

    def prepare(self, work):
        size, segments, rows = self.cache.block_size, [], []
        for each in work:
            table = each.seq.block_ids
            tokens = each.seq.get_token_ids()
            for i in range(each.start, each.end):
                rows.append((tokens[i], i, table[i // size] * size + i % size))
            first = len(rows) - each.end + each.start
            count = (each.end + size - 1) // size
            segments.append(paged.Segment(first, len(rows), each.end, table[:count]))
        ids, positions, slots = (torch.tensor(row) for row in zip(*rows, strict=True))
        return ids, self.context(self.cache, positions, slots, segments)


def tails(work, limit):
    """Cut from a list of single tokens."""
    single = [Work(w.seq, i, i + 1) for w in work for i in range(w.start, w.end)]
    found = []
    for start in range(0, len(single), limit):
        part = []
        for each in single[start : start + limit]:
            if part and part[-1].seq is each.seq:
                part[-1].end = each.end
            else:
                part.append(each)
        found.append(part)
    return found


def test_other_right_answers_pass(capsys):
    checks.paged(PagedKVCache=OneByOne)
    checks.runner(Runner=TokenByToken, passes=tails)
    assert "✗" not in capsys.readouterr().out


# ----- the moves of a step, made at once


def planned(seed):
    """The moves of a step, and each place in CPU memory that two of them go out to.

    Some sequences hold blocks when it begins; then anything may be asked in any order,
    also to drop who was swapped out in this very step, before a move is made.
    """
    rng, pool = random.Random(seed), BlockManager(8, 2, num_swap_blocks=4)
    there, away = [], []
    for name in "abc":
        seq = Sequence(name, name, SequenceData([1] * 6), SamplingParams())
        pool.place(seq, rng.randint(1, 4))
        seq.num_computed = 2 * len(seq.block_ids) - 1
        there.append(seq)
        if len(pool.free) > 2 and rng.random() < 0.5:
            there.append(seq.fork(f"{name}2"))
            pool.fork(seq, there[-1])
    for _ in range(rng.randint(2, 12)):
        kind = rng.choice(["grow", "swap", "swap", "back", "release", "drop", "drop"])
        if kind in ("back", "drop"):
            seq = away.pop(rng.randrange(len(away))) if away else None
            if seq and kind == "drop":
                pool.release(seq)
            elif seq:
                (there if pool.place(seq, seq.num_computed) else away).append(seq)
        elif there:
            seq = rng.choice(there)
            if kind == "grow":
                pool.grow(seq, seq.num_computed + 1)
            elif kind == "release":
                there.remove(seq)
                pool.release(seq)
            elif pool.swap_out(seq):
                there.remove(seq)
                away.append(seq)
        pool.check_integrity()
    outs = [new for kind, _, new in pool.moves if kind == "out"]
    return pool.moves, {new for new in outs if outs.count(new) > 1}


def test_moves_made_at_once_are_moves_made_in_order():
    """Who is swapped out and dropped in one step leaves a place to the next: two moves
    to it stand in the list, and of two in one assignment PyTorch promises nothing.
    """
    config = SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=1)
    twice = kinds = 0
    for seed in range(2000):
        moves, doubled = planned(seed)
        twice += bool(doubled)
        kinds = max(kinds, len({move[0] for move in moves}))
        found = []
        for cls in (PagedKVCache, OneByOne):
            cache = cls(config, 8, 2, num_swap_blocks=4)
            cache.pool.copy_(torch.arange(32).reshape(cache.pool.shape))
            cache.swap.copy_(-torch.arange(1, 17).reshape(cache.swap.shape))
            cache.move(moves)
            found.append(torch.cat([cache.pool, cache.swap], 3))
        assert torch.equal(*found), f"seed {seed}: {moves}"
    assert twice > 100 and kinds == 3, "nothing clashed: the test is too easy"
