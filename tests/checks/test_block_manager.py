"""The suite for the pool of blocks passes on the package and rejects mistakes.

A mutant is the package's module with one mistake that somebody could make, or has made.
Each has to turn the line red that is about it, and not just any.
"""

import inspect

import pytest

from folovllm_lite import block_manager as module
from folovllm_lite import checks
from folovllm_lite.block_manager import BlockManager, chain
from folovllm_lite.checks.block_manager_suite import _SUITE
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams


def test_the_package_passes(capsys):
    checks.block_manager(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 38 properties hold." in out


# name: (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "digests_of_hash": (
        "_long_digests",
        'hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()',
        'hash((parent, token_ids)).to_bytes(8, "big", signed=True)',
    ),
    "digests_forget_the_past": ("_digests", 'parent + array("q"', 'array("q"'),
    "digests_of_digits": (
        "_digests",
        'array("q", token_ids).tobytes()',
        '"".join(map(str, token_ids)).encode()',
    ),
    "digests_of_two_bytes_a_token": (
        "_digests",
        'array("q", token_ids)',
        'array("H", [i & 65535 for i in token_ids])',
    ),
    "digests_of_a_set": (
        "_digests",
        'array("q", token_ids)',
        'array("q", sorted(token_ids))',
    ),
    "an_empty_pool_is_fine": ("_fresh", "num_blocks < 1 or", "num_blocks < 0 or"),
    "a_pool_is_refused_without_a_number": (
        "_fresh",
        '            f"a pool needs blocks: num_blocks is {num_blocks}, "\n'
        '                f"block_size is {block_size}"',
        '            "a pool needs blocks"',
    ),
    "kept_blocks_are_not_free": (
        "_kept",
        "len(self._free) + len(self._kept)",
        "len(self._free)",
    ),
    "rounds_down": (
        "_blocks_for",
        "-(-num_tokens // self.block_size)",
        "num_tokens // self.block_size",
    ),
    "one_block_too_many": (
        "_blocks_for",
        "-(-num_tokens // self.block_size)",
        "num_tokens // self.block_size + 1",
    ),
    "hits_are_room_too": ("_hits_take_room", "self.num_free - idle", "self.num_free"),
    "a_copy_needs_no_room": (
        "_copies_need_room",
        "missing += self._shared(seq) is not None",
        "missing += 0",
    ),
    "a_long_table_is_room": (
        "_copies_need_room",
        "missing = max(0, missing)",
        "missing = missing",
    ),
    "takes_before_it_looks": (
        "_too_few",
        "        if not self.can_grow(seq, num_tokens):\n",
        "        fits = self.can_grow(seq, num_tokens)\n"
        "        while self.num_free and len(seq.block_ids) < self.blocks_for("
        "num_tokens):\n"
        "            seq.block_ids.append(self._take())\n"
        "        if not fits:\n",
    ),
    "refuses_without_numbers": (
        "_too_few",
        'f"{seq.seq_id} needs {self.blocks_for(num_tokens)} blocks and has "\n'
        '                f"{len(seq.block_ids)}, but only {self.num_free} are free"',
        'f"{seq.seq_id} does not fit"',
    ),
    "every_growth_is_from_nothing": (
        "_grow",
        "        while len(seq.block_ids) < self.blocks_for(num_tokens):\n"
        "            seq.block_ids.append(self._take())\n",
        "        for _ in range(self.blocks_for(num_tokens)):\n"
        "            seq.block_ids.append(self._take())\n",
    ),
    "no_copy_on_write": (
        "_copy_on_write",
        "        at = self._shared(seq)\n        if at is not None:",
        "        at = self._shared(seq)\n        if False:",
    ),
    "the_copied_block_is_still_held": (
        "_copy_on_write",
        "            self.blocks[old].ref_count -= 1  "
        "# the others hold it still: never 0 here\n",
        "",
    ),
    "copies_the_wrong_way": ("_copy_on_write", "((old, new))", "((new, old))"),
    "copies_are_not_told": ("_copy_on_write", "copies.append((old, new))", "pass"),
    "the_copy_goes_to_the_end": (
        "_copy_on_write",
        "seq.block_ids[at] = new",
        "seq.block_ids.pop(at); seq.block_ids.insert(0, new)",
    ),
    "the_last_writer_copies_too": (
        "_last_writer",
        ".ref_count > 1:",
        ".ref_count > 0:",
    ),
    "copies_the_last_block": (
        "_full_blocks_stay",
        "        at = seq.num_computed // self.block_size\n",
        "        at = len(seq.block_ids) - 1\n"
        "        if at < 0:\n"
        "            return None\n",
    ),
    "a_fork_has_the_parents_list": (
        "_sharing",
        "child.block_ids = list(parent.block_ids)",
        "child.block_ids = parent.block_ids",
    ),
    "a_fork_does_not_count": (
        "_sharing",
        "        for block_id in child.block_ids:\n"
        "            self.blocks[block_id].ref_count += 1\n",
        "",
    ),
    "a_fork_gets_new_blocks": (
        "_sharing",
        "        child.block_ids = list(parent.block_ids)\n"
        "        for block_id in child.block_ids:\n"
        "            self.blocks[block_id].ref_count += 1\n",
        "        child.block_ids = []\n        self.grow(child, child.num_computed)\n",
    ),
    "the_table_stays": (
        "_release",
        "            self._drop(block_id)\n        seq.block_ids = []\n",
        "            self._drop(block_id)\n",
    ),
    "releasing_a_stranger_fails": (
        "_release",
        "self._holders.pop(seq.seq_id, None)",
        "self._holders.pop(seq.seq_id)",
    ),
    "shared_blocks_are_freed_early": (
        "_last_holder",
        "        block.ref_count -= 1\n        if block.ref_count == 0:",
        "        block.ref_count -= 1\n        if block.ref_count <= 1:",
    ),
    "the_first_holder_takes_it_all": (
        "_last_holder",
        "        block.ref_count -= 1\n",
        "        block.ref_count = 0\n",
    ),
    "caching_is_always_on": (
        "_caching_off",
        "self.enable_prefix_caching = enable_prefix_caching",
        "self.enable_prefix_caching = True",
    ),
    "goes_on_after_a_gap": (
        "_hits",
        "            if block_id is None:\n                break",
        "            if block_id is None:\n                continue",
    ),
    "only_the_first_block_is_looked_up": (
        "_hits",
        "            hits.append(block_id)\n",
        "            hits.append(block_id)\n            break\n",
    ),
    "offers_all_that_has_room": (
        "_nothing_early",
        "end // self.block_size\n        if not",
        "len(seq.block_ids)\n        if not",
    ),
    "offers_half_a_block": (
        "_nothing_early",
        "end // self.block_size\n        if not",
        "-(-end // self.block_size)\n        if not",
    ),
    "offers_in_grow": (
        "_nothing_early",
        "        return copies\n\n    def fork",
        "        self.commit(seq, seq.num_computed, num_tokens)\n"
        "        return copies\n\n    def fork",
    ),
    "a_full_hit_leaves_nothing": (
        "_one_left",
        "len(token_ids) - self.block_size, self",
        "len(token_ids) - self.block_size + 1, self",
    ),
    "a_full_hit_leaves_a_block": (
        "_one_left",
        "len(token_ids) - self.block_size, self",
        "len(token_ids) - 2 * self.block_size + 1, self",
    ),
    "a_hit_does_not_count": (
        "_adopt",
        "                del self._kept[block_id]\n"
        "            self.blocks[block_id].ref_count += 1\n",
        "                del self._kept[block_id]\n"
        "            self.blocks[block_id].ref_count = 1\n",
    ),
    "a_hit_is_still_kept": (
        "_adopt",
        "                del self._kept[block_id]\n",
        "                pass\n",
    ),
    "a_hit_counts_blocks_as_tokens": (
        "_adopt",
        "seq.num_computed = len(hits) * self.block_size",
        "seq.num_computed = len(hits)",
    ),
    "a_digest_is_proof": (
        "_collisions",
        "if (block.token_ids, block.parent) != (tokens, parent):",
        "if False:",
    ),
    "the_parent_is_not_compared": (
        "_collisions",
        "if (block.token_ids, block.parent) != (tokens, parent):",
        "if block.token_ids != tokens:",
    ),
    "the_tokens_are_not_compared": (
        "_collisions",
        "if (block.token_ids, block.parent) != (tokens, parent):",
        "if block.parent != parent:",
    ),
    "every_block_is_a_first_one": (
        "_past",
        ("            parent = digest\n", ""),
        ("digest = parent = chain(parent, tokens)", "digest = chain(parent, tokens)"),
        (
            "        if first > 0:\n"
            "            parent = self.blocks[seq.block_ids[first - 1]].digest\n",
            "",
        ),
    ),
    "salt_is_no_matter": (
        "_salts",
        ("token_ids, parent = seq.get_token_ids(), seq.cache_salt",
         'token_ids, parent = seq.get_token_ids(), b""'),
        ("        parent = seq.cache_salt\n", '        parent = b""\n'),
    ),
    "salted_blocks_are_never_found": (
        "_salts",
        "token_ids, parent = seq.get_token_ids(), seq.cache_salt",
        'token_ids, parent = seq.get_token_ids(), b""',
    ),
    "the_last_duplicate_is_offered": (
        "_duplicates",
        "self._found.setdefault(block.digest, seq.block_ids[i])",
        "self._found[block.digest] = seq.block_ids[i]",
    ),
    "every_block_with_a_digest_is_kept": (
        "_duplicates",
        "            if self._found.get(block.digest) == block_id:\n"
        "                self._kept",
        "            if block.digest is not None:\n                self._kept",
    ),
    "a_block_begun_before_is_skipped": (
        "_pieces",
        "first, last = start // self.block_size,",
        "first, last = -(-start // self.block_size),",
    ),
    "every_piece_begins_a_chain": (
        "_pieces",
        "        if first > 0:\n",
        "        if False:\n",
    ),
    "generated_tokens_are_not_offered": (
        "_pieces",
        "        if not self.enable_prefix_caching or first == last:\n",
        "        last = min(last, seq.get_prompt_len() // self.block_size)\n"
        "        if not self.enable_prefix_caching or first >= last:\n",
    ),
    "released_blocks_are_forgotten": (
        "_kept",
        "                self._kept[block_id] = None\n",
        "                self._forget(block_id)\n"
        "                self._free.append(block_id)\n",
    ),
    "gives_up_kept_blocks_first": (
        "_free_first",
        "        if self._free:\n",
        "        if not self._kept:\n",
    ),
    "gives_up_the_newest": ("_lru", "popitem(last=False)", "popitem(last=True)"),
    "gives_up_the_beginning_first": (
        "_lru",
        "for block_id in reversed(seq.block_ids):",
        "for block_id in seq.block_ids:",
    ),
    "a_hit_renews_nothing": (
        "_lru",
        ("                self._kept[block_id] = None\n",
         "                self._kept[block_id] = None\n"
         "                old = sorted(self._kept, key=lambda i: self._ages.setdefault("
         "i, len(self._ages)))\n"
         "                self._kept = OrderedDict.fromkeys(old)\n"),
        ("        self.tokens_asked = 0", "        self._ages = {}\n"
         "        self.tokens_asked = 0"),
    ),
    "entries_stay": (
        "_entries_vanish",
        "popitem(last=False)\n            self._forget(block_id)\n",
        "popitem(last=False)\n",
    ),
    "withdrawn_and_still_found": (
        "_withdrawn",
        "        for block_id in seq.block_ids:\n            self._forget(block_id)\n",
        "        pass\n",
    ),
    "withdrawn_and_freed_under_others": (
        "_withdrawn",
        "        for block_id in seq.block_ids:\n            self._forget(block_id)\n",
        "        for block_id in seq.block_ids:\n"
        "            self._forget(block_id)\n"
        "            self.blocks[block_id].ref_count = 1\n",
    ),
    "swapped_out_and_still_there": (
        "_swap",
        "        self.release(seq)\n        self._holders[seq.seq_id] = seq\n",
        "",
    ),
    "swapping_resets_the_count": (
        "_swap",
        "        self._swapped[seq.seq_id] = host\n",
        "        self._swapped[seq.seq_id] = host\n        seq.num_computed = 0\n",
    ),
    "swapped_in_backwards": (
        "_swap",
        "list(zip(host, seq.block_ids, strict=True))",
        "list(zip(host[::-1], seq.block_ids, strict=True))",
    ),
    "swapped_in_and_still_there": ("_swap", "        self._free_swap += host\n", ""),
    "cpu_memory_has_no_end": (
        "_swap_room",
        "len(seq.block_ids) <= len(self._free_swap)",
        "len(seq.block_ids) <= self.num_swap_blocks",
    ),
    "coming_back_needs_no_more": (
        "_swap_room",
        "return self.blocks_for(num_tokens) <= self.num_free",
        "return len(self._swapped[seq.seq_id]) <= self.num_free",
    ),
    "swap_out_takes_before_it_looks": (
        "_swap_room",
        "        if not self.can_swap_out(seq):\n",
        "        if False:\n",
    ),
    "swap_in_takes_before_it_looks": (
        "_swap_room",
        "        if len(host) > self.num_free:\n",
        "        if False:\n",
    ),
    "a_fork_that_leaves_takes_all": (
        "_swap_shared",
        "        self.release(seq)\n        self._holders[seq.seq_id] = seq\n",
        "        for i in seq.block_ids:\n"
        "            self.blocks[i].ref_count = 1\n"
        "        self.release(seq)\n        self._holders[seq.seq_id] = seq\n",
    ),
    "cpu_blocks_are_never_released": (
        "_swapped_release",
        "        self._free_swap += self._swapped.pop(seq.seq_id, [])\n",
        "        self._swapped.pop(seq.seq_id, None)\n",
    ),
    "counts_shared_tokens_twice": (
        "_tokens_held",
        "return sum(stored.values())",
        "return sum(seq.num_computed for seq in self._holders.values())",
    ),
    "counts_room_as_tokens": (
        "_tokens_held",
        "count = min(seq.num_computed - i * self.block_size, self.block_size)",
        "count = self.block_size",
    ),
    "checks_nothing": (
        "_integrity",
        "        held = Counter(i for seq in self._holders.values() "
        "for i in seq.block_ids)\n        counts",
        "        return\n        held = Counter()\n        counts",
    ),
    "checks_no_counts": (
        "_integrity",
        "        assert {i: n for i, n in counts.items() if n} == held, (",
        "        assert set(held) <= {i for i, n in counts.items() if n}, (",
    ),
    "checks_only_held_counts": (
        "_integrity",
        "{i: n for i, n in counts.items() if n} == held",
        "all(counts[i] == n for i, n in held.items())",
    ),
    "checks_no_digests": (
        "_integrity",
        "assert self.blocks[i].digest == digest",
        "assert True",
    ),
    "checks_no_table_for_doubles": (
        "_integrity",
        "assert len(set(seq.block_ids)) == len(seq.block_ids)",
        "assert True",
    ),
}  # fmt: skip


def mutant(*edits: tuple[str, str]) -> dict:
    """The names of the package's module after edits of its source."""
    source = inspect.getsource(module)
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times"
        source = source.replace(old, new)
    names = {"__name__": "mutant"}
    exec(compile(source, "mutant.py", "exec"), names)
    return {name: names[name] for name in ("BlockManager", "chain")}


def red(out: str) -> list[str]:
    """The properties' names of the red lines."""
    sentences = {each.sentence: each.holds.__name__ for each in _SUITE.properties}
    return [sentences[x[2:]] for x in out.splitlines() if x.startswith("✗ ")]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *edits = MUTANTS[name]
    if isinstance(edits[0], str):
        edits = [tuple(edits)]
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.block_manager(mutant(*edits))
    out = capsys.readouterr().out
    assert wanted in red(out)
    assert "hint:" in out and "Traceback" not in out
    assert "AttributeError" not in out, "rejected by accident, not for its mistake"


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    catch_all = {"_anything", "_distinct", "_swapped_commit"}
    named = {wanted for wanted, *_ in MUTANTS.values()}
    assert {each.holds.__name__ for each in _SUITE.properties} - catch_all == named


class AnotherPlace(BlockManager):
    """The same with lists of its own: the suite asks for nothing private."""

    __slots__ = ()

    def _take(self):
        self._free.sort()  # other numbers than the package hands out
        return super()._take()


def test_another_order_of_free_blocks_passes(capsys):
    checks.block_manager(BlockManager=AnotherPlace)
    assert "✗" not in capsys.readouterr().out


class GivesWhatOthersHold(BlockManager):
    def _take(self):
        taken = [i for i, block in enumerate(self.blocks) if block.ref_count]
        if len(taken) > 1:
            self.blocks[taken[0]].ref_count += 1
            return taken[0]
        return super()._take()


def test_a_block_for_two_strangers_is_seen(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.block_manager(BlockManager=GivesWhatOthersHold)
    assert "_distinct" in red(capsys.readouterr().out)


class CommitsOnlyTheEnd(BlockManager):
    def commit(self, seq, start, end):
        super().commit(seq, max(start, end - self.block_size), end)


def test_what_came_back_must_be_offered_from_its_beginning(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.block_manager(BlockManager=CommitsOnlyTheEnd)
    assert "_swapped_commit" in red(capsys.readouterr().out)


# ----- what a property can't say: things of this implementation alone


def sequence(tokens, name="a"):
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams())


def compute(pool, seq):
    hits = pool.match(seq)
    pool.adopt(seq, hits)
    pool.grow(seq, seq.get_len())
    start, seq.num_computed = seq.num_computed, seq.get_len()
    pool.commit(seq, start, seq.num_computed)


def test_digests_do_not_depend_on_the_process():
    """Python's hash of bytes differs from run to run; a cache on disk couldn't."""
    assert chain(b"", (1, 2)).hex().startswith("0c730b69905c5ef7")


def test_the_copied_block_stays_full_of_somebodys_tokens():
    """It once held for the writer alone: a fork's past was freed and overwritten."""
    pool, parent = BlockManager(3, 4), sequence(range(2))
    compute(pool, parent)
    child = parent.fork("a-1")
    pool.fork(parent, child)
    child.add_token_id(9)
    ((old, new),) = pool.grow(child, 3)
    pool.release(parent)
    assert pool.num_free == 2 and pool.blocks[new].ref_count == 1
    assert old in pool._free and new not in pool._free
    pool.check_integrity()


def test_the_tables_of_entries_do_not_outgrow_the_pool():
    pool = BlockManager(5, 2, enable_prefix_caching=True)
    for i in range(200):
        seq = sequence([i, i + 1, i + 2, i + 3, i + 4], f"s{i}")
        compute(pool, seq)
        pool.release(seq)
        pool.check_integrity()
        assert len(pool._found) <= 5 and not pool._holders and not pool._swapped


def test_integrity_counts_the_cpu_blocks_too():
    pool, seq = BlockManager(2, 2, num_swap_blocks=2), sequence(range(4))
    compute(pool, seq)
    pool.swap_out(seq)
    pool._free_swap.append(0)
    with pytest.raises(AssertionError, match="CPU blocks"):
        pool.check_integrity()
