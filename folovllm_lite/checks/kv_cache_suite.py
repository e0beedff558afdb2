"""What has to be true of a KV cache (notebook 07)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from folovllm_lite import kv_cache as package
from folovllm_lite.attention import PlainContext, attention
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.checks.tiny import tiny_config
from folovllm_lite.qwen3 import Qwen3

_SUITE = kv_cache = Suite(
    package,
    """Judge ContiguousKVCache through its steps, or notebook 07's exercises.

    `checks.kv_cache(ContiguousKVCache=Mine)` judges a class, `checks.kv_cache(module)`
    a module's. The exercises are judged as `predict_slots`, `DoublingKVCache` and
    `PackedContext`.
    """,
)


# ----- what the properties share


def _new(make: Callable, max_len: int = 8, config: Any = None) -> Any:
    """A new cache whose memory is NaN, so that reading an unwritten slot shows."""
    cache = make(config or tiny_config(), max_len)
    _poison(cache)
    return cache


def _poison(cache: Any) -> None:
    for name in ("keys", "values"):
        memory = getattr(cache, name, None)
        if isinstance(memory, Tensor) and memory.is_floating_point():
            memory.fill_(torch.nan)


def _average(ctx: Any, values: Sequence[float], layer: int = 0) -> list[float]:
    """Attend with queries of 0, which weigh all keys alike: averages of the values."""
    v = torch.tensor([float(x) for x in values])[:, None, None].expand(-1, 1, 4)
    q = torch.zeros(len(values), 1, 4)
    return ctx.attend(layer, q, torch.ones_like(v), v.contiguous())[:, 0, 0].tolist()


def _run(cache: Any, values: Sequence[float], layers: int = 1) -> list[float]:
    """One whole step: context, every layer, advance; the last layer's averages."""
    ctx = cache.step(len(values))
    for layer in range(layers):
        out = _average(ctx, values, layer)
    cache.advance(len(values))
    return out


def _ask(cache: Any, key: float, value: float) -> float:
    """A step of one token; its query sees little but the value of the largest key."""
    ones = torch.ones(1, 1, 4)
    out = cache.step(1).attend(0, 10 * ones, key * ones, value * ones)
    cache.advance(1)
    return out[0, 0, 0].item()


def _random(T: int, heads: int, D: int, seed: int) -> Tensor:
    return torch.randn(T, heads, D, generator=torch.Generator().manual_seed(seed))


def _alike(given: str, got: Tensor, wanted: Tensor) -> None:
    """Fail unless the tensors are equal but for rounding."""
    if got.shape != wanted.shape:
        fail(given, list(got.shape), f"shape {list(wanted.shape)}")
    apart = (got.float() - wanted.float()).abs()
    if not bool((apart < 1e-4).all()):
        row = int((~(apart < 1e-4)).flatten(1).any(1).nonzero()[0])
        fail(given, f"row {row} is {got[row].flatten()[:3].tolist()} …",
             f"{wanted[row].flatten()[:3].tolist()} …")  # fmt: skip


def _model() -> tuple[Qwen3, Tensor]:
    """A random model of two layers, two query heads to a key/value head, and text."""
    model = Qwen3(tiny_config(num_layers=2, num_heads=4, num_kv_heads=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(0, 0.5, generator=generator)
    ids = torch.randint(0, 16, (8,), generator=generator)
    return model.requires_grad_(False).eval(), ids


def _uncached(model: Qwen3, ids: Tensor) -> Tensor:
    return model.logits(model(ids, PlainContext(torch.arange(len(ids)))))


def _cuts_agree(make: Callable, *all_cuts: tuple[int, ...]) -> None:
    """Every cut of a sequence into steps attends as the sequence in one pass does."""
    config = tiny_config(num_heads=4, num_kv_heads=2, num_layers=2)
    for cuts in all_cuts:
        T = sum(cuts)
        given = f"4 query and 2 key/value heads, steps of {cuts}"
        each = [
            (_random(T, 4, 4, s), _random(T, 2, 4, s + 1), _random(T, 2, 4, s + 2))
            for s in (1, 11)
        ]
        cache, done = _new(make, T, config), 0
        for n in cuts:
            new, ctx = slice(done, done + n), cache.step(n)
            for layer, (q, k, v) in enumerate(each):
                got = ctx.attend(layer, q[new], k[new], v[new])
                wanted = attention(q, k, v, torch.arange(T))[new]
                _alike(f"{given}, layer {layer}, tokens {done} on", got, wanted)
            cache.advance(n)
            done += n


# ----- the cache


@_SUITE.property("ContiguousKVCache", hint="count both: keys and values, all layers")
def _memory(p: SimpleNamespace) -> None:
    """Memory for max_len tokens is taken at once, in the dtype and on the device that
    were asked for.
    """
    for layers, heads, D, max_len in ((1, 1, 4, 1), (2, 1, 4, 8), (3, 2, 8, 5)):
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            config = tiny_config(
                num_layers=layers, num_heads=heads, num_kv_heads=heads, head_dim=D
            )
            cache = p.ContiguousKVCache(config, max_len, dtype)
            given = f"{layers} layers, {heads} heads, D {D}, {max_len} tokens, {dtype}"
            expect(
                f"{given}: nbytes",
                cache.nbytes,
                2 * layers * heads * D * max_len * size,
            )
            got = [cache.length, cache.max_len]
            expect(f"{given}: length, max_len", got, [0, max_len])
    cache = p.ContiguousKVCache(tiny_config(), 4, torch.bfloat16)
    ones = torch.ones(1, 1, 4, dtype=torch.bfloat16)
    out = cache.step(1).attend(0, ones, ones, ones)
    expect("bfloat16: dtype of what attend returns", out.dtype, torch.bfloat16)
    cache = p.ContiguousKVCache(tiny_config(), 4, device="meta")
    got = [cache.keys, cache.values, cache.step(1).positions]
    got = [tensor.device.type for tensor in got]
    expect('device "meta": of keys, values, positions', got, ["meta"] * 3)


@_SUITE.property("ContiguousKVCache", hint="the first new token stands after the past")
def _positions(p: SimpleNamespace) -> None:
    """The positions of a step go on where the stored tokens end."""
    cache = _new(p.ContiguousKVCache)
    for T, wanted in ((1, [0]), (2, [1, 2]), (1, [3]), (3, [4, 5, 6])):
        ctx = cache.step(T)
        given = f"{cache.length} tokens stored, step({T}).positions"
        expect(given, ctx.positions, wanted)
        expect("dtype of positions", ctx.positions.dtype, torch.int64)
        _average(ctx, range(T))
        cache.advance(T)


@_SUITE.property("ContiguousKVCache", hint="who is told that a step has succeeded?")
def _nobody_else_advances(p: SimpleNamespace) -> None:
    """Neither step nor attend moves length, in no layer; only advance does."""
    cache = _new(p.ContiguousKVCache, config=tiny_config(num_layers=2))
    ctx = cache.step(2)
    expect("after step(2): length", cache.length, 0)
    for layer in (0, 1):
        _average(ctx, [1, 3], layer)
        expect(f"after attend in layer {layer} of 0, 1: length", cache.length, 0)
    cache.advance(2)
    expect("after advance(2): length", cache.length, 2)
    expect("then step(1).positions", cache.step(1).positions, [2])


@_SUITE.property(
    "ContiguousKVCache",
    hint="one query: is there a key it may not see? nan is a slot never written",
)
def _decode(p: SimpleNamespace) -> None:
    """A single new token attends to all that is stored, and to itself."""
    cache = _new(p.ContiguousKVCache)
    for value, wanted in ((2, 2.0), (4, 3.0), (6, 4.0)):
        given = f"{cache.length} stored, value {value} is new; average of what it sees"
        expect(given, _run(cache, [value]), [wanted])


@_SUITE.property("ContiguousKVCache", hint="token t may see keys 0 to t, t included")
def _prefill(p: SimpleNamespace) -> None:
    """A prompt is causal: each of its tokens sees itself and those before it."""
    for values, wanted in (([2, 4], [2.0, 3.0]), ([2, 4, 6], [2.0, 3.0, 4.0])):
        got = _run(_new(p.ContiguousKVCache), values)
        expect(f"nothing stored, values {values} are new; averages", got, wanted)


@_SUITE.property(
    "ContiguousKVCache", hint="draw the mask, 2 x 4: in which corner does it end?"
)
def _chunk(p: SimpleNamespace) -> None:
    """A chunk behind a past sees all of the past, and is causal in itself."""
    for past, new, wanted in (
        ([2], [4, 6], [3.0, 4.0]),
        ([2, 4], [6, 8], [4.0, 5.0]),
        ([8, 0, 4], [0, 8], [3.0, 4.0]),
    ):
        cache = _new(p.ContiguousKVCache)
        _run(cache, past)
        given = f"values {past} stored, {new} new; averages of what each sees"
        expect(given, _run(cache, new), wanted)


@_SUITE.property("ContiguousKVCache", hint="compare each row's mask with its position")
def _any_cut(p: SimpleNamespace) -> None:
    """Any cut of a sequence into steps attends like the sequence in one pass."""
    small = (1, 1), (2, 1), (1, 2), (2, 2), (1, 3, 1, 3), (5, 1, 2)
    _cuts_agree(p.ContiguousKVCache, *small)


@_SUITE.property("ContiguousKVCache", hint="the first index of the memory is the layer")
def _layers(p: SimpleNamespace) -> None:
    """Each layer has keys and values of its own."""
    cache = _new(p.ContiguousKVCache, config=tiny_config(num_layers=2))
    ctx = cache.step(1)
    _average(ctx, [2], 0)
    _average(ctx, [10], 1)
    cache.advance(1)
    ctx = cache.step(1)
    expect("layer 0: 2 stored, 4 new; average", _average(ctx, [4], 0), [3.0])
    expect("layer 1: 10 stored, 20 new; average", _average(ctx, [20], 1), [15.0])


@_SUITE.property("ContiguousKVCache", hint="what does the next pass write over?")
def _failed_pass(p: SimpleNamespace) -> None:
    """A pass that fails, halfway or after its last layer, changes nothing."""
    for ran in (1, 2):
        cache = _new(p.ContiguousKVCache, config=tiny_config(num_layers=2))
        _run(cache, [2, 4], layers=2)
        ctx = cache.step(2)
        for layer in range(ran):
            _average(ctx, [90, 90], layer)
        given = f"2 stored, a pass of 2 fails after layer {ran - 1} of 0, 1"
        expect(f"{given}: length", cache.length, 2)
        ctx = cache.step(1)
        expect(f"{given}: next positions", ctx.positions, [2])
        for layer in (0, 1):
            got = _average(ctx, [6], layer)
            expect(f"{given}; then 6 is new: layer {layer}", got, [4.0])


@_SUITE.property("ContiguousKVCache", hint="0 and negative numbers aren't an advance")
def _advance(p: SimpleNamespace) -> None:
    """Less than 1 token, or more than there is room for, is refused by advance."""
    cache = _new(p.ContiguousKVCache, max_len=4)
    cache.advance(3)
    for tokens, word in ((0, "0"), (-1, "-1"), (2, ("2", "1"))):
        expect_error(
            f"3 of 4 stored: advance({tokens})",
            lambda tokens=tokens: cache.advance(tokens),
            ValueError,
            word,
        )
        expect(f"after the refused advance({tokens}): length", cache.length, 3)
    cache.advance(1)
    expect("3 of 4 stored, advance(1): length", cache.length, 4)


@_SUITE.property(
    "ContiguousKVCache",
    hint="the last slot counts: length + T <= max_len; and which number says how many "
    "were too many?",
)
def _refusals(p: SimpleNamespace) -> None:
    """What can't fit is refused with the numbers; what just fits, fits."""
    for most in (0, -1):
        call = lambda most=most: p.ContiguousKVCache(tiny_config(), most)  # noqa: E731
        expect_error(f"max_len {most}", call, ValueError, str(most))
    cache = _new(p.ContiguousKVCache, max_len=4)
    _run(cache, [2, 4, 6])
    expect("3 of 4 stored, step(1): average", _average(cache.step(1), [8]), [5.0])
    # Of 2 tokens: how many they are, or how many there is room for.
    for tokens, words in ((2, [("2", "1")]), (0, ["0"]), (-1, ["-1"])):
        expect_error(
            f"3 of 4 stored: step({tokens})",
            lambda tokens=tokens: cache.step(tokens),
            ValueError,
            *words,
        )
    expect("after all that: length", cache.length, 3)
    whole = _new(p.ContiguousKVCache, max_len=2)
    expect("a prompt of 2 into max_len 2", _run(whole, [2, 4]), [2.0, 3.0])


@_SUITE.property(
    "ContiguousKVCache",
    hint="two names for one memory make no copy; and where do its next tokens go?",
)
def _copies(p: SimpleNamespace) -> None:
    """A copy has the same past and its own future, whoever writes first."""
    cache = _new(p.ContiguousKVCache)
    _run(cache, [2, 4])
    given = "2 of 8 stored, copied: nbytes of the copy"
    expect(given, cache.copy().nbytes, cache.nbytes)
    _copies_apart(p.ContiguousKVCache)


def _copies_apart(make: Callable) -> None:
    for first in ("original", "copy"):
        cache = _new(make)
        _run(cache, [2, 4])
        twin = cache.copy()
        given = "2 and 4 stored, copied"
        expect(f"{given}: length, max_len", [twin.length, twin.max_len], [2, 8])
        writer, other = (cache, twin) if first == "original" else (twin, cache)
        _run(writer, [90])
        said = f"{given}, the {first} advances by 1: the other's length"
        expect(said, other.length, 2)
        _run(other, [9])
        got = [_run(writer, [6]), _run(other, [9])]
        expect(
            f"{given}, the {first} stores 90, the other 9; then 6 and 9: averages",
            got,
            [[25.5], [6.0]],
        )
    for first in (True, False):
        cache = _new(make)
        _ask(cache, 0, 2)
        twin = cache.copy()
        for each, key in (
            ((cache, 9), (twin, -9)) if first else ((twin, -9), (cache, 9))
        ):
            _ask(each, key, 6)
        got = [_ask(each, -9, 100) for each in (cache, twin)]
        given = (
            "key 0, value 2 stored, copied; value 6 with key 9 into the original, with "
            "key -9 into the copy; then queries that like the largest key: values"
        )
        expect(given, got, [6.0, 2.0])


@_SUITE.property(
    "ContiguousKVCache", hint="find the first step that differs: what is new?"
)
def _logits(p: SimpleNamespace) -> None:
    """A model's logits are, at every step, those of the pass without a cache."""
    model, ids = _model()
    wanted = _uncached(model, ids)
    for cuts in ((1,) * 8, (4, 1, 1, 1, 1), (3, 3, 2)):
        cache, done = _new(p.ContiguousKVCache, 8, model.config), 0
        for n in cuts:
            got = model.logits(model(ids[done : done + n], cache.step(n)))
            cache.advance(n)
            given = f"a model of 2 layers, steps of {cuts}, logits of token {done} on"
            _alike(given, got, wanted[done : done + n])
            done += n


# ----- the exercises


def _letters(cache: Any, layer: int) -> str:
    """The slots of a layer as letters; '.' is a slot that was never written."""
    return "".join(
        "." if x != x else chr(int(x)) for x in cache.values[layer, 0, :, 0].tolist()
    )


def _slots() -> dict[str, Any]:
    """What exercise 1 asks for, from the package's own cache."""

    def run(cache: Any, text: str, layers: int = 2) -> None:
        ctx = cache.step(len(text))
        for layer in range(layers):
            _average(ctx, [ord(letter) for letter in text], layer)

    cache = _new(package.ContiguousKVCache, config=tiny_config(num_layers=2))
    run(cache, "abc")
    cache.advance(3)
    run(cache, "XY")
    twin = cache.copy()
    run(cache, "de")
    cache.advance(2)
    run(twin, "f")
    twin.advance(1)
    run(cache, "ghi", layers=1)
    return {
        f"{name}.{what}": value
        for name, each in (("cache", cache), ("twin", twin))
        for what, value in (
            ("length", each.length),
            ("layer 0", _letters(each, 0)),
            ("layer 1", _letters(each, 1)),
        )
    }


def _prediction(p: SimpleNamespace, name: str) -> dict[str, Any]:
    """What predict_slots returns, if it has the form asked for in `name`'s entries."""
    got = p.predict_slots()
    if not isinstance(got, dict) or got.keys() != _slots().keys():
        fail("predict_slots()", repr(got), f"a dict with the keys {list(_slots())}")
    for key, value in got.items():
        if name not in key or "layer" not in key:
            continue
        if not isinstance(value, str) or len(value) != 8:
            fail(key, repr(value), "a string of 8 slots, '.' for one never written")
    return got


@_SUITE.property(
    "predict_slots", hint="go through the calls: which of them count tokens?"
)
def _predicted_lengths(p: SimpleNamespace) -> None:
    """Both lengths are as you predict."""
    got = _prediction(p, "length")
    for name in ("cache.length", "twin.length"):
        if got[name] != _slots()[name]:
            fail(name, repr(got[name]), "another number")


def _judge_slots(got: dict[str, Any], name: str) -> None:
    for layer in ("layer 0", "layer 1"):
        key = f"{name}.{layer}"
        for slot, (mine, real) in enumerate(zip(got[key], _slots()[key], strict=True)):
            if mine != real:
                fail(f"{key}, slot {slot}", repr(mine), "something else")


@_SUITE.property(
    "predict_slots",
    hint="a pass writes from length on, layer by layer; does a failure clean up?",
)
def _predicted_cache(p: SimpleNamespace) -> None:
    """The slots of `cache` hold what you predict, in both layers."""
    _judge_slots(_prediction(p, "cache"), "cache")


@_SUITE.property(
    "predict_slots", hint="copy() clones all of the memory, whatever length says"
)
def _predicted_twin(p: SimpleNamespace) -> None:
    """The slots of `twin` hold what you predict, in both layers."""
    _judge_slots(_prediction(p, "twin"), "twin")


def _slots_of(cache: Any) -> int:
    """Slots of a cache of one layer, one head of four numbers, in float32."""
    return cache.nbytes // (2 * 4 * 4)


@_SUITE.property(
    "DoublingKVCache", hint="the memory of 1 stored token should not be that of 1,024"
)
def _doubling_is_small(p: SimpleNamespace) -> None:
    """It begins with 16 slots, and has twice as many, or what the step needs, only when
    a step doesn't fit.
    """
    cache = _new(p.DoublingKVCache, 1000)
    expect("max_len 1000: max_len, length", [cache.max_len, cache.length], [1000, 0])
    expect("max_len 1000, nothing stored: slots", _slots_of(cache), 16)
    slots = 16
    for T in (1, 15, 1, 20, 1, 50, 1, 100, 1):
        if cache.length + T > slots:
            slots = max(2 * slots, cache.length + T)
        given = f"max_len 1000, {cache.length} stored, a step of {T}: slots"
        _run(cache, [1.0] * T)
        expect(given, _slots_of(cache), slots)
    cache = _new(p.DoublingKVCache, 1000)
    for T in (10, 10):
        _run(cache, [1.0] * T)
    expect("max_len 1000, steps of 10 and 10: slots", _slots_of(cache), 32)
    for _ in range(3):
        cache.step(10)
    given = "then step(10) three times, and nobody advances: slots"
    expect(given, _slots_of(cache), 32)
    cache = _new(p.DoublingKVCache, 100)
    with suppress(ValueError):
        cache.step(101)
    given = "max_len 100, nothing stored, step(101) is refused: slots"
    expect(given, _slots_of(cache), 16)


@_SUITE.property(
    "DoublingKVCache", hint="a step may bring more than one doubling makes room for"
)
def _doubling_makes_room(p: SimpleNamespace) -> None:
    """One step of many tokens finds room for all of them."""
    for stored, new in ((0, 50), (10, 90)):
        cache = _new(p.DoublingKVCache, 100)
        given = f"max_len 100, {stored} tokens of 2 stored, a step of {new} more"
        if stored:
            _run(cache, [2.0] * stored)
        try:
            got = _run(cache, [2.0] * new)
        except NotImplementedError:
            raise  # a stub that isn't written yet
        except (RuntimeError, IndexError, ValueError) as error:
            fail(given, f"{type(error).__name__}: {error}", f"room for {new} more")
        if not stored:  # what becomes of a past is the next property's
            expect(f"{given}: last average", got[-1], 2.0)
        # Twice 16 slots are too few, so it is as many as the step needs.
        expect(f"{given}: slots", _slots_of(cache), stored + new)


@_SUITE.property("DoublingKVCache", hint="copy the past when you move to new memory")
def _doubling_keeps(p: SimpleNamespace) -> None:
    """Growing loses nothing: every token sees all tokens before it, up to max_len."""
    cache = _new(p.DoublingKVCache, 100)
    for i in range(100):
        got = _run(cache, [2.0 * i])
        expect(f"values 0, 2, 4, … one a step, token {i}: average", got, [float(i)])
    _cuts_agree(p.DoublingKVCache, (1, 3, 1, 3), (10, 7, 1, 30), (16, 1, 16))


@_SUITE.property("DoublingKVCache", hint="of which dtype is the memory you move to?")
def _doubling_dtype(p: SimpleNamespace) -> None:
    """Its memory has the dtype and the device that were asked for, before it grows and
    after.
    """
    cache = p.DoublingKVCache(tiny_config(), 100, torch.bfloat16)
    for T in (1, 20):
        new = torch.ones(T, 1, 4, dtype=torch.bfloat16)
        ctx = cache.step(T)
        given = f"bfloat16, {cache.length} of 100 stored, a step of {T}"
        for what in ("keys", "values"):
            expect(f"{given}: dtype of {what}", getattr(cache, what).dtype, new.dtype)
        expect(
            f"{given}: dtype of attend", ctx.attend(0, new, new, new).dtype, new.dtype
        )
        cache.advance(T)
    cache = p.DoublingKVCache(tiny_config(), 100, device="meta")
    for T in (1, 20):
        cache.step(T)
        cache.advance(T)
        got = [cache.keys.device.type, cache.values.device.type]
        given = f'device "meta", {cache.length} of 100 stored: of keys and values'
        expect(given, got, ["meta", "meta"])


@_SUITE.property("DoublingKVCache", hint="how many moves, if each adds the same?")
def _doubling_is_rare(p: SimpleNamespace) -> None:
    """It moves to new memory at most 7 times on the way to 1,000 tokens."""
    cache, moves = _new(p.DoublingKVCache, 1000), 0
    where = cache.keys
    for _ in range(1000):
        _run(cache, [1.0])
        if cache.keys is not where:
            where, moves = cache.keys, moves + 1
    if moves > 7:
        fail("1000 tokens, one a step: moves", moves, "at most 7")


@_SUITE.property("DoublingKVCache", hint="the limit is max_len, not the slots of today")
def _doubling_refuses(p: SimpleNamespace) -> None:
    """It refuses what goes beyond max_len, and its memory never does."""
    cache = _new(p.DoublingKVCache, 20)
    _run(cache, [1.0] * 17)
    expect_error("17 of 20 stored: step(4)", lambda: cache.step(4), ValueError, "20")
    _run(cache, [1.0] * 3)
    expect("max_len 20, all stored: slots", _slots_of(cache), 20)
    slots = _slots_of(_new(p.DoublingKVCache, 5))
    expect("max_len 5, nothing stored: slots", slots, 5)
    call = lambda: p.DoublingKVCache(tiny_config(), 0)  # noqa: E731
    expect_error("max_len 0", call, ValueError, "0")
    cache = _new(p.DoublingKVCache, 20)
    _run(cache, [1.0] * 17)
    for tokens in (0, -1, 4):
        call = lambda tokens=tokens: cache.advance(tokens)  # noqa: E731
        given = f"17 of 20 stored: advance({tokens})"
        expect_error(given, call, ValueError, str(tokens))
    expect_error("17 of 20 stored: step(0)", lambda: cache.step(0), ValueError, "0")
    expect("17 of 20 stored, after all that: length", cache.length, 17)


@_SUITE.property("DoublingKVCache", hint="does the copy know how to grow, and alone?")
def _doubling_copies(p: SimpleNamespace) -> None:
    """A copy has its own future too, and grows as well."""
    _copies_apart(p.DoublingKVCache)
    cache = _new(p.DoublingKVCache, 100)
    _run(cache, [2.0] * 20)
    twin = cache.copy()
    got = [_run(twin, [2.0] * 30)[-1], _run(cache, [4.0] * 20)[-1]]
    given = (
        "20 times 2 stored, copied; the copy stores 30 times 2, the other 20 times 4"
    )
    expect(f"{given}: last averages", got, [2.0, 3.0])
    expect(f"{given}: lengths", [twin.length, cache.length], [50, 40])


def _three() -> tuple[Qwen3, list[Tensor], list[Any]]:
    """A model, and three texts of which 3, 0 and 1 tokens are in a cache each."""
    model, ids = _model()
    texts = [ids[:5], ids.flip(0)[:4], ids[2:4]]
    caches = []
    for text, past, most in zip(texts, (3, 0, 1), (8, 6, 7), strict=True):
        cache = _new(package.ContiguousKVCache, most, model.config)
        if past:
            model(text[:past], cache.step(past))
            cache.advance(past)
        caches.append(cache)
    return model, texts, caches


@_SUITE.property(
    "PackedContext", hint="join the positions of the steps, in their order"
)
def _packed_positions(p: SimpleNamespace) -> None:
    """The positions are those of each cache's own step, one after the other."""
    _, _, caches = _three()
    got = p.PackedContext(caches[:1], [2]).positions
    expect("one cache with 3 stored, 2 new: positions", got, [3, 4])
    got = p.PackedContext(caches, [2, 4, 1]).positions
    expect("3, 0, 1 stored, 2, 4, 1 new: positions", got, [3, 4, 0, 1, 2, 3, 1])
    expect("dtype of positions", got.dtype, torch.int64)


@_SUITE.property(
    "PackedContext",
    hint="q, k and v are packed alike: of each, which rows belong to a sequence? Its "
    "tokens may see no others",
)
def _packed_attends(p: SimpleNamespace) -> None:
    """In one pass, every sequence gets the logits that it gets alone."""
    model, texts, caches = _three()
    for chosen in ((0,), (2, 0), (1, 0), (0, 1, 2)):
        mine = [caches[i].copy() for i in chosen]
        new = [texts[i][caches[i].length :] for i in chosen]
        ctx = p.PackedContext(mine, [len(ids) for ids in new])
        got = model.logits(model(torch.cat(new), ctx))
        wanted = [_uncached(model, texts[i])[caches[i].length :] for i in chosen]
        given = f"texts {chosen} of 3, which have 3, 0, 1 tokens stored; all logits"
        _alike(given, got, torch.cat(wanted))
    got = model.logits(
        model(torch.stack([text[n] for text, n in zip(texts, (3, 0, 1), strict=True)]),
              p.PackedContext(caches, [1, 1, 1]))
    )  # fmt: skip
    wanted = [_uncached(model, texts[i])[[n]] for i, n in enumerate((3, 0, 1))]
    _alike(
        "3, 0, 1 tokens stored, one new token each; all logits", got, torch.cat(wanted)
    )


@_SUITE.property("PackedContext", hint="whose k and v go into which cache, and where?")
def _packed_stores(p: SimpleNamespace) -> None:
    """Each cache stores its own tokens: afterwards every sequence goes on alone."""
    model, texts, caches = _three()
    new = [text[cache.length : -1] for text, cache in zip(texts, caches, strict=True)]
    kept = [i for i in range(3) if len(new[i])]
    counts = [len(new[i]) for i in kept]
    ctx = p.PackedContext([caches[i] for i in kept], counts)
    model(torch.cat([new[i] for i in kept]), ctx)
    for i, n in zip(kept, counts, strict=True):
        caches[i].advance(n)
    for i, (text, cache) in enumerate(zip(texts, caches, strict=True)):
        got = model.logits(model(text[-1:], cache.step(1)))
        _alike(f"text {i}, its last token, alone", got, _uncached(model, text)[-1:])


@_SUITE.property(
    "PackedContext",
    hint="the caller advances, when the step succeeded; and who can say that there is "
    "no room, before a layer has run?",
)
def _packed_does_not_advance(p: SimpleNamespace) -> None:
    """A pass moves no length; a cache that is too full is refused before anything."""
    model, texts, caches = _three()
    ctx = p.PackedContext(caches, [1, 1, 1])
    model(torch.tensor([1, 2, 3]), ctx)
    got = [cache.length for cache in caches]
    expect("3, 0, 1 stored, a pass of 1, 1, 1: lengths", got, [3, 0, 1])
    for counts in ([1, 1, 7], [6, 1, 1], [1, 7, 1]):
        expect_error(
            f"3, 0, 1 stored of 8, 6, 7: PackedContext(caches, {counts})",
            lambda counts=counts: p.PackedContext(caches, counts),
            ValueError,
        )
    got = [cache.length for cache in caches]
    expect("after the refusal: lengths", got, [3, 0, 1])
