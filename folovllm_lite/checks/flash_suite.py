"""What has to be true of attention in parts (notebook 12)."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from folovllm_lite import flash as package
from folovllm_lite.attention import attention
from folovllm_lite.checks.attention_suite import expect_close
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail

_SUITE = flash = Suite(
    package,
    """Judge attend_tile, merge and flash_attention, or some of them.

    `checks.flash(merge=mine)` judges one function, `checks.flash(module)` all of a
    module. A part is a Partial(best, total, out). The kernels are judged by
    `checks.contexts`.
    """,
    inside=torch.no_grad,
)


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> package.Partial:
    """A Partial over all keys at once, in float64."""
    scores = (q.double() @ k.double().mT).masked_fill(hidden, -math.inf)
    best = scores.amax(-1)
    weights = (scores - best[..., None]).exp().masked_fill(hidden, 0)
    return package.Partial(best, weights.sum(-1), weights @ v.double())


def _expect_part(given: str, got: package.Partial, wanted: package.Partial) -> None:
    for name, *both in zip(package.Partial._fields, got, wanted, strict=True):
        # inf - inf is NaN, which is no small difference: compare where there is -inf
        none = [x == -math.inf for x in both if isinstance(x, Tensor)]
        if len(none) == 2 and none[0].shape == none[1].shape:
            expect(f"{given}: {name} is -inf", *(x.tolist() for x in none))
            both = [x.masked_fill(x == -math.inf, 0) for x in both]
        expect_close(f"{given}: {name}", *both)


@_SUITE.property("attend_tile", hint="write the four numbers down: which is largest?")
def _by_hand(p: SimpleNamespace) -> None:
    """Of one tile: the largest score, the sum of exp(score - largest), and the values
    weighted with those.
    """
    q, k = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(2)], [math.log(4)]])
    v = torch.tensor([[8.0], [4.0], [1.0]])
    for count, total, out in ((1, 1.0, 8.0), (2, 1.5, 8.0), (3, 1.75, 5.0)):
        got = p.attend_tile(q, k[:count], v[:count], torch.zeros(1, count).bool())
        best = k[count - 1]
        wanted = package.Partial(best, torch.tensor([total]), torch.tensor([[out]]))
        given = f"scores 0, log 2, log 4 and v = 8, 4, 1: the first {count}"
        _expect_part(given, got, wanted)


@_SUITE.property("attend_tile", hint="a hidden key is no candidate, and weighs nothing")
def _hidden(p: SimpleNamespace) -> None:
    """Hidden keys count for nothing; where all are hidden, best is -inf, and total and
    out are 0.
    """
    for T, n in ((1, 2), (2, 3), (3, 3)):
        for first in (1, 0, -1, -2):
            q, k, v = _numbers(T, 4), 3 * _numbers(n, 4, seed=1), _numbers(n, 4, seed=2)
            hidden = torch.arange(n) >= first + torch.arange(T)[:, None]
            seen = [max(0, min(n, first + t)) for t in range(T)]
            got = p.attend_tile(q, k, v, hidden)
            given = f"{T} queries that see the first {seen} of {n} keys"
            _expect_part(given, got, _whole(q, k, v, hidden))


@_SUITE.property("attend_tile", hint="[..., T, D]: which axes are the last two?")
def _heads(p: SimpleNamespace) -> None:
    """Axes in front, of heads for example, are each attended for alone."""
    hidden = torch.arange(3) > torch.arange(1, 3)[:, None]
    for heads, kv_heads in (((2,), (2,)), ((2, 3), (2, 1))):
        q, k = _numbers(*heads, 2, 4), 3 * _numbers(*kv_heads, 3, 4, seed=1)
        v = _numbers(*kv_heads, 3, 4, seed=2)
        got = p.attend_tile(q, k, v, hidden)
        given = f"q {list(q.shape)}, k and v {list(k.shape)}"
        _expect_part(given, got, _whole(q, k, v, hidden))


@_SUITE.property("attend_tile", hint="exp(800) isn't finite; exp(800 - 800) is 1")
def _large(p: SimpleNamespace) -> None:
    """Scores of any size: nothing overflows."""
    for size in (90.0, 800.0):
        q, k = torch.full((1, 1), size), torch.tensor([[1.0], [-1.0], [1.0]])
        hidden = torch.zeros(1, 3).bool()
        got = p.attend_tile(q, k, k, hidden)
        given = f"scores {size:.0f}, -{size:.0f}, {size:.0f}"
        _expect_part(given, got, _whole(q, k, k, hidden))


def _parts(count: int, seed: int, size: float = 4.0) -> tuple:
    """`count` parts, of 3 queries over 2 keys each, and all of them at once."""
    q, k = size * _numbers(3, 4, seed=seed), _numbers(2 * count, 4, seed=seed + 1)
    v, seen = _numbers(2 * count, 4, seed=seed + 2), torch.zeros(3, 2 * count).bool()
    parts = [
        _whole(q, k[i : i + 2], v[i : i + 2], seen[:, :2])
        for i in range(0, 2 * count, 2)
    ]
    return parts, _whole(q, k, v, seen)


@_SUITE.property(
    "merge", hint="both sums were taken with another best: bring them to the same one"
)
def _merged(p: SimpleNamespace) -> None:
    """Two parts, merged, are the part over the keys of both."""
    for seed in range(4):
        (a, b), both = _parts(2, seed)
        _expect_part(f"random parts {seed}", p.merge(a, b), both)
    one = [package.Partial(*(x[0] for x in part)) for part in (a, b, both)]
    _expect_part("parts of a lone query, total []", p.merge(*one[:2]), one[2])
    (c, d), others = _parts(2, 4)
    given = ((a, c), (b, d), (both, others))
    for _ in range(2):  # an axis of heads, then one of groups
        a, b, both = (
            package.Partial(*map(torch.stack, zip(*each, strict=True)))
            for each in given
        )
        heads = f"parts of several heads, total {list(a.total.shape)}"
        _expect_part(heads, p.merge(a, b), both)
        given = ((a, b), (b, a), (both, both))


@_SUITE.property(
    "merge", hint="is something in it that treats the first part otherwise?"
)
def _any_order(p: SimpleNamespace) -> None:
    """It doesn't matter which part is first, nor which two are merged first."""
    for seed in range(4):
        (a, b, c), everything = _parts(3, seed)
        _expect_part(f"parts {seed}: (a b) c", p.merge(p.merge(a, b), c), everything)
        _expect_part(f"parts {seed}: a (b c)", p.merge(a, p.merge(b, c)), everything)
        _expect_part(f"parts {seed}: c (b a)", p.merge(c, p.merge(b, a)), everything)


@_SUITE.property("merge", hint="-inf - -inf is NaN: what should the factor be there?")
def _empty(p: SimpleNamespace) -> None:
    """A part that has seen nothing changes nothing, on either side, nor do two."""
    (part, _), _ = _parts(2, 0)
    nothing = package.Partial(
        torch.full_like(part.best, -math.inf),
        torch.zeros_like(part.total),
        torch.zeros_like(part.out),
    )
    _expect_part("a part and nothing", p.merge(part, nothing), part)
    _expect_part("nothing and a part", p.merge(nothing, part), part)
    _expect_part("nothing and nothing", p.merge(nothing, nothing), nothing)
    first = torch.tensor([True, False, False])
    mixed = package.Partial(
        torch.where(first, part.best, nothing.best),
        torch.where(first, part.total, nothing.total),
        torch.where(first[:, None], part.out, nothing.out),
    )
    twice = package.Partial(mixed.best, 2 * mixed.total, 2 * mixed.out)
    given = "a part of three rows, of which two have seen nothing, and the same again"
    _expect_part(given, p.merge(mixed, mixed), twice)


@_SUITE.property("merge", hint="which power of e is always at most 1?")
def _far_apart(p: SimpleNamespace) -> None:
    """Parts whose scores are far apart: the higher one wins, nothing overflows."""
    (a, b), _ = _parts(2, 0)
    far = b._replace(best=b.best + 2000)
    _expect_part("b's scores 2000 higher", p.merge(a, far), far)
    _expect_part("a's scores 2000 higher", p.merge(far, a), far)
    low = a._replace(best=a.best - 2000)
    _expect_part("b's scores 2000 lower", p.merge(far, low), far)
    both = p.merge(a, b)
    a, b, both = (x._replace(best=x.best - 2000) for x in (a, b, both))
    _expect_part("all scores 2000 lower", p.merge(a, b), both)


@_SUITE.property("flash_attention", hint="which keys does the last, shorter tile hold?")
def _any_tile(p: SimpleNamespace) -> None:
    """It is attention, whatever the tile: one key, an uneven rest, more than all."""
    for T, S, heads, kv_heads, D in (
        (1, 1, 1, 1, 8),
        (1, 5, 2, 1, 16),
        (4, 4, 4, 2, 8),
        (3, 9, 6, 3, 4),
    ):
        q, k = 3 * _numbers(T, heads, D, seed=T), _numbers(S, kv_heads, D, seed=1)
        v, at = _numbers(S, kv_heads, D, seed=2), torch.arange(S - T, S)
        wanted = attention(q, k, v, at)
        given = f"T={T} S={S} Hq={heads} Hkv={kv_heads} D={D}"
        for tile in (1, 2, 4, S, S + 3):
            got = p.flash_attention(q, k, v, at, tile=tile)
            expect_close(f"{given}, tiles of {tile}", got, wanted)
        expect_close(f"{given}, no tile given", p.flash_attention(q, k, v, at), wanted)


@_SUITE.property("flash_attention", hint="a tile may hold no key that a query sees")
def _hidden_tiles(p: SimpleNamespace) -> None:
    """Queries may stand anywhere: a tile that one of them doesn't see is harmless."""
    q, k, v = _numbers(3, 2, 8), _numbers(12, 1, 8, seed=1), _numbers(12, 1, 8, seed=2)
    for places in ([0, 1, 2], [0, 5, 11], [7, 3, 0]):
        at = torch.tensor(places)
        got = p.flash_attention(q, k, v, at, tile=4)
        given = f"queries at {places} of 12 keys, tiles of 4"
        expect_close(given, got, attention(q, k, v, at))


class _Largest(TorchDispatchMode):
    """Watches what is computed: the largest tensor of numbers that isn't bool."""

    shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.shape = max(self.shape, tuple(out.shape), key=math.prod)
        return out


@_SUITE.property(
    "flash_attention", hint="which of your tensors has an axis for all S keys at once?"
)
def _few_scores(p: SimpleNamespace) -> None:
    """Scores are there for the keys of one tile, never for all at once."""
    T, S, heads, kv_heads, D, tile = 32, 64, 8, 2, 2, 4
    q, k, v = (_numbers(n, h, D) for n, h in ((T, heads), (S, kv_heads), (S, kv_heads)))
    with _Largest() as largest:
        p.flash_attention(q, k, v, torch.arange(S - T, S), tile=tile)
    # A tile's scores, or its products before they are summed; all keys, for each head.
    most = max(T * heads * tile, S * heads) * D
    if math.prod(largest.shape) > most:
        given = f"T={T} S={S} Hq={heads} Hkv={kv_heads} D={D} tile={tile}"
        shape = list(largest.shape)
        fail(f"{given}: the largest tensor", shape, f"at most {most} numbers")


@_SUITE.property("flash_attention", hint="in which dtype are sums as good as they get?")
def _dtypes(p: SimpleNamespace) -> None:
    """Sums are taken in float32, and the result has q's dtype."""
    for dtype in (torch.bfloat16, torch.float16):
        q, k = torch.zeros(1, 1, 2, dtype=dtype), torch.zeros(600, 1, 2, dtype=dtype)
        v = k.clone()
        v[300:] = 1
        got = p.flash_attention(q, k, v, torch.tensor([599]), tile=64)
        name = str(dtype).removeprefix("torch.")
        given = f"{name}, 600 equal scores, v = 0 for the first half, then 1"
        expect_close(given, got, torch.full((1, 1, 2), 0.5, dtype=dtype), within=0.02)
        expect(f"{given}: dtype", got.dtype, dtype)
        got = p.flash_attention(q, k.float(), v.float(), torch.tensor([599]), tile=64)
        expect(f"q in {name}, k and v in float32: dtype", got.dtype, dtype)
    # In bfloat16 a total of 4096 stays what it is when 16 are added.
    q = torch.zeros(1, 1, 2, dtype=torch.bfloat16)
    k = torch.zeros(12_000, 1, 2, dtype=torch.bfloat16)
    v = k.clone()
    v[6_000:] = 1
    got = p.flash_attention(q, k, v, torch.tensor([11_999]), tile=16)
    given = "bfloat16, 12000 equal scores in tiles of 16, v = 0 for the first half"
    expect_close(given, got, torch.full((1, 1, 2), 0.5).bfloat16(), within=0.02)


@_SUITE.property("flash_attention", hint="what would range do with a step of 0?")
def _refused(p: SimpleNamespace) -> None:
    """A tile of less than one key is refused, with its value."""
    q = _numbers(1, 1, 2)
    for tile in (0, -4):
        call = lambda: p.flash_attention(q, q, q, torch.tensor([0]), tile=tile)  # noqa: B023, E731
        expect_error(f"tile={tile}", call, ValueError, str(tile))
