"""What has to be true of the exercises about the transformer (notebook 06)."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from folovllm_lite import attention as package
from folovllm_lite.checks.attention_suite import expect_close
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.checks.tiny import tiny_config
from folovllm_lite.qwen3 import Qwen3, rotate

_SUITE = transformer_exercises = Suite(
    package,
    """Judge predict_attention, pairs_to_halves or PackedContext.

    `checks.transformer_exercises(PackedContext=mine)` judges one of them.
    """,
)


# ----- 1. trace: two queries, three keys, four heads


def _traced() -> Tensor:
    """What attention gives for the exercise's numbers, [T, Hq]."""
    q = torch.zeros(2, 4, 4)
    q[:, :3, 0] = 2.0
    k, v = torch.zeros(3, 2, 4), torch.zeros(3, 2, 4)
    k[1, 1, 0] = math.log(3)
    v[:, 0] = torch.tensor([6.0, 12.0, 0.0])[:, None]
    v[:, 1] = torch.tensor([8.0, 0.0, 20.0])[:, None]
    return package.attention(q, k, v, torch.tensor([1, 2]))[..., 0]


def _predicted(p: SimpleNamespace) -> Tensor:
    """What the learner predicts, as a tensor [2, 4]."""
    got = p.predict_attention()
    try:
        made = torch.as_tensor(got, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        made = torch.empty(0)
    if made.shape != (2, 4):
        fail("predict_attention()", got, "two lists of four numbers: [T][Hq]")
    return made


def _expect_traced(p: SimpleNamespace, row: int, heads: list[int]) -> None:
    """The predictions of one query for some heads, without telling the right ones."""
    got, wanted = _predicted(p), _traced()
    for head in heads:
        if abs(got[row, head] - wanted[row, head]) > 0.01:
            fail(
                f"query {row}, head {head}",
                round(got[row, head].item(), 4),
                "what attention(q, k, v, q_positions) gives",
            )


@_SUITE.property(
    "predict_attention", hint="all keys of this group are alike: how many are seen?"
)
def _first_query(p: SimpleNamespace) -> None:
    """The first query sees as many keys as its position allows."""
    _expect_traced(p, 0, [0])


@_SUITE.property(
    "predict_attention",
    hint="four query heads, two key/value heads: who sits with whom?",
)
def _groups(p: SimpleNamespace) -> None:
    """Each query head reads the key/value head of its group."""
    _expect_traced(p, 0, [1, 3])
    _expect_traced(p, 1, [0, 1])


@_SUITE.property(
    "predict_attention", hint="q · k is not yet the score: what is D, and its root?"
)
def _scale(p: SimpleNamespace) -> None:
    """Scores are scaled before the softmax: the key that is liked gets its share."""
    _expect_traced(p, 0, [2])
    _expect_traced(p, 1, [2])


@_SUITE.property(
    "predict_attention", hint="a query of zeros: what is its score with any key?"
)
def _indifferent(p: SimpleNamespace) -> None:
    """A query that likes all keys alike returns the mean of the values it sees."""
    _expect_traced(p, 1, [3])


# ----- 2. modify: from neighbouring pairs to halves


def _turn_neighbours(x: Tensor, angles: Tensor) -> Tensor:
    """The other convention: pair i is (x[2i], x[2i + 1]); x [T, H, D]."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def _turn_halves(x: Tensor, angles: Tensor) -> Tensor:
    """Ours, as the model calls it."""
    both = torch.cat((-angles, angles), -1)
    return rotate(x, both.cos(), both.sin())


def _scores(
    turn: Any, x: Tensor, wq: Tensor, wk: Tensor, bias: Tensor | None, D: int
) -> Tensor:
    """Every query times every key, [H, T, T]."""
    frequencies = 100.0 ** -(torch.arange(0, D, 2) / D)
    angles = torch.arange(len(x))[:, None, None] * frequencies
    q, k = ((x @ w.T + (bias if bias is not None else 0)) for w in (wq, wk))
    q, k = (turn(y.unflatten(-1, (-1, D)), angles) for y in (q, k))
    return torch.einsum("thd,shd->hts", q, k)


def _same_scores(p: SimpleNamespace, H: int, D: int, with_bias: bool = False) -> None:
    E, T = 3, 4
    generator = torch.Generator().manual_seed(H * D)
    x, wq, wk = (
        torch.randn(n, E, generator=generator, dtype=torch.float64)
        for n in (T, H * D, H * D)
    )
    bias = (
        torch.randn(H * D, generator=generator, dtype=torch.float64)
        if with_bias
        else None
    )
    wanted = _scores(_turn_neighbours, x, wq, wk, bias, D)
    new = [p.pairs_to_halves(w, D) for w in (wq, wk)]
    new_bias = p.pairs_to_halves(bias, D) if with_bias else None
    given = f"{H} head(s) of D = {D}" + (", with a bias" if with_bias else "")
    for tensor, old in zip((*new, new_bias), (wq, wk, bias), strict=True):
        if old is not None and getattr(tensor, "shape", None) != old.shape:
            expect(
                f"the shape, {given}", list(getattr(tensor, "shape", [])), [*old.shape]
            )
    got = _scores(_turn_halves, x, *new, new_bias, D)
    expect(f"scores of token 1 with tokens 0 to 3, {given}", got[:, 1], wanted[:, 1])
    expect(f"all scores, {given}", got, wanted)


@_SUITE.property(
    "pairs_to_halves", hint="for D = 2 both layouts are the same; then try D = 4"
)
def _one_head(p: SimpleNamespace) -> None:
    """One head: the scores with our rotation are those of neighbouring pairs."""
    for D in (2, 4):
        _same_scores(p, 1, D)


@_SUITE.property(
    "pairs_to_halves",
    hint="with D = 4 the way there is also the way back; with D = 6 it isn't",
)
def _larger(p: SimpleNamespace) -> None:
    """It holds for larger heads too."""
    for D in (6, 8, 64):
        _same_scores(p, 1, D)


@_SUITE.property("pairs_to_halves", hint="rows of one head stay within that head")
def _heads(p: SimpleNamespace) -> None:
    """Several heads in one weight: each is reordered by itself."""
    for H in (2, 3, 8):
        _same_scores(p, H, 4)


@_SUITE.property(
    "pairs_to_halves", hint="a bias has the rows of the weight, and no columns"
)
def _bias(p: SimpleNamespace) -> None:
    """A bias [H * D] is reordered as its weight is."""
    _same_scores(p, 2, 4, with_bias=True)


@_SUITE.property(
    "pairs_to_halves", hint="return a new tensor, don't write into this one"
)
def _untouched(p: SimpleNamespace) -> None:
    """What was passed in stays as it was, and what comes back has its dtype."""
    for what, shape in (("a weight", (8, 1)), ("a bias", (8,))):
        given = torch.arange(8, dtype=torch.bfloat16).view(shape)
        got = p.pairs_to_halves(given, 4)
        expect(f"{what} [0 … 7] afterwards", given.flatten(), list(range(8)))
        expect(f"{what} in bfloat16: dtype", got.dtype, torch.bfloat16)


@_SUITE.property(
    "pairs_to_halves", hint="compare the rows with head_dim before you move"
)
def _no_whole_heads(p: SimpleNamespace) -> None:
    """Rows that are no whole number of heads are a ValueError with both numbers."""
    weight = torch.zeros(6, 2)
    expect_error(
        "a weight with 6 rows, head_dim 4",
        lambda: p.pairs_to_halves(weight, 4),
        ValueError,
        "6",
        "4",
    )


# ----- 3. design: several sequences in one row


def _qkv(T: int, Hq: int = 2, Hkv: int = 1, D: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(T)
    return tuple(torch.randn(T, H, D, generator=generator) for H in (Hq, Hkv, Hkv))


def _alone(positions: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each sequence by itself, through the package's own attention."""
    starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
    parts = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    return torch.cat([package.attention(q[s], k[s], v[s], positions[s]) for s in parts])


def _expect_alone(p: SimpleNamespace, places: list[int], **heads: int) -> None:
    positions = torch.tensor(places)
    q, k, v = _qkv(len(places), **heads)
    got = p.PackedContext(positions).attend(0, q, k, v)
    wanted = _alone(positions, q, k, v)
    if not isinstance(got, Tensor) or got.shape != wanted.shape:
        shape = list(getattr(got, "shape", [])) or got
        fail(f"positions {places}: shape", shape, list(wanted.shape))
    expect_close(f"positions {places}", got, wanted)


@_SUITE.property(
    "PackedContext", hint="one sequence is the plain case: where does it end?"
)
def _one_sequence(p: SimpleNamespace) -> None:
    """With one sequence it gives what PlainContext gives, and has its positions."""
    for places in ([0], [0, 1, 2]):
        _expect_alone(p, places)
    positions = torch.tensor([0, 1])
    got = p.PackedContext(positions).positions
    expect("ctx.positions", got, positions)
    expect("dtype of ctx.positions", got.dtype, torch.int64)


@_SUITE.property(
    "PackedContext",
    hint="q, k and v are packed alike: cut all three where a sequence begins; and "
    "where does the last one end?",
)
def _two_sequences(p: SimpleNamespace) -> None:
    """Each of several sequences comes out as if it were alone."""
    for places in (
        [0, 0],
        [0, 1, 0],
        [0, 0, 1, 2],
        [0, 1, 0, 1, 2, 0],
        [0, 0, 1, 0, 0, 1, 2, 3, 0, 1],
    ):
        _expect_alone(p, places)


@_SUITE.property(
    "PackedContext", hint="let attention do the heads: you cut along T only"
)
def _grouped(p: SimpleNamespace) -> None:
    """It holds for any heads and head size."""
    _expect_alone(p, [0, 1, 0], Hq=4, Hkv=2, D=3)
    _expect_alone(p, [0, 1, 0], Hq=3, Hkv=3, D=1)


@_SUITE.property(
    "PackedContext",
    hint="a score that is masked was computed all the same: cut first, then attend",
)
def _no_waste(p: SimpleNamespace) -> None:
    """No scores between sequences, none of padding: a pass costs what its sequences
    cost alone.
    """

    def flops(lengths: list[int]) -> int:
        positions = torch.cat([torch.arange(length) for length in lengths])
        # The counter sees the products of SDPA in its plain form only.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            p.PackedContext(positions).attend(0, *_qkv(len(positions)))
        return counter.get_total_flops()

    for lengths in ([8] * 8, [1, 1, 1, 1, 8]):
        alone, packed = sum(flops([length]) for length in lengths), flops(lengths)
        if packed > alone:
            fail(f"FLOPs of texts of {lengths} tokens", packed, f"{alone}, as alone")
    q, k, v = _qkv(4)
    k[:2], v[:2] = math.nan, math.nan
    got = p.PackedContext(torch.tensor([0, 1, 0, 1])).attend(0, q, k, v)
    wanted = package.attention(q[2:], k[2:], v[2:], torch.tensor([0, 1]))
    expect_close("[0, 1, 0, 1], keys and values of the first text nan", got[2:], wanted)


@_SUITE.property(
    "PackedContext", hint="two calls, two layers: what may one leave for the other?"
)
def _stores_nothing(p: SimpleNamespace) -> None:
    """Every call is computed from its own q, k and v."""
    positions = torch.tensor([0, 1, 0])
    context = p.PackedContext(positions)
    context.attend(0, *_qkv(3))
    q, k, v = (-x for x in _qkv(3))
    wanted = _alone(positions, q, k, v)
    for layer in (1, 0):
        got = context.attend(layer, q, k, v)
        expect_close(f"attend of layer {layer}, after others", got, wanted)


@_SUITE.property(
    "PackedContext", hint="every position is 0, or one more than the one before it"
)
def _no_packing(p: SimpleNamespace) -> None:
    """Positions that aren't whole sequences from 0 on are a ValueError."""
    for places in (
        [1],
        [-1, 0],
        [0, 2],
        [0, 1, 1],
        [0, 2, 1],
        [0, 2, 2],
        [0, 1, 2, 1],
        [1, 2, 0],
        [0, 1, 5, 6],
        [0, 0, 1, 3],
        [0, 2, 0, 1],
    ):
        expect_error(
            f"PackedContext(torch.tensor({places}))",
            lambda places=places: p.PackedContext(torch.tensor(places)),
            ValueError,
        )


@_SUITE.property(
    "PackedContext", hint="the rotation takes ctx.positions: are they as given?"
)
def _model(p: SimpleNamespace) -> None:
    """Through a whole Qwen3, packed texts give the hidden states of each alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = tiny_config(vocab_size=7, num_layers=2, num_heads=2)
        model = Qwen3(config).double()
        texts = [torch.tensor([1, 2, 3]), torch.tensor([4, 5])]
        places = [torch.arange(len(text)) for text in texts]
        got = model(torch.cat(texts), p.PackedContext(torch.cat(places)))
        wanted = [
            model(text, package.PlainContext(place))
            for text, place in zip(texts, places, strict=True)
        ]
    expect_close("texts of 3 and 2 tokens", got, torch.cat(wanted))
