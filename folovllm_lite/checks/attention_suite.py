"""What has to be true of attention (notebook 06)."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from folovllm_lite import attention as package
from folovllm_lite.checks.harness import Suite, expect, fail, plain

_SUITE = attention = Suite(
    package,
    """Judge attention and PlainContext, or one of them.

    `checks.attention(attention=mine)` judges one function, `checks.attention(module)`
    all of a module. The contract: q [T, Hq, D], k and v [S, Hkv, D], key s stands at
    position s, and query t sees the keys up to q_positions[t].
    """,
    inside=torch.no_grad,
)


def expect_close(given: str, got: Any, wanted: Tensor, within: float = 1e-4) -> None:
    """Fail unless `got` is `wanted`, shape and numbers, but for rounding.

    What is shown is the first row that differs. `within` is relative for numbers above
    1, absolute below.
    """
    if not isinstance(got, Tensor):
        fail(given, type(got).__name__, "a tensor")
    if got.shape != wanted.shape:
        fail(f"{given}: shape", list(got.shape), list(wanted.shape))
    off = (got.double() - wanted.double()).abs()
    wrong = ~(off <= within * wanted.double().abs().clamp(min=1))  # a NaN is wrong
    if not wrong.any():
        return
    *row, column = wrong.nonzero()[0].tolist() if wanted.dim() else [0]
    start = column - column % 8  # eight numbers of the row, the wrong one among them
    for number in row:
        got, wanted = got[number], wanted[number]
    where = f", row {row}" if row else ""
    where += f" from {start}" if start else ""
    fail(given + where, *(plain(x.double())[start:][:8] for x in (got, wanted)))


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _zeros(tokens: int, heads: int = 1) -> Tensor:
    """Queries that like every key alike: what comes back is a mean of values."""
    return torch.zeros(tokens, heads, 2)


def _counting(tokens: int, heads: int = 1) -> Tensor:
    """Values [tokens, heads, 2]: token 0 has 0, 0, token 1 has 1, 10, and so on."""
    steps = torch.arange(tokens, dtype=torch.float32)
    return torch.stack((steps, 10 * steps), -1)[:, None].repeat(1, heads, 1)


def _by_torch(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """The same by PyTorch's function, in float64."""
    group = q.shape[1] // k.shape[1]
    seen = torch.arange(len(k)) <= positions[:, None]  # [T, S]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))  # heads first
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    return F.scaled_dot_product_attention(q, k, v, seen).transpose(0, 1)


def _at(*positions: int) -> Tensor:
    return torch.tensor(positions)


@_SUITE.property(
    "attention", hint="a query sees its own key too; the weights of what it sees add up"
)
def _one_token(p: SimpleNamespace) -> None:
    """One token alone sees itself: what comes back is its value, shape [T, Hq, D]."""
    value = torch.tensor([[[3.0, -4.0]]])
    given = "q = [1, 2], k = [5, 6], v = [3, -4] at position 0"
    q, k = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 6.0]]])
    expect_close(given, p.attention(q, k, value, _at(0)), value)
    given = "two query heads, one key/value head, v = [3, -4]"
    got = p.attention(_numbers(1, 2, 2), k, value, _at(0))
    expect_close(given, got, value.expand(1, 2, 2))


@_SUITE.property(
    "attention", hint="hide before the softmax, so that the weights still add up to 1"
)
def _causal(p: SimpleNamespace) -> None:
    """A query sees itself and the past, never the future."""
    v = _counting(3)
    for tokens in (2, 3):
        got = p.attention(
            _zeros(tokens), _zeros(tokens), v[:tokens], torch.arange(tokens)
        )
        given = f"{tokens} tokens, q = k = 0, so a mean of v = 0, 1, … of what is seen"
        means = v.cumsum(0)[:tokens] / torch.arange(1, tokens + 1)[:, None, None]
        expect_close(given, got, means)
    q = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    k = torch.tensor([[[0.0, 0.0]], [[90.0, 0.0]]])
    got = p.attention(q, k, v[:2], _at(0, 1))
    expect_close("two tokens, every q likes key 1 best, v = 0 and 1", got, v[:2])
    got = p.attention(
        1000 * q, torch.tensor([[[-1500.0, 0]], [[0, 0]]]), v[:2], _at(0, 1)
    )
    given = (
        "two tokens, scores of about -1,000,000 with key 0, 0 with key 1, v = 0 and 1"
    )
    expect_close(given, got, v[:2])


@_SUITE.property(
    "attention", hint="which number says where a query stands: its row, or q_positions?"
)
def _behind_a_past(p: SimpleNamespace) -> None:
    """Where a query stands is said by q_positions: a chunk sees all of its past, and
    later keys stay hidden.
    """
    v = _counting(4)
    for positions, length in (
        ([2], 3),
        ([1, 2], 3),
        ([2, 3], 4),
        ([0], 3),
        ([1], 4),
        ([2, 0], 3),
        ([1, 1], 2),
        ([0, 2, 1], 3),
    ):
        got = p.attention(
            _zeros(len(positions)), _zeros(length), v[:length], _at(*positions)
        )
        wanted = torch.stack([v[: at + 1].mean(0) for at in positions])
        given = (
            f"queries at {positions}, {length} keys, q = k = 0, "
            "so a mean of v = 0, 1, … of what is seen"
        )
        expect_close(given, got, wanted)


@_SUITE.property(
    "attention",
    hint="write down, for Hq = 4 and Hkv = 2, the key/value head of each query head",
)
def _groups(p: SimpleNamespace) -> None:
    """Query heads that are neighbours share a key/value head: with 4 and 2, heads 0 and
    1 read head 0, heads 2 and 3 read head 1.
    """
    for heads, kv_heads in ((2, 2), (4, 2), (6, 2), (6, 3), (3, 1)):
        group = heads // kv_heads
        wanted = torch.tensor([[h // group] * 2 for h in range(heads)])[None].float()
        v = torch.arange(kv_heads)[None, :, None].expand(1, kv_heads, 2).float()
        got = p.attention(_zeros(1, heads), _zeros(1, kv_heads), v, _at(0))
        given = (
            f"{heads} query heads, {kv_heads} key/value heads, v = the head's number"
        )
        expect_close(given, got, wanted)
    # Keys: only head 1 has a key that is liked, at position 0.
    q, k = torch.ones(1, 4, 2), torch.zeros(2, 2, 2)
    k[0, 1] = 90.0
    got = p.attention(q, k, 1 - _counting(2, 2), _at(1))
    wanted = torch.tensor([[0.5, -4.0]] * 2 + [[1.0, 1.0]] * 2)[None]
    given = (
        "4 query heads, 2 key heads, in head 1 key 0 is liked by all; v = 1 and 0, -9"
    )
    expect_close(given, got, wanted)


@_SUITE.property("attention", hint="what happens to a dot product's size when D grows?")
def _scale(p: SimpleNamespace) -> None:
    """Scores are divided by sqrt(D) before the softmax."""
    for D, heads in ((4, 1), (16, 1), (2, 1), (4, 2)):
        q, k = torch.zeros(1, heads, D), torch.zeros(2, 1, D)
        q[..., 0], k[1, 0, 0] = 1.0, math.sqrt(D) * math.log(3)
        v = torch.tensor([0.0, 4.0])[:, None, None].repeat(1, 1, D)
        got = p.attention(q, k, v, _at(1))
        dots = f"q·k = 0 and {D**0.5 * math.log(3):.2f}"
        given = f"Hq = {heads}, Hkv = 1, D = {D}, {dots}, v = 0 and 4"
        expect_close(given, got, torch.full((1, heads, D), 3.0))


@_SUITE.property(
    "attention", hint="keys and queries only decide the weights: what is weighted?"
)
def _values(p: SimpleNamespace) -> None:
    """It is values that are weighted: equal values come back whatever q and k are, and
    twice the values give twice the result.
    """
    q, k = _numbers(3, 2, 2, seed=1), _numbers(3, 1, 2, seed=2)
    v = torch.tensor([7.0, -5.0]).expand(3, 1, 2).contiguous()
    got = p.attention(q, k, v, torch.arange(3))
    expect_close("v = [7, -5] everywhere", got, v.expand(3, 2, 2))
    v = _numbers(3, 1, 2, seed=3)
    once = p.attention(q, k, v, torch.arange(3))
    twice = p.attention(q, k, 2 * v, torch.arange(3))
    expect_close("2 v instead of v", twice, 2 * once)


@_SUITE.property("attention", hint="which of your operations writes into its input?")
def _inputs_stay(p: SimpleNamespace) -> None:
    """q, k, v and q_positions stay as they were."""
    given = {
        "q": _numbers(2, 4, 2),
        "k": _numbers(3, 2, 2, seed=1),
        "v": _numbers(3, 2, 2, seed=2),
        "q_positions": _at(1, 2),
    }
    before = {name: tensor.clone() for name, tensor in given.items()}
    p.attention(*given.values())
    for name, tensor in given.items():
        expect_close(f"{name} [{tensor.shape[0]}, …], afterwards", tensor, before[name])


@_SUITE.property(
    "attention",
    hint="exp of a large score has no finite value, and a sum of halves stops growing: "
    "in which dtype is your softmax, and does it subtract the largest score?",
)
def _precision(p: SimpleNamespace) -> None:
    """The softmax is as good as one in float32: large scores don't overflow, many keys
    add up, and the result has q's dtype.
    """
    v = torch.tensor([0.0, 2.0])[:, None, None].repeat(1, 1, 4)
    for dtype, size in (
        (torch.float32, 4.0),
        (torch.float32, 40.0),
        (torch.bfloat16, 4.0),
        (torch.float16, 4.0),
        (torch.float16, 10.0),
        (torch.bfloat16, 40.0),
    ):
        q = torch.full((1, 1, 4), size, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        given = f"{name}, two scores of {2 * size * size:.0f}, v = 0 and 2"
        got = p.attention(q, q.repeat(2, 1, 1), v.to(dtype), _at(1))
        expect(f"{given}: dtype", got.dtype, dtype)
        expect_close(given, got, torch.ones(1, 1, 4), within=0.02)
    for dtype in (torch.bfloat16, torch.float16):
        q, k = torch.zeros(1, 1, 2, dtype=dtype), torch.zeros(600, 1, 2, dtype=dtype)
        v = k.clone()
        v[300:] = 1
        name = str(dtype).removeprefix("torch.")
        given = f"{name}, 600 equal scores, v = 0 for the first half, then 1"
        got = p.attention(q, k, v, _at(599))
        expect_close(given, got, torch.full((1, 1, 2), 0.5), within=0.02)


@_SUITE.property(
    "attention",
    hint="q · k is a sum of D products: in which dtype is it taken, and kept?",
)
def _wide_scores(p: SimpleNamespace) -> None:
    """Scores are as good as in float32 too: beyond 65504, the most that float16 holds,
    and where half precision makes two neighbours one number.
    """
    long = torch.full((1, 1, 128), 30.0, dtype=torch.float16)
    v = torch.tensor([0.0, 2.0], dtype=torch.float16)[:, None, None].repeat(1, 1, 128)
    given = "float16, D = 128, all of q and k 30, so q·k = 115,200; v = 0 and 2"
    got = p.attention(long, long.repeat(2, 1, 1), v, _at(1))
    expect_close(given, got, torch.ones(1, 1, 128), within=0.02)
    for dtype, large in ((torch.float16, 64.0), (torch.bfloat16, 32.0)):
        q = torch.tensor([[[large, 1, 0, 0]]], dtype=dtype)
        k = torch.tensor([[[large, 0, 0, 0]], [[large, 2, 0, 0]]], dtype=dtype)
        v = torch.tensor([0.0, 4.0], dtype=dtype)[:, None, None].repeat(1, 1, 4)
        score = int(large**2 / 2)
        name = str(dtype).removeprefix("torch.")
        given = f"{name}, scores {score} and {score + 1}, v = 0 and 4"
        wanted = torch.full((1, 1, 4), 4 / (1 + math.exp(-1)))
        expect_close(given, p.attention(q, k, v, _at(1)), wanted, within=0.02)


@_SUITE.property("attention", hint="the rows before this one say what is still missing")
def _like_torch(p: SimpleNamespace) -> None:
    """On random numbers it is F.scaled_dot_product_attention with a mask, also when q
    and k are slices of one tensor.
    """
    for tokens, length, heads, kv_heads, D in (
        (1, 1, 1, 1, 2),
        (2, 2, 2, 1, 4),
        (5, 5, 4, 4, 8),
        (3, 7, 4, 2, 4),
        (1, 9, 6, 2, 16),
        (9, 9, 6, 1, 6),
    ):
        q = 2 * _numbers(tokens, heads, D, seed=tokens)
        k, v = 2 * _numbers(length, kv_heads, D, seed=7), _numbers(length, kv_heads, D)
        at = torch.arange(length - tokens, length)
        given = f"T={tokens} S={length} Hq={heads} Hkv={kv_heads} D={D}, random"
        expect_close(given, p.attention(q, k, v, at), _by_torch(q, k, v, at))
    q, k, v = _numbers(5, 8, 4).tensor_split([4, 6], 1)
    given = "q, k and v are slices of one [5, 4 + 2 + 2, 4]"
    at = torch.arange(5)
    expect_close(given, p.attention(q, k, v, at), _by_torch(q, k, v, at))


@_SUITE.property("PlainContext", hint="the model reads ctx.positions for its rotation")
def _positions(p: SimpleNamespace) -> None:
    """A PlainContext has the positions that it was given."""
    for tokens in (1, 3):
        got = p.PlainContext(torch.arange(tokens)).positions
        expect(f"positions of {tokens} tokens", got, list(range(tokens)))


@_SUITE.property(
    "PlainContext", hint="the tokens are there: who turns them into an answer?"
)
def _attend(p: SimpleNamespace) -> None:
    """PlainContext.attend is causal grouped-query attention over the tokens themselves,
    for any layer.
    """
    for tokens in (1, 2, 5):
        q = 2 * _numbers(tokens, 4, 4, seed=tokens)
        k, v = 2 * _numbers(tokens, 2, 4, seed=8), _numbers(tokens, 2, 4, seed=9)
        at = torch.arange(tokens)
        for layer in (0, 3):
            got = p.PlainContext(at).attend(layer, q, k, v)
            given = f"{tokens} tokens, 4 query heads, 2 key/value heads, layer {layer}"
            expect_close(given, got, _by_torch(q, k, v, at))


@_SUITE.property("PlainContext", hint="without a cache, what is there to remember?")
def _nothing_stored(p: SimpleNamespace) -> None:
    """Nothing is stored: every call sees only its own keys and values."""
    at = torch.arange(2)
    context = p.PlainContext(at)
    for call, layer in enumerate((0, 1, 0)):
        q, k, v = (_numbers(2, 2, 4, seed=3 * call + i) for i in range(3))
        got = context.attend(layer, q, k, v)
        given = f"call {call + 1} of one context, layer {layer}"
        expect_close(given, got, _by_torch(q, k, v, at))
    expect("positions after three calls", context.positions, [0, 1])
