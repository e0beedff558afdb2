"""What has to be true of the exercises of notebook 12."""

import math
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor

from folovllm_lite import flash as package
from folovllm_lite.checks.attention_suite import expect_close
from folovllm_lite.checks.harness import Suite, expect, fail

_SUITE = flash_exercises = Suite(
    package,
    """Judge trace_parts, window_attention and plan, or some of them.

    `checks.flash_exercises(plan=mine)` judges one of them.
    """,
    inside=torch.no_grad,
)

_TILES = ([1, 3], [2], [5, 4], [5])
_BESTS = [3, 3, 5, 5]
_TOTALS = [1.25, 1.75, 1.9375, 2.9375]


@_SUITE.property("trace_parts", hint="one pair after each of the four tiles")
def _bests(p: SimpleNamespace) -> None:
    """After each tile, best is the largest score so far."""
    got = p.trace_parts()
    if len(got) != len(_TILES):
        fail("the pairs", len(got), f"{len(_TILES)}, one for each tile")
    for i, best in enumerate(_BESTS):
        expect(f"best after tile {i}, {_TILES[i]}", got[i][0], best)


@_SUITE.property("trace_parts", hint="2 to the power of (score - best), for each score")
def _first_totals(p: SimpleNamespace) -> None:
    """The total of the first tile, and of the second, whose score isn't larger."""
    for i in (0, 1):
        expect(f"total after tile {i}", p.trace_parts()[i][1], _TOTALS[i])


@_SUITE.property("trace_parts", hint="what was summed before counted from another best")
def _later_totals(p: SimpleNamespace) -> None:
    """Where best grows, what was summed so far is brought down to the new one."""
    for i in (2, 3):
        expect(f"total after tile {i}", p.trace_parts()[i][1], _TOTALS[i])


def _numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _windowed(q: Tensor, k: Tensor, v: Tensor, at: Tensor, window: int) -> Tensor:
    """Attention to the last `window` keys, written out in float64."""
    keys = torch.arange(len(k))
    seen = (keys <= at[:, None]) & (keys > at[:, None] - window)
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@_SUITE.property("window_attention", hint="a window that holds all: what is different?")
def _wide_window(p: SimpleNamespace) -> None:
    """With a window of the whole text it is plain causal attention."""
    for T, S in ((1, 6), (6, 6), (3, 9)):
        q, k = _numbers(T, 2, 8, seed=1), _numbers(S, 1, 8, seed=2)
        v, at = _numbers(S, 1, 8, seed=3), torch.arange(S - T, S)
        for tile in (2, 4, 16):
            got = p.window_attention(q, k, v, at, window=S, tile=tile)
            given = f"T={T} S={S} window={S} tile={tile}"
            expect_close(given, got, _windowed(q, k, v, at, S))


@_SUITE.property("window_attention", hint="the query at p sees p - window + 1 up to p")
def _window(p: SimpleNamespace) -> None:
    """A query sees itself and the window - 1 keys before it, and no others."""
    places = ([5], list(range(6)), [8, 9, 10], [3, 11, 6], [12, 12, 0])
    for at, S in zip(map(torch.tensor, places), (6, 6, 11, 12, 15), strict=True):
        q, k = _numbers(len(at), 4, 8, seed=1), _numbers(S, 2, 8, seed=2)
        v = _numbers(S, 2, 8, seed=3)
        for window in (1, 2, 5, 9):
            wanted = _windowed(q, k, v, at, window)
            for tile in (1, 2, 4):
                got = p.window_attention(q, k, v, at, window=window, tile=tile)
                given = f"queries at {at.tolist()}, S={S} window={window} tile={tile}"
                expect_close(given, got, wanted)


@_SUITE.property(
    "window_attention",
    hint="which is the first key that any of the queries sees, and which the last? A "
    "tile that ends before the one, or begins behind the other, is skipped",
)
def _skipped_tiles(p: SimpleNamespace) -> None:
    """Tiles before all keys that any query sees, and tiles behind them, aren't touched:
    they may hold NaN.
    """
    for places, window, tile in (
        ([11], 3, 4), ([14, 15], 4, 4), ([5], 2, 4), ([14, 9], 4, 4),
        ([9], 3, 2), ([12, 7], 2, 3), ([10], 1, 1), ([9], 2, 8), ([14, 9], 4, None),
    ):  # fmt: skip
        q, k = _numbers(len(places), 2, 8, seed=1), _numbers(16, 1, 8, seed=2)
        v, at = _numbers(16, 1, 8, seed=3), torch.tensor(places)
        wanted = _windowed(q, k, v, at, window)
        given = f"queries at {places}, window={window} tile={tile or 'as it is'}"
        given += ", NaN in other tiles"
        sizes, tile = {"tile": tile} if tile else {}, tile or 4
        first = max(0, min(places) - window + 1) // tile * tile
        last = (max(places) // tile + 1) * tile
        for x in (k, v):
            x[:first] = x[last:] = math.nan
        got = p.window_attention(q, k, v, at, window=window, **sizes)
        expect_close(given, got, wanted)


_PLANS = (
    ([8], 1, 4), ([8], 2, 4), ([40], 4, 4), ([8, 8], 2, 4), ([12, 12, 12], 2, 4),
    ([4, 60], 4, 4), ([5], 3, 4), ([9, 3, 17, 1], 4, 4), ([1] * 7, 3, 4),
    ([100, 3, 3], 8, 4), ([2, 2], 6, 4), ([3, 1], 2, 1), ([1000, 20], 3, 256),
)  # fmt: skip


def _cases(p: SimpleNamespace):
    """(what was given, lengths, programs, tile, what came out)."""
    for lengths, programs, tile in _PLANS:
        given = f"plan({lengths}, programs={programs}, tile={tile})"
        yield given, lengths, programs, tile, p.plan(list(lengths), programs, tile)


@_SUITE.property("plan", hint="one list for each program, of (row, start, stop)")
def _every_token_once(p: SimpleNamespace) -> None:
    """Every token of every row is in exactly one share, and there is a list for each
    program.
    """
    for given, lengths, programs, _, got in _cases(p):
        expect(f"{given}: lists", len(got), programs)
        numbers = [x for many in got for share in many for x in share]
        odd = [x for x in numbers if not hasattr(x, "__index__")]
        expect(f"{given}: numbers that aren't whole", odd, [])
        rows = {r for many in got for r, _, _ in many}
        expect(f"{given}: rows", sorted(rows), list(range(len(lengths))))
        for row, length in enumerate(lengths):
            mine = sorted((a, b) for many in got for r, a, b in many if r == row)
            edges = [0, *(b for _, b in mine)]
            joined = all(
                a == before for (a, _), before in zip(mine, edges, strict=False)
            )
            if not joined or edges[-1] != length or any(a >= b for a, b in mine):
                fail(f"{given}: row {row}", mine, f"shares from 0 to {length}")


@_SUITE.property("plan", hint="a kernel reads whole tiles: cut where one ends")
def _whole_tiles(p: SimpleNamespace) -> None:
    """Shares begin at multiples of the tile."""
    for given, _, _, tile, got in _cases(p):
        for share in (share for many in got for share in many):
            expect(f"{given}: {share}, start % {tile}", share[1] % tile, 0)


@_SUITE.property(
    "plan", hint="how many tiles are there in all, and how many for each program?"
)
def _balanced(p: SimpleNamespace) -> None:
    """No program has more tiles than the mean, rounded up."""
    for given, lengths, programs, tile, got in _cases(p):
        tiles = sum(-(-length // tile) for length in lengths)
        loads = [sum(-(-(b - a) // tile) for _, a, b in many) for many in got]
        if max(loads) > -(-tiles // programs):
            fail(f"{given}: tiles", loads, f"at most {-(-tiles // programs)} each")


@_SUITE.property("plan", hint="cut a row only where a program is full")
def _few_pieces(p: SimpleNamespace) -> None:
    """Rows are cut no more often than there are borders between programs: every cut
    costs a merge.
    """
    for given, lengths, programs, _, got in _cases(p):
        count = sum(map(len, got))
        most = len(lengths) + programs - 1
        if count > most:
            fail(f"{given}: shares", count, f"at most {most}")
        for many in got:
            for (r, _, b), (s, a, _) in pairwise(sorted(many)):
                if r == s and a == b:
                    fail(f"{given}: shares of row {r}", many, "one share for both")
