"""The suite of the KV cache passes on the package and rejects plausible mistakes.

Each mutant is a cache that somebody has shipped, or nearly: positions that start again,
a mask aligned with the wrong corner, a length that the model counts.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

from folovllm_lite import checks
from folovllm_lite import kv_cache as package
from folovllm_lite.attention import attention
from folovllm_lite.kv_cache import ContiguousKVCache
from tests.checks.mutants import solutions


def test_the_package_passes(capsys):
    checks.kv_cache(package)
    out = capsys.readouterr()
    assert "✗" not in out.out and "properties hold." in out.out
    assert out.err == ""


# ----- mutants of the cache


def with_context(change, name):
    """A cache whose contexts are changed after they were made."""

    class Mutant(ContiguousKVCache):
        def step(self, tokens):
            ctx = super().step(tokens)
            change(ctx)
            return ctx

        def copy(self):
            twin = super().copy()
            twin.__class__ = Mutant
            return twin

    Mutant.__name__ = name
    return Mutant


def _from_zero(ctx):
    ctx.positions = ctx.positions - ctx._start


def _one_further(ctx):
    ctx.positions = ctx.positions + (ctx._start > 0)


def _floats(ctx):
    ctx.positions = ctx.positions.float()


def _always_causal(ctx):
    ctx._causal, ctx._mask = True, None


def _causal_for_chunks(ctx):
    ctx._causal, ctx._mask = ctx._causal or ctx._mask is not None, None


def _no_mask(ctx):
    ctx._mask = None


def _sees_all(ctx):
    ctx._causal, ctx._mask = False, None


def _hides_itself(ctx):
    if ctx._mask is not None:
        ctx._mask = torch.arange(ctx._end) < ctx.positions[:, None]


def _sees_the_next(ctx):
    if ctx._mask is not None:
        ctx._mask = torch.arange(ctx._end) <= ctx.positions[:, None] + 1


def _transposed_mask(ctx):
    if ctx._mask is not None:
        ctx._mask = ctx._mask.flip(0)


def _forgets_the_first(ctx):
    """A mask that broke parity: the first key is lost once there is a past."""
    if ctx._mask is not None:
        ctx._mask[:, 0] = False


def _only_itself(ctx):
    """Attends over the new tokens alone: stores, and never reads the past."""
    store = ctx.attend

    def attend(layer, q, k, v):
        store(layer, q, k, v)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    ctx.attend = attend


def _counts(layers):
    def change(ctx):
        original = ctx.attend

        def attend(layer, q, k, v):
            out = original(layer, q, k, v)
            if layer in layers(ctx._cache):
                ctx._cache.length += len(q)
            return out

        ctx.attend = attend

    return change


def _groups_the_heads_otherwise(ctx):
    original = ctx.attend

    def attend(layer, q, k, v):
        group = q.shape[1] // k.shape[1]
        mixed = q.unflatten(1, (group, -1)).transpose(1, 2).flatten(1, 2)
        return original(layer, mixed, k, v)

    ctx.attend = attend


def _swaps_keys_and_values(ctx):
    original = ctx.attend
    ctx.attend = lambda layer, q, k, v: original(layer, q, v, k)


def _one_layer_for_all(ctx):
    original = ctx.attend
    ctx.attend = lambda layer, q, k, v: original(0, q, k, v)


def _attends_over_all_slots(ctx):
    """Reads memory that was never written, and relies on it being 0."""
    original = ctx.attend

    def attend(layer, q, k, v):
        original(layer, q, k, v)
        cache = ctx._cache
        mask = torch.arange(cache.max_len) <= ctx.positions[:, None]
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            cache.keys[layer][None],
            cache.values[layer][None],
            attn_mask=mask,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    ctx.attend = attend


def _one_slot_late(ctx):
    ctx._start, ctx._end = ctx._start + 1, ctx._end + 1


class AdvancesInStep(ContiguousKVCache):
    def step(self, tokens):
        ctx = super().step(tokens)
        self.length += tokens
        return ctx

    def advance(self, tokens):
        pass


class SharesItsCopy(ContiguousKVCache):
    def copy(self):
        return copy.copy(self)


class SharesItsValues(ContiguousKVCache):
    def copy(self):
        twin = copy.copy(self)
        twin.keys = self.keys.clone()
        return twin


class SharesItsKeys(ContiguousKVCache):
    """Where all keys are alike, nobody notices."""

    def copy(self):
        twin = copy.copy(self)
        twin.values = self.values.clone()
        return twin


class CopiesAreEmpty(ContiguousKVCache):
    def copy(self):
        twin = super().copy()
        twin.length = 0
        return twin


class LastSlotIsLost(ContiguousKVCache):
    def step(self, tokens):
        if self.length + tokens >= self.max_len:
            raise ValueError(f"{self.length} of {self.max_len}, no room for {tokens}")
        return super().step(tokens)


class RefusesWithoutNumbers(ContiguousKVCache):
    def step(self, tokens):
        try:
            return super().step(tokens)
        except ValueError:
            raise ValueError("the cache is full") from None


class ForgetsTheOldest(ContiguousKVCache):
    """Starts over, in silence, instead of refusing what doesn't fit."""

    def step(self, tokens):
        if self.length + tokens > self.max_len:
            self.length = 0
        return super().step(tokens)


class AdvancesWithoutLimit(ContiguousKVCache):
    def advance(self, tokens):
        self.length += tokens


class AdvancesByZero(ContiguousKVCache):
    def advance(self, tokens):
        if tokens:
            super().advance(tokens)


class CountsKeysOnly(ContiguousKVCache):
    @property
    def nbytes(self):
        return self.keys.nbytes


class CountsWhatIsUsed(ContiguousKVCache):
    @property
    def nbytes(self):
        return super().nbytes * self.length // self.max_len


class AlwaysFloat32(ContiguousKVCache):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        super().__init__(config, max_len, torch.float32, device)


class QueryHeads(ContiguousKVCache):
    """Takes memory for each query head, as before there was GQA."""

    @property
    def nbytes(self):
        return super().nbytes * 2


class RefusesZeroOnly(ContiguousKVCache):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        super().__init__(config, abs(max_len), dtype, device)


class StaysOnTheCPU(ContiguousKVCache):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        super().__init__(config, max_len, dtype)


class AnyLength(ContiguousKVCache):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        super().__init__(config, max(max_len, 1), dtype, device)


class Grows(ContiguousKVCache):
    """Appends at once, so that a failed pass leaves its tokens behind."""

    def step(self, tokens):
        ctx = super().step(tokens)
        stored = vars(self).setdefault("stored", {})

        def attend(layer, q, k, v):
            old = stored.get(layer)
            if old is not None:
                k, v = torch.cat([old[0], k]), torch.cat([old[1], v])
            stored[layer] = (k, v)
            T, S = len(q), len(k)
            mask = torch.arange(S) <= torch.arange(S - T, S)[:, None]
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=True
            )
            return out[0].transpose(0, 1)

        ctx.attend = attend
        return ctx

    def copy(self):
        twin = copy.copy(self)
        twin.stored = dict(vars(self).get("stored", {}))
        return twin


CHANGES = [
    _from_zero, _one_further, _floats, _always_causal, _causal_for_chunks, _no_mask,
    _sees_all, _hides_itself, _sees_the_next, _transposed_mask, _forgets_the_first,
    _only_itself, _groups_the_heads_otherwise, _swaps_keys_and_values,
    _one_layer_for_all, _attends_over_all_slots, _one_slot_late,
]  # fmt: skip
MUTANTS = [with_context(change, change.__name__.strip("_")) for change in CHANGES] + [
    with_context(_counts(lambda cache: range(len(cache.keys))), "every_layer_counts"),
    with_context(_counts(lambda cache: [len(cache.keys) - 1]), "the_last_layer_counts"),
    with_context(_counts(lambda cache: [0]), "the_first_layer_counts"),
    AdvancesInStep, SharesItsCopy, SharesItsValues, SharesItsKeys, CopiesAreEmpty,
    LastSlotIsLost, RefusesWithoutNumbers, ForgetsTheOldest, AdvancesWithoutLimit,
    AdvancesByZero, CountsKeysOnly, CountsWhatIsUsed, AlwaysFloat32, QueryHeads,
    AnyLength, RefusesZeroOnly, StaysOnTheCPU, Grows,
]  # fmt: skip


def name_of(value):
    return getattr(value, "__name__", value)


def test_the_frame_of_the_mutants_is_sound(capsys):
    """A mutant fails for its mutation: with none, the same frame passes."""
    checks.kv_cache(ContiguousKVCache=with_context(lambda ctx: None, "unchanged"))
    assert "✗" not in capsys.readouterr().out


@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_the_suite_rejects(mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.kv_cache(ContiguousKVCache=mutant)
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


def test_a_growing_cache_fails_where_a_pass_fails(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.kv_cache(ContiguousKVCache=Grows)
    out = capsys.readouterr().out
    assert "✗ A pass that fails" in out and "✓ A chunk behind a past" in out


def test_a_wrong_corner_is_shown_on_the_smallest_chunk(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.kv_cache(
            ContiguousKVCache=with_context(_causal_for_chunks, "wrong_corner")
        )
    out = capsys.readouterr().out
    assert "✓ A prompt is causal" in out and "✓ A single new token" in out
    assert "input:    values [2] stored, [4, 6] new" in out
    assert "got:      [2.0, 3.0]" in out and "expected: [3.0, 4.0]" in out


# ----- the exercises


SOLVED = solutions("07_kv_cache.ipynb")
EXERCISES = ("predict_slots", "DoublingKVCache", "PackedContext")
Doubling, Packed = SOLVED["DoublingKVCache"], SOLVED["PackedContext"]


def test_the_solutions_pass(capsys):
    checks.kv_cache({name: SOLVED[name] for name in EXERCISES})
    assert "✗" not in capsys.readouterr().out


class WrapsACache:
    """A right answer that inherits nothing: it moves to a new, larger cache."""

    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        self._given = config, dtype, device
        self._now = ContiguousKVCache(config, min(16, max_len), dtype, device)
        self.max_len = max_len

    def __getattr__(self, name):  # length, keys, values, nbytes
        return getattr(self._now, name)

    def step(self, tokens):
        needed = self.length + tokens
        if tokens < 1 or needed > self.max_len:
            raise ValueError(f"{self.length} of {self.max_len}: no step of {tokens}")
        if needed > self._now.max_len:
            config, dtype, device = self._given
            slots = min(max(needed, 2 * self._now.max_len), self.max_len)
            larger = ContiguousKVCache(config, slots, dtype, device)
            for old, new in (
                (self.keys, larger.keys),
                (self.values, larger.values),
            ):
                new[:, :, : self.length] = old[:, :, : self.length]
            larger.length, self._now = self.length, larger
        return self._now.step(tokens)

    def advance(self, tokens):
        self._now.advance(tokens)

    def copy(self):
        twin = object.__new__(WrapsACache)
        vars(twin).update(vars(self), _now=self._now.copy())
        return twin


class OneMaskForAll:
    """A right answer by one attention over all caches, with a mask."""

    def __init__(self, caches, counts):
        self.steps = [cache.step(n) for cache, n in zip(caches, counts, strict=True)]
        self.positions = torch.cat([step.positions for step in self.steps])
        ends = [step._end for step in self.steps]
        mine = torch.arange(len(ends)).repeat_interleave(torch.tensor(counts))
        theirs = torch.arange(len(ends)).repeat_interleave(torch.tensor(ends))
        places = torch.cat([torch.arange(end) for end in ends])
        self.mask = (theirs == mine[:, None]) & (places <= self.positions[:, None])

    def attend(self, layer, q, k, v):
        done, parts = 0, []
        for step in self.steps:
            new = slice(done, done + len(step.positions))
            step.attend(layer, q[new], k[new], v[new])  # stores; its answer is dropped
            cache = step._cache
            parts.append([x[layer][:, : step._end] for x in (cache.keys, cache.values)])
            done = new.stop
        keys, values = (torch.cat(x, 1)[None] for x in zip(*parts, strict=True))
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, attn_mask=self.mask, enable_gqa=True
        )
        return out[0].transpose(0, 1)


@pytest.mark.parametrize(
    "name, right",
    [("DoublingKVCache", WrapsACache), ("PackedContext", OneMaskForAll)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_other_right_answers_pass(name, right, capsys):
    checks.kv_cache(**{name: right})
    assert "✗" not in capsys.readouterr().out


def predicts(**changes):
    changes = {
        key.replace("_", ".", 1).replace("_", " "): changes[key] for key in changes
    }

    def predict_slots():
        return {**SOLVED["predict_slots"](), **changes}

    return predict_slots


def forgets_to_return():
    pass


class DoublesFromTheStart(Doubling):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        ContiguousKVCache.__init__(self, config, max_len, dtype, device)


class GrowsByTheStep(Doubling):
    def step(self, tokens):
        ctx = ContiguousKVCache.step(self, tokens)
        if self.length + tokens > self.keys.shape[2]:
            self.keys = self._moved(self.keys, self.length + tokens)
            self.values = self._moved(self.values, self.length + tokens)
        return ctx


class DoublesPastTheLimit(Doubling):
    def step(self, tokens):
        ctx = ContiguousKVCache.step(self, tokens)
        slots = self.keys.shape[2]
        while self.length + tokens > slots:
            slots *= 2
        if slots > self.keys.shape[2]:
            self.keys = self._moved(self.keys, slots)
            self.values = self._moved(self.values, slots)
        return ctx


class DoublesOnce(Doubling):
    """Right for decodes; a prompt longer than twice the slots doesn't fit."""

    def step(self, tokens):
        ctx = ContiguousKVCache.step(self, tokens)
        slots = min(2 * self.keys.shape[2], self.max_len)
        if self.length + tokens > self.keys.shape[2]:
            self.keys = self._moved(self.keys, slots)
            self.values = self._moved(self.values, slots)
        return ctx


class BeginsWithSixteen(Doubling):
    """Right, unless max_len is less than that."""

    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        ContiguousKVCache.__init__(self, config, 16, dtype, device)
        self.max_len = max_len


class GrowsBySixteen(Doubling):
    def step(self, tokens):
        ctx = ContiguousKVCache.step(self, tokens)
        slots = self.keys.shape[2]
        while self.length + tokens > slots:
            slots = min(slots + 16, self.max_len)
        if slots > self.keys.shape[2]:
            self.keys = self._moved(self.keys, slots)
            self.values = self._moved(self.values, slots)
        return ctx


class DoublesTheLength(Doubling):
    """Twice the tokens stored, which is less than twice the slots."""

    def step(self, tokens):
        ctx = ContiguousKVCache.step(self, tokens)
        needed = self.length + tokens
        if needed > self.keys.shape[2]:
            slots = min(max(needed, 2 * self.length), self.max_len)
            self.keys = self._moved(self.keys, slots)
            self.values = self._moved(self.values, slots)
        return ctx


class CountsStepsThatFailed(Doubling):
    planned = 0

    def step(self, tokens):
        ctx = ContiguousKVCache.step(self, tokens)
        self.planned += tokens
        if self.planned > self.keys.shape[2]:
            slots = max(self.planned, 2 * self.keys.shape[2])
            self.keys = self._moved(self.keys, min(slots, self.max_len))
            self.values = self._moved(self.values, min(slots, self.max_len))
        return ctx


class CopiesIntoNewSlots(Doubling):
    """Of which a new cache has 16, however many are stored."""

    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        super().__init__(config, max_len, dtype, device)
        self.given = config, max_len, dtype, device

    def copy(self):
        twin, n = type(self)(*self.given), self.length
        twin.keys[:, :, :n] = self.keys[:, :, :n]
        twin.values[:, :, :n] = self.values[:, :, :n]
        twin.length = n
        return twin


class DoublesWhenFull(Doubling):
    """One token too early."""

    def step(self, tokens):
        ctx = super().step(tokens)
        if self.length + tokens == self.keys.shape[2] < self.max_len:
            slots = min(2 * self.keys.shape[2], self.max_len)
            self.keys = self._moved(self.keys, slots)
            self.values = self._moved(self.values, slots)
        return ctx


class BeginsWithEight(Doubling):
    """And still moves only 7 times on the way to 1,000."""

    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        ContiguousKVCache.__init__(self, config, min(8, max_len), dtype, device)
        self.max_len = max_len


class ForgetsTheDevice(Doubling):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        super().__init__(config, max_len, dtype)


class MovesToTheCPU(Doubling):
    def _moved(self, old, slots):
        new = super()._moved(old, slots)
        return new if new.device.type == "cpu" else torch.empty(new.shape)


class MovesLayerZeroOnly(Doubling):
    def _moved(self, old, slots):
        new = super()._moved(old, slots)
        new[1:] = 0
        return new


class MovesToFloat32(Doubling):
    def _moved(self, old, slots):
        return super()._moved(old, slots).float()


class TakesNoTokens(Doubling):
    def step(self, tokens):
        return super().step(max(tokens, 1))


class LosesThePast(Doubling):
    def _moved(self, old, slots):
        L, Hkv, _, D = old.shape
        return old.new_zeros(L, Hkv, slots, D)


class MovesBeforeItRefuses(Doubling):
    def step(self, tokens):
        slots = min(self.max_len, self.length + tokens)
        if slots > self.keys.shape[2]:
            slots = min(self.max_len, max(slots, 2 * self.keys.shape[2]))
            self.keys = self._moved(self.keys, slots)
            self.values = self._moved(self.values, slots)
        return ContiguousKVCache.step(self, tokens)


class InheritsCopy(Doubling):
    copy = ContiguousKVCache.copy


class CopiesShallowly(Doubling):
    def copy(self):
        return copy.copy(self)


class LimitIsTheSlots(Doubling):
    def __init__(self, config, max_len, dtype=torch.float32, device="cpu"):
        ContiguousKVCache.__init__(self, config, min(16, max_len), dtype, device)


class PacksPositionsFromZero(Packed):
    def __init__(self, caches, counts):
        super().__init__(caches, counts)
        self.positions = torch.cat([torch.arange(n) for n in counts])


class PacksOneLongText(Packed):
    def __init__(self, caches, counts):
        super().__init__(caches, counts)
        self.positions = torch.arange(sum(counts)) + caches[0].length


class PacksAdvance(Packed):
    def attend(self, layer, q, k, v):
        out = super().attend(layer, q, k, v)
        if layer == 1:
            for ctx, n in zip(self.contexts, self.counts, strict=True):
                ctx._cache.advance(n)
        return out


class PacksAndAdvancesAtOnce(Packed):
    def __init__(self, caches, counts):
        super().__init__(caches, counts)
        for cache, n in zip(caches, counts, strict=True):
            cache.advance(n)


class PacksTheFirstKeys(Packed):
    """Every sequence gets the queries that are its own, and the first one's keys."""

    def attend(self, layer, q, k, v):
        parts = q.split(self.counts)
        each = zip(self.contexts, parts, strict=True)
        out = [ctx.attend(layer, x, k[: len(x)], v[: len(x)]) for ctx, x in each]
        return torch.cat(out)


class PacksBackwards(Packed):
    def attend(self, layer, q, k, v):
        parts = [x.split(self.counts) for x in (q, k, v)]
        each = list(zip(self.contexts, *parts, strict=True))
        return torch.cat([ctx.attend(layer, *part) for ctx, *part in each[::-1]])


class PacksEqualParts(Packed):
    def attend(self, layer, q, k, v):
        self.counts = [len(q) // len(self.contexts)] * len(self.contexts)
        return super().attend(layer, q, k, v)


class PacksWithoutStoring(Packed):
    def attend(self, layer, q, k, v):
        before = [(c._cache, c._cache.keys.clone()) for c in self.contexts]
        out = super().attend(layer, q, k, v)
        for cache, keys in before:
            cache.keys.copy_(keys)
        return out


class StacksTheCaches(Packed):
    """Right, as long as all have the same max_len."""

    def __init__(self, caches, counts):
        super().__init__(caches, counts)
        torch.stack([cache.keys for cache in caches])


class PacksDecodesAsOneText(Packed):
    def attend(self, layer, q, k, v):
        if len(q) > 1 and set(self.counts) == {1}:
            super().attend(layer, q, k, v)
            return attention(q, k, v, torch.arange(len(q)))
        return super().attend(layer, q, k, v)


class LooksAtTheLastOnly(Packed):
    def __init__(self, caches, counts):
        each = list(zip(caches, counts, strict=True))
        fits = [min(n, c.max_len - c.length) for c, n in each[:-1]]
        super().__init__(caches, [*fits, *counts[-1:]])


class PacksAlsoWhatDoesNotFit(Packed):
    def __init__(self, caches, counts):
        each = zip(caches, counts, strict=True)
        counts = [min(n, c.max_len - c.length) for c, n in each]
        super().__init__(caches, counts)


EXERCISE_MUTANTS = {
    "predict_slots": [
        predicts(cache_length=8), predicts(cache_length=7), predicts(twin_length=6),
        predicts(cache_layer_0="abcde..."), predicts(cache_layer_1="abcdeghi"),
        predicts(cache_layer_0="abcXYdeg"), predicts(twin_layer_0="abcf...."),
        predicts(twin_layer_1="abcfe..."), predicts(twin_layer_0="abcXYf.."),
        predicts(twin_layer_0="abc"), predicts(twin_layer_0=None), forgets_to_return,
    ],
    "DoublingKVCache": [
        DoublesFromTheStart, GrowsByTheStep, DoublesPastTheLimit, DoublesOnce,
        MovesToFloat32, TakesNoTokens, LosesThePast, InheritsCopy, CopiesShallowly,
        LimitIsTheSlots, BeginsWithSixteen, GrowsBySixteen, MovesBeforeItRefuses,
        DoublesTheLength, DoublesWhenFull, BeginsWithEight, ForgetsTheDevice,
        MovesToTheCPU, MovesLayerZeroOnly, CountsStepsThatFailed, CopiesIntoNewSlots,
    ],
    "PackedContext": [
        PacksPositionsFromZero, PacksOneLongText, PacksAdvance, PacksAndAdvancesAtOnce,
        PacksTheFirstKeys, PacksBackwards, PacksEqualParts, PacksWithoutStoring,
        PacksAlsoWhatDoesNotFit, StacksTheCaches, PacksDecodesAsOneText,
        LooksAtTheLastOnly,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, many in EXERCISE_MUTANTS.items() for mutant in many],
    ids=name_of,
)
def test_the_exercises_reject(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.kv_cache(**{name: mutant})
    assert "hint:" in capsys.readouterr().out


def test_a_prediction_is_judged_without_giving_it_away(capsys):
    blank = {key: "." * 8 if "layer" in key else 0 for key in SOLVED["predict_slots"]()}
    with pytest.raises(checks.CheckFailed, match="3 of 3"):
        checks.kv_cache(predict_slots=lambda: blank)
    out = capsys.readouterr().out
    assert not any(
        value in out
        for key, value in SOLVED["predict_slots"]().items()
        if "layer" in key
    )


def test_a_wrong_form_is_said_where_it_is_wrong(capsys):
    with pytest.raises(checks.CheckFailed, match="1 of 3"):
        checks.kv_cache(predict_slots=predicts(twin_layer_0="abc"))
    out = capsys.readouterr().out
    assert "expected: a string of 8 slots" in out and "✓ Both lengths" in out


def test_one_doubling_too_few_fails_one_property(capsys):
    with pytest.raises(checks.CheckFailed, match="1 of 7"):
        checks.kv_cache(DoublingKVCache=DoublesOnce)
    out = capsys.readouterr().out
    assert "input:    max_len 100, 0 tokens of 2 stored, a step of 50 more" in out
