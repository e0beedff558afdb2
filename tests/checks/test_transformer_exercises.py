"""The exercises of notebook 06: solutions pass, plausible wrong answers don't."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from folovllm_lite import checks
from folovllm_lite.attention import PlainContext, attention
from tests.checks.mutants import solutions

EXERCISES = ("predict_attention", "pairs_to_halves", "PackedContext")


SOLVED = solutions("06_transformer.ipynb")
ANSWER = [[9, 9, 2, 4], [6, 6, 5.6, 28 / 3]]


def test_the_solutions_pass(capsys):
    checks.transformer_exercises({name: SOLVED[name] for name in EXERCISES})
    assert "✗" not in capsys.readouterr().out


# ----- other right answers: none may be judged wrong


def row_by_row(weight, head_dim):
    heads, rest = divmod(weight.shape[0], head_dim)
    if rest:
        raise ValueError(f"{weight.shape[0]} is no multiple of {head_dim}")
    rows = [
        first + member + 2 * pair
        for first in range(0, heads * head_dim, head_dim)
        for member in (0, 1)
        for pair in range(head_dim // 2)
    ]
    return weight[rows]


class CutsForSDPA:
    """Neighbours are compared; each text goes through PyTorch's function."""

    def __init__(self, positions):
        before = torch.cat((torch.tensor([-1]), positions[:-1]))
        if not ((positions == 0) | (positions == before + 1)).all():
            raise ValueError("positions have to count on, or begin again at 0")
        self.positions = positions
        self.starts = (positions == 0).nonzero()[:, 0].tolist()

    def attend(self, layer, q, k, v):
        out = torch.empty_like(q)
        for a, b in zip(self.starts, [*self.starts[1:], len(q)], strict=True):
            one = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))
            sdpa = F.scaled_dot_product_attention
            out[a:b] = sdpa(*one, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
        return out


@pytest.mark.parametrize(
    "name, right",
    [("pairs_to_halves", row_by_row), ("PackedContext", CutsForSDPA)],
)
def test_other_right_answers_pass(name, right, capsys):
    checks.transformer_exercises(**{name: right})
    assert "✗" not in capsys.readouterr().out


# ----- 1. trace


def predicts_interleaved_heads():  # h % Hkv
    return [[9, 2, 9, 4], [6, 5.6, 6, 28 / 3]]


def predicts_from_row_numbers():  # query t sees keys up to t, whatever its position
    return [[6, 6, 8, 8], [9, 9, 2, 4]]


def predicts_without_a_mask():
    return [[6, 6, 5.6, 28 / 3], [6, 6, 5.6, 28 / 3]]


def predicts_without_the_root():
    return [[9, 9, 0.8, 4], [6, 6, 28 / 11, 28 / 3]]


def predicts_scores_divided_by_d():
    root = math.sqrt(3)
    return [[9, 9, 8 / (1 + root), 4], [6, 6, 28 / (2 + root), 28 / 3]]


def predicts_zeros_for_a_query_of_zeros():
    return [[9, 9, 2, 0], [6, 6, 5.6, 0]]


def predicts_one_row_a_head():
    return [list(column) for column in zip(*ANSWER, strict=True)]


def predicts_words():
    return "9 and 6"


def predicts_ragged_rows():
    return [[9, 9], [6]]


def forgets_to_return():
    pass


# ----- 2. modify


def gives_it_back(weight, head_dim):
    if weight.shape[0] % head_dim:
        raise ValueError(f"{weight.shape[0]} rows, head_dim {head_dim}")
    return weight


def goes_the_other_way(weight, head_dim):
    gives_it_back(weight, head_dim)
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def forgets_the_heads(weight, head_dim):
    gives_it_back(weight, head_dim)
    return torch.cat((weight[0::2], weight[1::2]))


def puts_the_odd_ones_first(weight, head_dim):
    moved = SOLVED["pairs_to_halves"](weight, head_dim)
    heads = moved.unflatten(0, (-1, 2, head_dim // 2))
    return heads.flip(1).flatten(0, 2)


def moves_columns(weight, head_dim):
    gives_it_back(weight, head_dim)
    return weight.flip(-1) if weight.dim() == 1 else weight[:, [2, 0, 1][: len(weight)]]


def wants_a_matrix(weight, head_dim):
    gives_it_back(weight, head_dim)
    rows, columns = weight.shape
    pairs = weight.reshape(-1, head_dim // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def writes_into_the_weight(weight, head_dim):
    return weight.copy_(SOLVED["pairs_to_halves"](weight, head_dim))


def writes_into_the_bias(weight, head_dim):
    moved = SOLVED["pairs_to_halves"](weight, head_dim)
    return weight.copy_(moved) if weight.dim() == 1 else moved


def makes_it_float32(weight, head_dim):
    moved = SOLVED["pairs_to_halves"](weight, head_dim)
    return moved.float() if weight.dtype == torch.bfloat16 else moved


def drops_the_rest(weight, head_dim):
    whole = weight.shape[0] // head_dim * head_dim
    return SOLVED["pairs_to_halves"](weight[:whole], head_dim)


# ----- 3. design


def _checked(positions):
    SOLVED["PackedContext"](positions)


class TakesAllForOneText(PlainContext):
    def __init__(self, positions):
        _checked(positions)
        super().__init__(positions)


class CountsOn(PlainContext):
    """One long text, with positions that go on."""

    def __init__(self, positions):
        _checked(positions)
        super().__init__(torch.arange(len(positions)))


class MasksTheOthers:
    """Right numbers, and all T x T scores."""

    def __init__(self, positions):
        _checked(positions)
        self.positions = positions
        self.owner = (positions == 0).cumsum(0)

    def attend(self, layer, q, k, v):
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
        hidden = self.owner[:, None] != self.owner
        hidden |= self.positions > self.positions[:, None]
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", weights, v)


class PadsToTheLongest(SOLVED["PackedContext"]):
    """One batched product: nothing between texts, much between a text and padding."""

    def attend(self, layer, q, k, v):
        q, k, v = (
            pad_sequence(x.split(self.lengths), batch_first=True).transpose(1, 2)
            for x in (q, k, v)
        )
        sdpa = F.scaled_dot_product_attention
        out = sdpa(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        return torch.cat([x[:n] for x, n in zip(out, self.lengths, strict=True)])


class MasksWithoutProducts(MasksTheOthers):
    """All T x T scores, by sums that the counter of FLOPs doesn't see."""

    def attend(self, layer, q, k, v):
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = (q[:, None] * k).sum(-1) / math.sqrt(q.shape[-1])  # [T, S, Hq]
        hidden = self.owner[:, None] != self.owner
        hidden |= self.positions > self.positions[:, None]
        weights = scores.masked_fill(hidden[..., None], -math.inf).softmax(1)
        return (weights[..., None] * v).sum(1)


class ForgetsTheLastText(SOLVED["PackedContext"]):
    def __init__(self, positions):
        super().__init__(positions)
        self.lengths = self.lengths[:-1] or self.lengths

    def attend(self, layer, q, k, v):
        n = sum(self.lengths)
        places = self.positions.split([n, len(q) - n])[0]
        parts = [x[:n].split(self.lengths) for x in (q, k, v)]
        parts.append(places.split(self.lengths))
        return torch.cat([attention(*part) for part in zip(*parts, strict=True)])


class ForgetsTheMask(SOLVED["PackedContext"]):
    def attend(self, layer, q, k, v):
        out = [
            attention(a, b, c, torch.full((len(a),), len(a)))
            for a, b, c in zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        ]
        return torch.cat(out)


class TakesAnyPositions:
    def __init__(self, positions):
        self.positions = positions
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
        self.lengths = [b - a for a, b in zip(starts, starts[1:], strict=False)]

    attend = SOLVED["PackedContext"].attend


def _takes(allowed):
    """The solution with another test of what a sequence is."""

    class Takes(TakesAnyPositions):
        def __init__(self, positions):
            super().__init__(positions)
            parts = positions.split(self.lengths) if positions[0] == 0 else []
            if not parts or not all(allowed(part.tolist()) for part in parts):
                raise ValueError(f"{positions.tolist()} are no sequences from 0 on")

    return Takes


LooksAtTheLast = _takes(lambda part: part[-1] == len(part) - 1)
LooksAtTheSum = _takes(lambda part: 2 * sum(part) == len(part) * (len(part) - 1))
LooksAtTheSet = _takes(lambda part: sorted(part) == list(range(len(part))))
LooksAtJumps = _takes(
    lambda part: all(
        b - a <= 1 and a != b for a, b in zip(part, part[1:], strict=False)
    )
)


class LooksAtTheFirstText(TakesAnyPositions):
    def __init__(self, positions):
        super().__init__(positions)
        n = self.lengths[0] if positions[0] == 0 else 0
        if not n or positions[:n].tolist() != list(range(n)):
            raise ValueError(f"{positions.tolist()} are no sequences from 0 on")


class KeepsTheFirstLayersKeys(SOLVED["PackedContext"]):
    def attend(self, layer, q, k, v):
        if layer == 0:
            self.kept = k, v
        return super().attend(layer, q, *self.kept)


MUTANTS = {
    "predict_attention": [
        predicts_interleaved_heads, predicts_from_row_numbers, predicts_without_a_mask,
        predicts_without_the_root, predicts_scores_divided_by_d,
        predicts_zeros_for_a_query_of_zeros, predicts_one_row_a_head, predicts_words,
        predicts_ragged_rows, forgets_to_return,
    ],
    "pairs_to_halves": [
        gives_it_back, goes_the_other_way, forgets_the_heads, puts_the_odd_ones_first,
        moves_columns, wants_a_matrix, writes_into_the_weight, writes_into_the_bias,
        makes_it_float32, drops_the_rest,
    ],
    "PackedContext": [
        TakesAllForOneText, CountsOn, MasksTheOthers, ForgetsTheLastText,
        ForgetsTheMask, TakesAnyPositions, KeepsTheFirstLayersKeys, PadsToTheLongest,
        MasksWithoutProducts, LooksAtTheLast, LooksAtTheSum, LooksAtTheSet,
        LooksAtJumps, LooksAtTheFirstText,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, many in MUTANTS.items() for mutant in many],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.transformer_exercises(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


def test_a_mask_over_all_fails_for_its_waste_alone(capsys):
    with pytest.raises(checks.CheckFailed, match="1 of"):
        checks.transformer_exercises(PackedContext=MasksTheOthers)
    assert "✗ No scores between sequences" in capsys.readouterr().out


def test_the_inverse_order_passes_small_heads_and_fails_larger_ones(capsys):
    with pytest.raises(checks.CheckFailed, match="1 of"):
        checks.transformer_exercises(pairs_to_halves=goes_the_other_way)
    assert "✗ It holds for larger heads too." in capsys.readouterr().out


def test_a_prediction_is_judged_without_giving_it_away(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.transformer_exercises(predict_attention=lambda: [[1.0] * 4] * 2)
    lines = capsys.readouterr().out.splitlines()
    told = {line.strip() for line in lines if "expected:" in line}
    assert told == {"expected: what attention(q, k, v, q_positions) gives"}


def test_the_answer_is_what_attention_gives():
    checks.transformer_exercises(predict_attention=lambda: ANSWER)
