"""The suite of attention passes on the package and rejects plausible mistakes."""

import math

import pytest
import torch
from torch.nn import functional as F

from folovllm_lite import attention as package
from folovllm_lite import checks


def test_the_package_passes(capsys):
    checks.attention(package)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 13 properties hold." in out


# ----- other right answers: none may be judged wrong


def by_sdpa(q, k, v, q_positions):
    seen = torch.arange(len(k)) <= q_positions[:, None]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return out[0].transpose(0, 1)


def by_loops(q, k, v, q_positions):
    """One query head after the other, over the keys that it sees and no others."""
    T, Hq, D = q.shape
    out = torch.empty_like(q)
    for t, last in enumerate(q_positions.tolist()):
        for head in range(Hq):
            shared = head * k.shape[1] // Hq
            keys, values = k[: last + 1, shared], v[: last + 1, shared]
            scores = keys.float() @ q[t, head].float() / D**0.5
            out[t, head] = scores.softmax(0) @ values.float()
    return out


def online(q, k, v, q_positions):
    """One key after the other, with a running maximum and sum in float32."""
    T, Hq, D = q.shape
    group = Hq // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).float() for x in (k, v))
    best = torch.full((T, Hq), -math.inf)
    total, out = torch.zeros(T, Hq), torch.zeros(T, Hq, D)
    for s in range(len(k)):
        score = (q.float() * k[s]).sum(-1) / math.sqrt(D)
        score = score.masked_fill((s > q_positions)[:, None], -math.inf)
        higher = torch.maximum(best, score)
        old, new = (best - higher).exp(), (score - higher).exp()
        total = total * old + new
        out = out * old[..., None] + new[..., None] * v[s]
        best = higher
    return (out / total[..., None]).to(q.dtype)


class BySDPA(package.PlainContext):
    def attend(self, layer, q, k, v):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        sdpa = F.scaled_dot_product_attention
        return sdpa(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize(
    "right",
    [by_sdpa, by_loops, online, BySDPA],
    ids=lambda x: x.__name__,
)
def test_other_right_answers_pass(right, capsys):
    name = "PlainContext" if isinstance(right, type) else "attention"
    checks.attention(**{name: right})
    assert "✗" not in capsys.readouterr().out


# ----- mutants


def _written_out(
    hide=lambda s, t, positions: s > positions[t],
    scale=lambda D, Hq: math.sqrt(D),
    spread=lambda x, group: x.repeat_interleave(group, 1),
    weigh=lambda scores: scores.softmax(-1),
    hidden_score=-math.inf,
):
    """Attention with one of its parts changed."""

    def attention(q, k, v, q_positions):
        T, Hq, D = q.shape
        group = Hq // k.shape[1]
        k, v = (spread(x, group).transpose(0, 1) for x in (k, v))
        scores = q.transpose(0, 1).float() @ k.transpose(1, 2).float() / scale(D, Hq)
        s, t = torch.arange(k.shape[1]), torch.arange(T)[:, None]
        scores = scores.masked_fill(hide(s, t, q_positions), hidden_score)
        return (weigh(scores).to(v.dtype) @ v).transpose(0, 1)

    return attention


def _exp_of_all(scores):
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def as_transformers(q, k, v, q_positions, scale=None):
    """Scores in q's own dtype, the softmax alone in float32: its eager attention."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
    hidden = torch.arange(k.shape[1]) > q_positions[:, None]
    scores = scores + torch.zeros_like(scores).masked_fill(
        hidden, torch.finfo(q.dtype).min
    )
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(0, 1)


def scaled_before_the_product(q, k, v, q_positions):
    """No infinity any more; but 2049 is still 2048 in float16."""
    return as_transformers(q * q.shape[-1] ** -0.5, k, v, q_positions, scale=1.0)


def masked_after_the_softmax(q, k, v, q_positions):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    weights = (q @ k.transpose(1, 2)).float().div(q.shape[-1] ** 0.5).softmax(-1)
    weights = weights.tril(k.shape[1] - q.shape[1]).to(v.dtype)
    return (weights @ v).transpose(0, 1)


def keys_are_weighted(q, k, v, q_positions):
    return package.attention(q, k, k, q_positions)


def q_is_scaled_in_place(q, k, v, q_positions):
    q *= q.shape[-1] ** -0.5
    return package.attention(q * q.shape[-1] ** 0.5, k, v, q_positions)


def positions_are_counted_on(q, k, v, q_positions):
    out = package.attention(q, k, v, q_positions)
    q_positions += 1
    return out


def float32_comes_back(q, k, v, q_positions):
    return package.attention(q.float(), k.float(), v.float(), q_positions)


def sums_grow_in_half(q, k, v, q_positions):
    T, Hq, D = q.shape
    k, v = (x.repeat_interleave(Hq // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("thd,shd->ths", q.float(), k.float()) / math.sqrt(D)
    hidden = torch.arange(len(k)) > q_positions[:, None, None]
    scores = scores.masked_fill(hidden, -math.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp().to(q.dtype)
    total, out = torch.zeros_like(q[..., :1]), torch.zeros_like(q)
    for s in range(len(k)):
        total = total + weights[..., s : s + 1]
        out = out + weights[..., s : s + 1] * v[s]
    return out / total


def memory_must_be_contiguous(q, k, v, q_positions):
    T, Hq, D = q.shape
    q = q.view(T * Hq, D).view(T, Hq, D)
    return package.attention(q, k, v, q_positions)


def heads_come_first(q, k, v, q_positions):
    return package.attention(q, k, v, q_positions).transpose(0, 1)


class Remembers(package.PlainContext):
    def __init__(self, positions):
        super().__init__(positions)
        self.keys = self.values = None

    def attend(self, layer, q, k, v):
        if self.keys is not None:
            k, v = torch.cat((self.keys, k)), torch.cat((self.values, v))
        self.keys, self.values = k, v
        return package.attention(q, k, v, self.positions + len(k) - len(q))


class SeesAll(package.PlainContext):
    def attend(self, layer, q, k, v):
        return package.attention(q, k, v, torch.full_like(self.positions, len(k)))


class CountsOn(package.PlainContext):
    def attend(self, layer, q, k, v):
        out = package.attention(q, k, v, self.positions)
        self.positions = self.positions + len(q)
        return out


class BeginsAtOne(package.PlainContext):
    def __init__(self, positions):
        super().__init__(positions + 1)


MUTANTS = {
    "attention": {
        "never_itself": (
            _written_out(hide=lambda s, t, at: s >= at[t]), "One token alone"),
        "heads_come_first": (heads_come_first, "One token alone"),
        "not_causal": (
            _written_out(hide=lambda s, t, at: s < 0), "A query sees itself"),
        "sees_one_ahead": (
            _written_out(hide=lambda s, t, at: s > at[t] + 1), "A query sees itself"),
        "masked_after_the_softmax": (masked_after_the_softmax, "A query sees itself"),
        "masked_with_zero": (_written_out(hidden_score=0.0), "A query sees itself"),
        "masked_with_a_small_score": (
            _written_out(hidden_score=-1e4), "A query sees itself"),
        "softmax_over_queries": (
            _written_out(weigh=lambda x: x.float().softmax(-2)), "A query sees itself"),
        "mask_from_the_top_left": (
            _written_out(hide=lambda s, t, at: s > t), "Where a query stands"),
        "mask_from_the_bottom_right": (
            _written_out(hide=lambda s, t, at: s > t + len(s) - len(t)),
            "Where a query stands"),
        "first_position_for_all": (
            _written_out(hide=lambda s, t, at: s > at[0] + t), "Where a query stands"),
        "counts_on_from_0": (
            lambda q, k, v, at: package.attention(
                q, k, v, at if at[0] else torch.arange(len(at))),
            "Where a query stands"),
        "heads_interleave": (
            _written_out(spread=lambda x, group: x.repeat(1, group, 1)), "neighbours"),
        "head_0_for_all": (
            _written_out(spread=lambda x, group: x[:, :1].repeat_interleave(
                group * x.shape[1], 1)),
            "neighbours"),
        "no_scale": (_written_out(scale=lambda D, Hq: 1.0), "divided by sqrt(D)"),
        "scale_is_D": (_written_out(scale=lambda D, Hq: D), "divided by sqrt(D)"),
        "scale_is_of_E": (
            _written_out(scale=lambda D, Hq: math.sqrt(D * Hq)), "divided by sqrt(D)"),
        "keys_are_weighted": (keys_are_weighted, "values that are weighted"),
        "q_is_scaled_in_place": (q_is_scaled_in_place, "stay as they were"),
        "positions_are_counted_on": (positions_are_counted_on, "stay as they were"),
        "exp_of_all": (_written_out(weigh=_exp_of_all), "The softmax is as good"),
        "as_transformers": (as_transformers, "Scores are as good"),
        "scaled_before_the_product": (scaled_before_the_product, "Scores are as good"),
        "sums_grow_in_half": (sums_grow_in_half, "The softmax is as good"),
        "float32_comes_back": (float32_comes_back, "The softmax is as good"),
        "memory_must_be_contiguous": (memory_must_be_contiguous, "F.scaled_dot"),
    },
    "PlainContext": {
        "Remembers": (Remembers, "Nothing is stored"),
        "SeesAll": (SeesAll, "PlainContext.attend is causal"),
        "CountsOn": (CountsOn, "Nothing is stored"),
        "BeginsAtOne": (BeginsAtOne, "has the positions"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "piece, name", [(piece, name) for piece, many in MUTANTS.items() for name in many]
)
def test_the_suite_rejects(piece, name, capsys):
    mutant, words = MUTANTS[piece][name]
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.attention(**{piece: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out
    assert any(words in line for line in out.splitlines() if line.startswith("✗")), out


def test_the_mutants_are_what_they_seem(capsys):
    """The helper that makes them keeps everything right but what it is given."""
    checks.attention(attention=_written_out())
    assert "✗" not in capsys.readouterr().out


def test_the_first_input_that_fails_is_small(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.attention(attention=MUTANTS["attention"]["heads_interleave"][0])
    assert "4 query heads, 2 key/value heads" in capsys.readouterr().out
