"""The exercises of 12: right answers pass, and each plausible mistake is seen."""

import math

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite.flash import attend_tile, merge


def trace_parts():
    return [(3, 1.25), (3, 1.75), (5, 1.9375), (5, 2.9375)]


def window_attention(
    q, k, v, q_positions, window, tile=4, *, ahead=0, behind=0, skip=True, sort=True
):
    T, Hq, D = q.shape
    S, Hkv, _ = k.shape
    heads = q.float().reshape(T, Hkv, -1, D).permute(1, 2, 0, 3) / math.sqrt(D)
    k, v = (x.transpose(0, 1).unsqueeze(1) for x in (k, v))
    places = sorted(q_positions.tolist()) if sort else q_positions.tolist()
    first, last = places[0] - window + 1, places[-1]
    done = None
    for start in range(0, S, tile):
        if skip and (start + tile <= first or start > last):
            continue
        keys = torch.arange(start, min(start + tile, S))
        hidden = keys > q_positions[:, None] + ahead
        hidden |= keys <= q_positions[:, None] - window + behind
        part = attend_tile(heads, k[:, :, keys], v[:, :, keys], hidden)
        done = part if done is None else merge(done, part)
    out = done.out / done.total[..., None]
    return out.permute(2, 0, 1, 3).reshape(T, Hq, D)


def plan(lengths, programs, tile):
    tiles = sum(-(-length // tile) for length in lengths)
    most = -(-tiles // programs)
    lists, room = [[] for _ in range(programs)], most
    at = 0
    for row, length in enumerate(lengths):
        start = 0
        while start < length:
            if not room:
                at, room = at + 1, most
            stop = min(length, start + room * tile)
            lists[at].append((row, start, stop))
            room -= -(-(stop - start) // tile)
            start = stop
    return lists


def test_right_answers_pass(capsys):
    checks.flash_exercises(
        trace_parts=trace_parts, window_attention=window_attention, plan=plan
    )
    assert "✗" not in capsys.readouterr().out


def one_row_one_program(lengths, programs, tile):
    lists = [[] for _ in range(programs)]
    for row, length in enumerate(lengths):
        lists[row % programs].append((row, 0, length))
    return lists


def every_row_to_all(lengths, programs, tile):
    lists = [[] for _ in range(programs)]
    for row, length in enumerate(lengths):
        share = -(-length // programs // tile) * tile or tile
        for i, start in enumerate(range(0, length, share)):
            lists[i % programs].append((row, start, min(length, start + share)))
    return lists


def cut_anywhere(lengths, programs, tile):
    most = -(-sum(lengths) // programs)
    return plan(lengths, programs, 1) if most else []


def tile_by_tile(lengths, programs, tile):
    lists, i = [[] for _ in range(programs)], 0
    for row, length in enumerate(lengths):
        for start in range(0, length, tile):
            lists[i % programs].append((row, start, min(length, start + tile)))
            i += 1
    return lists


def the_rest_is_lost(lengths, programs, tile):
    return plan([length // tile * tile or length for length in lengths], programs, tile)


def lists_are_missing(lengths, programs, tile):
    return [many for many in plan(lengths, programs, tile) if many]


def a_tile_is_4(lengths, programs, tile):
    return plan(lengths, programs, 4)


def a_row_too_many(lengths, programs, tile):
    return [[*many, (len(lengths), 0, 1)] for many in plan(lengths, programs, tile)]


def in_floats(lengths, programs, tile):
    lists = plan(lengths, programs, tile)
    return [[(r, float(a), float(b)) for r, a, b in many] for many in lists]


def one_share_as_two(lengths, programs, tile):
    """Where there are few, one is cut, and its halves stand in the wrong order."""
    lists = plan(lengths, programs, tile)
    if sum(map(len, lists)) == len(lengths) + programs - 1:
        return lists
    for many in lists:
        for i, (r, a, b) in enumerate(many):
            if b - a > tile:
                many[i : i + 1] = [(r, a + tile, b), (r, a, a + tile)]
                return lists
    return lists


MUTANTS = [
    ("trace_parts", lambda: [(3, 1.25), (3, 1.75), (5, 2.0), (5, 3.0)]),
    ("trace_parts", lambda: [(3, 1.25), (3, 1.75), (5, 3.25), (5, 4.25)]),
    ("trace_parts", lambda: [(3, 1.25), (2, 1.0), (5, 1.5), (5, 1.0)]),
    ("trace_parts", lambda: [(3, 10.0), (3, 14.0), (5, 62.0), (5, 94.0)]),
    ("trace_parts", lambda: [(3, 1.25), (3, 1.75), (5, 1.9375)]),
    ("window_attention", lambda *a, **k: window_attention(*a, **k, ahead=1)),
    ("window_attention", lambda *a, **k: window_attention(*a, **k, behind=-1)),
    ("window_attention", lambda *a, **k: window_attention(*a, **k, behind=1)),
    ("window_attention", lambda *a, **k: window_attention(*a, **k, skip=False)),
    ("window_attention", lambda *a, **k: window_attention(*a, **k, sort=False)),
    ("window_attention", lambda q, k, v, at, window, tile=4: window_attention(
        q, k, v, at, len(k), tile)),
    ("window_attention", lambda q, k, v, at, window, tile=4: window_attention(
        q, k, v, at, -(-window // tile) * tile, tile)),
    ("window_attention", lambda q, k, v, at, window, tile=4: window_attention(
        q, k, v, at, window, max(4, tile))),
    ("window_attention", lambda q, k, v, at, window, tile: window_attention(
        q, k, v, at, window, tile)),
    ("window_attention", lambda q, k, v, at, window, tile=16: window_attention(
        q, k, v, at, window, tile)),
    ("window_attention", lambda q, k, v, at, window, tile=4: window_attention(
        q, k, v, at.min() + torch.arange(len(at)), window, tile)),
    ("plan", in_floats),
    ("plan", one_share_as_two),
    ("plan", one_row_one_program),
    ("plan", every_row_to_all),
    ("plan", cut_anywhere),
    ("plan", tile_by_tile),
    ("plan", the_rest_is_lost),
    ("plan", lists_are_missing),
    ("plan", a_tile_is_4),
    ("plan", a_row_too_many),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_the_suite_rejects(number, capsys):
    name, mutant = MUTANTS[number]
    with pytest.raises(checks.CheckFailed):
        checks.flash_exercises(**{name: mutant})
    assert "hint:" in capsys.readouterr().out
