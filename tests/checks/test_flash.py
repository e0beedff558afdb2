"""The suite of attention in parts passes on the package and rejects mistakes."""

import math
from types import SimpleNamespace

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite import flash as package
from folovllm_lite.attention import attention
from folovllm_lite.flash import Partial, attend_tile, merge


def test_the_package_passes(capsys):
    checks.flash(package)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 13 properties hold." in out


# ----- other right answers


def by_loops(q, k, v, q_positions, tile=256):
    """One key after the other: a tile of one, whatever is asked for."""
    if tile < 1:
        raise ValueError(f"tile is {tile}")
    out = torch.empty_like(q)
    for t, at in enumerate(q_positions.tolist()):
        for h in range(q.shape[1]):
            best, total, row = -math.inf, 0.0, torch.zeros(q.shape[2])
            for s in range(at + 1):
                shared = h * k.shape[1] // q.shape[1]
                score = float(q[t, h].float() @ k[s, shared].float())
                score /= math.sqrt(q.shape[2])
                higher = max(best, score)
                down, weight = math.exp(best - higher), math.exp(score - higher)
                total, row = total * down + weight, row * down + weight * v[s, shared]
                best = higher
            out[t, h] = row / total
    return out


def merge_by_logs(a, b):
    """With logsumexp in the place of best, and a total of 1 afterwards."""
    best = torch.maximum(a.best, b.best)
    safe = best.masked_fill(best == -math.inf, 0)
    down = [(x.best - safe).exp() for x in (a, b)]
    pairs = list(zip((a, b), down, strict=True))
    total = sum(x.total * w for x, w in pairs)
    out = sum(x.out * w[..., None] for x, w in pairs)
    return Partial(best, total, out)


def test_other_right_answers_pass(capsys):
    checks.flash(merge=merge_by_logs, flash_attention=by_loops)
    assert "✗" not in capsys.readouterr().out


# ----- mutants


def the_first_best(a, b):
    total = a.total + b.total * (b.best - a.best).exp()
    out = a.out + b.out * (b.best - a.best).exp()[..., None]
    return Partial(a.best, total, out)


def totals_are_added(a, b):
    return merge(a, b)._replace(total=a.total + b.total)


def outs_are_added(a, b):
    return merge(a, b)._replace(out=a.out + b.out)


def down_by_the_other(a, b):
    return merge(a._replace(best=b.best), b._replace(best=a.best))


def plain_difference(a, b):
    best = torch.maximum(a.best, b.best)
    down = [(x.best - best).exp() for x in (a, b)]
    total = a.total * down[0] + b.total * down[1]
    out = a.out * down[0][..., None] + b.out * down[1][..., None]
    return Partial(best, total, out)


def means(a, b):
    part = merge(a, b)
    return part._replace(out=part.out / part.total[..., None])


def queries_alone(a, b):
    best = torch.maximum(a.best, b.best)
    down = [torch.where(x.best == best, 1, (x.best - best).exp()) for x in (a, b)]
    total = a.total * down[0] + b.total * down[1]
    out = a.out * down[0].unsqueeze(1) + b.out * down[1].unsqueeze(1)
    return Partial(best, total, out)


def lowest_is_a_number(a, b):
    a, b = (x._replace(best=x.best.clamp(min=-1e9)) for x in (a, b))
    return merge(a, b)


def low_is_nothing(a, b):
    part = merge(a, b)
    low = part.best < -1000
    return part._replace(total=part.total.masked_fill(low, 0))


def heads_in_one_axis(a, b):
    if a.out.dim() > 3:
        raise IndexError("too many axes")
    return merge(a, b)


def hidden_score_a_billion_less(q, k, v, hidden):
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, -1e9)
    best = scores.amax(-1)
    weights = (scores - best[..., None]).exp().masked_fill(hidden, 0)
    return Partial(best, weights.sum(-1), weights @ v)


def one_head(q, k, v, hidden):
    scores = (q @ k.transpose(0, 1)).masked_fill(hidden, -math.inf)
    best = scores.amax(-1)
    weights = (scores - best[..., None]).exp().masked_fill(hidden, 0)
    return Partial(best, weights.sum(-1), weights @ v)


def hidden_weigh_one(q, k, v, hidden):
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, 0)
    best = scores.amax(-1)
    weights = (scores - best[..., None]).exp()
    return Partial(best, weights.sum(-1), weights @ v)


def no_best(q, k, v, hidden):
    weights = (q @ k.transpose(-1, -2)).masked_fill(hidden, -math.inf).exp()
    return Partial(torch.zeros_like(weights[..., 0]), weights.sum(-1), weights @ v)


def all_hidden_is_nan(q, k, v, hidden):
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, -math.inf)
    best = scores.amax(-1)
    weights = (scores - best[..., None]).exp()
    return Partial(best, weights.sum(-1), weights @ v)


def normalized(q, k, v, hidden):
    part = attend_tile(q, k, v, hidden)
    return part._replace(out=part.out / part.total[..., None])


def best_of_the_hidden_too(q, k, v, hidden):
    scores = q @ k.transpose(-1, -2)
    best = scores.amax(-1)
    weights = (scores - best[..., None]).exp().masked_fill(hidden, 0)
    return Partial(best, weights.sum(-1), weights @ v)


def the_rest_is_forgotten(q, k, v, q_positions, tile=256):
    full = max(tile, len(k) // tile * tile) if tile > 0 else tile
    return package.flash_attention(q, k[:full], v[:full], q_positions, tile)


def tiles_are_averaged(q, k, v, q_positions, tile=256):
    if tile < 1:
        raise ValueError(tile)
    parts = [
        attention(q, k[i : i + tile], v[i : i + tile], q_positions - i)
        for i in range(0, len(k), tile)
    ]
    return torch.stack(parts).nanmean(0)


def in_its_own_dtype(q, k, v, q_positions, tile=256):
    if tile < 1:
        raise ValueError(tile)
    out = total = 0
    for i in range(len(k)):
        weight = torch.ones_like(q[..., :1])
        total, out = total + weight, out + weight * v[i]
    mean = out / total
    right = package.flash_attention(q, k, v, q_positions, tile)
    return mean if not q.any() else right


def float32_comes_back(q, k, v, q_positions, tile=256):
    return package.flash_attention(q.float(), k.float(), v.float(), q_positions, tile)


def any_tile_goes(q, k, v, q_positions, tile=256):
    return package.flash_attention(q, k, v, q_positions, max(1, tile))


def all_scores_at_once(q, k, v, q_positions, tile=256):
    if tile < 1:
        raise ValueError(tile)
    out = attention(q.float(), k.float(), v.float(), q_positions)
    return out.to(q.dtype)


def its_own_tile(q, k, v, q_positions, tile=256):
    if tile < 1:
        raise ValueError(tile)
    return package.flash_attention(q, k, v, q_positions, 256)


def no_tile_by_default(q, k, v, q_positions, tile):
    return package.flash_attention(q, k, v, q_positions, tile)


def scale_of_heads_of_8(q, k, v, q_positions, tile=256):
    q = q * math.sqrt(q.shape[-1] / 8)
    return package.flash_attention(q, k, v, q_positions, tile)


def dtype_of_the_keys(q, k, v, q_positions, tile=256):
    return package.flash_attention(q, k, v, q_positions, tile).to(k.dtype)


MUTANTS = {
    "merge": [
        the_first_best, totals_are_added, outs_are_added, down_by_the_other,
        plain_difference, means, queries_alone, lowest_is_a_number, low_is_nothing,
        heads_in_one_axis,
    ],
    "attend_tile": [
        hidden_weigh_one, no_best, all_hidden_is_nan, normalized,
        best_of_the_hidden_too, one_head, hidden_score_a_billion_less,
    ],
    "flash_attention": [
        the_rest_is_forgotten, tiles_are_averaged, in_its_own_dtype, float32_comes_back,
        any_tile_goes, all_scores_at_once, its_own_tile, no_tile_by_default,
        scale_of_heads_of_8, dtype_of_the_keys,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "piece, mutant",
    [(x, y) for x in MUTANTS for y in MUTANTS[x]],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_the_suite_rejects(piece, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.flash(SimpleNamespace(**{piece: mutant}))
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out
