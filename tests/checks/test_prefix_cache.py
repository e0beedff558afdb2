"""The suite for the free list that remembers passes on the package, rejects mistakes.

A mutant is the package's module with one mistake that somebody could make, or has made.
Each has to turn the line red that is about it, and not just any.
"""

from dataclasses import replace

import pytest

from folovllm_lite import checks
from folovllm_lite import prefix_cache as module
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.prefix_cache import BlockName, PrefixCache, name_block
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams
from tests.checks.mutants import mutant, red, refuse


def test_the_package_passes(capsys):
    checks.prefix_cache(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 24 properties hold." in out


_WITHDRAWN = "                del self.found[self.names[block_id].digest]\n"
_CHAIN = "            parent = self.names[block_id].digest\n"

# name: (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "a_name_without_tokens": (
        "_says_all",
        "return BlockName(hashlib.sha256(text).digest(), parent, token_ids)",
        "return BlockName(hashlib.sha256(text).digest(), parent, ())",
    ),
    "a_name_without_a_parent": (
        "_says_all",
        "return BlockName(hashlib.sha256(text).digest(), parent, token_ids)",
        'return BlockName(hashlib.sha256(text).digest(), b"", token_ids)',
    ),
    "a_name_of_the_callers_list": (
        "_says_all",
        "    token_ids = tuple(token_ids)\n",
        "",
    ),
    "an_iterator_is_used_up": (
        "_says_all",
        ("    token_ids = tuple(token_ids)\n    text = ", "    text = "),
        ("digest(), parent, token_ids)", "digest(), parent, tuple(token_ids))"),
    ),
    "digests_of_hash": (
        "_long_digests",
        "hashlib.sha256(text).digest()",
        'hash((parent, token_ids)).to_bytes(8, "big", signed=True)',
    ),
    "digests_of_md5": ("_long_digests", "hashlib.sha256(text)", "hashlib.md5(text)"),
    "digests_of_hash_and_noughts": (
        "_long_digests",
        "hashlib.sha256(text).digest()",
        'hash((parent, token_ids)).to_bytes(32, "big", signed=True)',
    ),
    "digests_that_grow": (
        "_long_digests",
        "hashlib.sha256(text).digest()",
        "text.ljust(32)",
    ),
    "digests_of_half_a_past": (
        "_digests",
        "    text = parent + ",
        "    text = parent[:8] + ",
    ),
    "digests_of_two_tokens": (
        "_digests",
        'array("q", token_ids).tobytes()',
        'array("q", token_ids[:2]).tobytes()',
    ),
    "digests_forget_the_past": ("_digests", 'parent + array("q"', 'array("q"'),
    "digests_of_digits": (
        "_digests",
        'array("q", token_ids).tobytes()',
        '"".join(map(str, token_ids)).encode()',
    ),
    "digests_of_digits_and_commas": (
        "_digests",
        'array("q", token_ids).tobytes()',
        '",".join(map(str, token_ids)).encode()',
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
    "one_is_never_handed_out": (
        "_is_a_free_list",
        "self.numbers = list(range(self.num_blocks))",
        "self.numbers = list(range(1, self.num_blocks))",
    ),
    "what_comes_back_is_lost": (
        "_is_a_free_list",
        "            heappush(self.numbers, block_id)\n",
        "            pass\n",
    ),
    "goes_on_after_a_gap": (
        "_hits",
        "                break  # unknown",
        "                continue  # unknown",
    ),
    "only_the_first_block_is_looked_up": (
        "_hits",
        "            hits.append(block_id)\n",
        "            hits.append(block_id)\n            break\n",
    ),
    "offers_all_that_has_room": (
        "_nothing_early",
        "        last = end // self.block_size\n",
        "        last = len(seq.block_ids)\n",
    ),
    "offers_half_a_block": (
        "_nothing_early",
        "        last = end // self.block_size\n",
        "        last = -(-end // self.block_size)\n",
    ),
    "three_hits_are_enough": (
        "_hits",
        "        return hits\n",
        "        return hits[:3]\n",
    ),
    "asked_and_changed": (
        "_hits",
        "        return hits\n",
        "        seq.num_computed = len(hits) * size\n        return hits\n",
    ),
    "blocks_of_two_are_all_there_are": (
        "_hits",
        "seq.get_token_ids(), self.block_size",
        "seq.get_token_ids(), 2",
    ),
    "a_full_hit_leaves_nothing": (
        "_one_left",
        "range(0, len(token_ids) - size, size)",
        "range(0, len(token_ids) - size + 1, size)",
    ),
    "a_full_hit_leaves_a_block": (
        "_one_left",
        "range(0, len(token_ids) - size, size)",
        "range(0, len(token_ids) - 2 * size + 1, size)",
    ),
    "a_digest_is_proof": (
        "_collisions",
        "block_id is None or self.names[block_id] != wanted",
        "block_id is None",
    ),
    "the_parent_is_not_compared": (
        "_collisions",
        "self.names[block_id] != wanted",
        "self.names[block_id].token_ids != wanted.token_ids",
    ),
    "the_tokens_are_not_compared": (
        "_collisions",
        "self.names[block_id] != wanted",
        "self.names[block_id].parent != wanted.parent",
    ),
    "every_block_is_a_first_one": (
        "_past",
        ("            parent = wanted.digest\n", ""),
        (_CHAIN, ""),
        ("            self.found.setdefault(parent, block_id)",
         "            self.found.setdefault(self.names[block_id].digest, block_id)"),
        ("            parent = self.names[seq.block_ids[first - 1]].digest\n",
         "            pass\n"),
    ),
    "salt_is_no_matter": (
        "_salts",
        ("parent, token_ids, size = seq.cache_salt,", 'parent, token_ids, size = b"",'),
        ("        parent = seq.cache_salt\n        if",
         '        parent = b""\n        if'),
    ),
    "salted_blocks_are_never_found": (
        "_salts",
        "parent, token_ids, size = seq.cache_salt,",
        'parent, token_ids, size = b"",',
    ),
    "every_piece_begins_a_chain": (
        "_pieces",
        "            parent = self.names[seq.block_ids[first - 1]].digest\n",
        "            pass\n",
    ),
    "a_block_begun_before_is_skipped": (
        "_pieces",
        ("        while first and seq.block_ids[first - 1] not in self.names:\n",
         "        while first and (first - 1) * self.block_size >="
         " seq.num_computed:\n"),
        ("        if first:\n",
         "        if first and seq.block_ids[first - 1] in self.names:\n"),
    ),
    "generated_tokens_are_not_offered": (
        "_pieces",
        "        last = end // self.block_size\n",
        "        last = min(end, seq.get_prompt_len()) // self.block_size\n",
    ),
    "only_prompts_ask": (
        "_pieces",
        "seq.get_token_ids(), self.block_size",
        "seq.data.prompt_token_ids, self.block_size",
    ),
    "offered_once_is_enough": (
        "_goes_on",
        "        for i in range(first, last):\n",
        "        for i in range(first, last if not first or seq.num_computed % 2"
        " or not seq.num_computed else first):\n",
    ),
    "a_hit_is_offered_again_and_begins_the_chain": (
        "_goes_on",
        "        if first:\n            parent = ",
        "        if first and first * self.block_size != seq.num_computed:\n"
        "            parent = ",
    ),
    "released_blocks_are_forgotten": (
        "_kept",
        "            self.kept[block_id] = None\n",
        "            self.withdraw([block_id])\n"
        "            heappush(self.numbers, block_id)\n",
    ),
    "kept_blocks_are_not_free": (
        "_kept",
        "return len(self.numbers) + len(self.kept)",
        "return len(self.numbers)",
    ),
    "a_claimed_one_is_still_free": (
        "_claimed",
        "        del self.kept[block_id]\n",
        "        pass\n",
    ),
    "a_claimed_one_is_forgotten": (
        "_claimed",
        "        del self.kept[block_id]\n",
        "        del self.kept[block_id]\n        self.withdraw([block_id])\n",
    ),
    "gives_up_kept_blocks_first": (
        "_free_first",
        "        if self.numbers:\n",
        "        if not self.kept:\n",
    ),
    "gives_up_the_newest": (
        "_longest_unused",
        "popitem(last=False)",
        "popitem(last=True)",
    ),
    "a_hit_renews_nothing": (
        "_longest_unused",
        ("            self.kept[block_id] = None\n",
         "            self.kept[block_id] = None\n"
         "            if block_id in self.ages:\n"
         "                self.kept.move_to_end(block_id, last=False)\n"
         "            self.ages.add(block_id)\n"),
        ("        self.names: dict", "        self.ages = set()\n"
         "        self.names: dict"),
    ),
    "entries_stay": (
        "_entries_vanish",
        "        self.withdraw([block_id])\n        self.names.pop(block_id, None)\n",
        "",
    ),
    "names_vanish_and_entries_stay": (
        "_entries_vanish",
        ("        self.withdraw([block_id])\n", ""),
        ("self.names[block_id] != wanted", "self.names.get(block_id) != wanted"),
        ("            self.found.setdefault(parent, block_id)",
         "            self.found[parent] = self.found.get(parent, block_id)"),
        ("        self.names.pop(block_id, None)\n", ""),
    ),
    "the_last_duplicate_is_found": (
        "_duplicates",
        "self.found.setdefault(parent, block_id)",
        "self.found[parent] = block_id",
    ),
    "behind_a_twin_nothing_is_offered": (
        "_duplicates",
        "            self.found.setdefault(parent, block_id)",
        "            if self.found.setdefault(parent, block_id) != block_id:\n"
        "                break",
    ),
    "every_block_with_a_name_is_kept": (
        "_duplicates",
        "        if self._can_be_found(block_id):\n            self.kept",
        "        if block_id in self.names:\n            self.kept",
    ),
    "anybodys_name_is_deleted": (
        "_twin_given_up",
        "            if self._can_be_found(block_id):\n" + _WITHDRAWN,
        "            if block_id in self.names:\n"
        "                self.found.pop(self.names[block_id].digest, None)\n",
    ),
    "withdrawn_and_still_found": (
        "_withdrawn",
        _WITHDRAWN,
        "                pass\n",
    ),
    "withdrawn_and_kept": (
        "_withdrawn",
        "        if self._can_be_found(block_id):\n            self.kept",
        "        if block_id in self.names:\n            self.kept",
    ),
    "withdraws_as_far_as_the_first_twin": (
        "_withdrawn",
        _WITHDRAWN,
        _WITHDRAWN + "            else:\n                break\n",
    ),
    "only_the_first_is_withdrawn": (
        "_withdrawn",
        _WITHDRAWN,
        _WITHDRAWN + "                break\n",
    ),
    "a_name_is_for_ever": (
        "_offered_anew",
        "        self.withdraw([block_id])\n        self.names.pop(block_id, None)\n",
        "        self.withdraw([block_id])\n",
    ),
    "cleared_and_still_found": (
        "_cleared",
        "        self.found: dict[bytes, int] = {}  # digest -> the block that a hit"
        " gets\n",
        "        self.found = getattr(self, 'found', {})\n"
        "        if self.found:\n            self.names = self.old\n"
        "        self.old = self.names\n",
    ),
    "cleared_and_kept": (
        "_cleared",
        "        self.kept: OrderedDict[int, None] = OrderedDict()",
        "        self.kept = getattr(self, 'kept', OrderedDict())",
    ),
    "checks_nothing": (
        "_integrity",
        "        everywhere = sorted(",
        "        return\n        everywhere = sorted(",
    ),
    "checks_only_that_none_is_missing": (
        "_integrity",
        "assert everywhere == list(range(self.num_blocks)), (",
        "assert set(everywhere) == set(range(self.num_blocks)), (",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *edits = MUTANTS[name]
    if isinstance(edits[0], str):
        edits = [tuple(edits[:2]), *edits[2:]]
    refuse(checks.prefix_cache, mutant(module, *edits), wanted, capsys)


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    named = {wanted for wanted, *_ in MUTANTS.values()}
    catch_all = {"_true_hits"}
    assert {
        each.holds.__name__ for each in checks.prefix_cache.properties
    } - catch_all == named


def test_find_is_judged_alone(capsys):
    checks.prefix_cache(find=PrefixCache.find)
    assert "✗" not in capsys.readouterr().out
    for name in ("a_digest_is_proof", "a_full_hit_leaves_nothing", "only_prompts_ask"):
        wanted, old, new = MUTANTS[name]
        find = mutant(module, (old, new))["PrefixCache"].find
        with pytest.raises(checks.CheckFailed, match="don't hold"):
            checks.prefix_cache(find=find)
        assert wanted in red(checks.prefix_cache, capsys.readouterr().out)


def test_find_is_judged_beside_names_of_its_notebook(capsys):
    """Its BlockName is another class there, and a helper of it may make one."""
    names = mutant(module)
    source = """
def named(self, seq):
    size, tokens, parent = self.block_size, seq.get_token_ids(), seq.cache_salt
    for end in range(size, len(tokens), size):
        name = name_block(parent, tokens[end - size : end])
        yield name
        parent = name.digest

def find(self, seq):
    hits = []
    for name in named(self, seq):
        block_id = self.found.get(name.digest)
        if block_id is None or name != self.names[block_id]:
            return hits
        hits.append(block_id)
    return hits
"""
    exec(source, names)
    theirs = names["BlockName"], names["name_block"]
    checks.prefix_cache(find=names["find"])
    assert "✗" not in capsys.readouterr().out
    assert (names["BlockName"], names["name_block"]) == theirs, "given back"


class Stale(PrefixCache):
    """Lets a digest stand when its block is handed out, and no check of its own."""

    check_integrity = None

    def take(self):
        if self.numbers:
            return super().take()
        block_id, _ = self.kept.popitem(last=False)
        return block_id


Stale.check_integrity = lambda self, held: None


def test_a_stale_digest_is_seen_without_a_check_of_the_learners_own(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.prefix_cache(PrefixCache=Stale)
    assert {"_entries_vanish", "_true_hits"} <= set(
        red(checks.prefix_cache, capsys.readouterr().out)
    )


# ----- other right answers


class Wordy:
    """Nothing of the package's: names are tuples of all tokens, ages are numbers."""

    def __init__(self, num_blocks, block_size):
        self.count, self.size = num_blocks, block_size
        self.clear()

    def clear(self):
        self.free = dict.fromkeys(range(self.count), 0)  # block -> when it came back
        self.text, self.now = {}, 0  # block -> all that it and those before hold

    def __len__(self):
        return len(self.free)

    def take(self):
        block_id = min(self.free, key=lambda i: (i in self.text, self.free[i]))
        del self.free[block_id]
        self.text.pop(block_id, None)
        return block_id

    def put(self, block_id):
        self.now += 1
        self.free[block_id] = self.now

    def _blocks(self, seq, end):
        tokens = tuple(seq.get_token_ids())
        for stop in range(self.size, end + 1, self.size):
            yield seq.cache_salt, tokens[:stop]

    def find(self, seq):
        hits = []
        for text in self._blocks(seq, seq.get_len() - 1):
            found = [i for i, known in self.text.items() if known == text]
            if not found:
                break
            hits += found
        return hits

    def claim(self, block_id):
        del self.free[block_id]

    def offer(self, seq, end):
        known = set(self.text.values())
        for block_id, text in zip(seq.block_ids, self._blocks(seq, end), strict=False):
            if text not in known:
                self.text[block_id] = text

    def withdraw(self, block_ids):
        for block_id in block_ids:
            self.text.pop(block_id, None)

    def check_integrity(self, held):
        assert sorted([*self.free, *held]) == list(range(self.count))


class Longer(PrefixCache):
    """Digests of another length, and free blocks in another order."""

    def take(self):
        self.numbers.sort(reverse=True)  # a mutable list is all that is asked of it
        if not self.numbers:
            return super().take()
        block_id = self.numbers.pop(0)
        self.withdraw([block_id])
        self.names.pop(block_id, None)
        return block_id


@pytest.mark.parametrize("other", [Wordy, Longer])
def test_another_right_answer_passes(other, capsys):
    checks.prefix_cache(PrefixCache=other)
    assert "✗" not in capsys.readouterr().out


# ----- what a property can't say: things of this implementation alone


def sequence(tokens, name="a"):
    data = SequenceData(list(tokens))
    return Sequence(f"{name}-0", name, data, SamplingParams())


def compute(pool, seq):
    assert pool.place(seq, seq.get_len())
    pool.offer(seq, seq.get_len())
    seq.num_computed = seq.get_len()


def test_digests_do_not_depend_on_the_process():
    """Python's hash of bytes differs from run to run; a cache on disk couldn't."""
    assert name_block(b"", (1, 2)).digest.hex().startswith("0c730b69905c5ef7")


def test_the_tables_of_names_do_not_outgrow_the_pool():
    cache = PrefixCache(5, 2)
    pool = BlockManager(5, 2, cache)
    for i in range(200):
        seq = sequence([i, i + 1, i + 2, i + 3, i + 4], f"s{i}")
        compute(pool, seq)
        pool.release(seq)
        pool.check_integrity()
        assert len(cache.found) <= 5 and len(cache.names) <= 5 and not pool.holders


@pytest.mark.parametrize("what", ["digest", "tokens", "free"])
def test_integrity_sees_a_name_that_is_wrong(what):
    cache = PrefixCache(8, 2)
    pool, one = BlockManager(8, 2, cache), sequence(range(5))
    compute(pool, one)
    pool.check_integrity()
    first = one.block_ids[0]
    if what == "digest":
        cache.names[first] = replace(cache.names[first], digest=b"another")
    elif what == "tokens":
        name = cache.names[first]
        cache.names[first] = BlockName(name.digest, name.parent, (8, 9))
    else:
        cache.found[b"x"] = cache.numbers[0]
    with pytest.raises(AssertionError, match="a hit would get"):
        pool.check_integrity()
