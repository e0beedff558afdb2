"""What has to be true of the sampler (notebook 03): its contract, line by line."""

import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from folovllm_lite import sampler as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail, plain
from folovllm_lite.sampler import SamplingRow
from folovllm_lite.sampling_params import SamplingParams

_SUITE = sampler = Suite(
    package,
    """Judge the sampler's functions: all of a module, or some of them by name.

    `checks.sampler(apply_top_k=mine)` judges one function. Functions that aren't given
    are the package's.
    """,
)
_DRAWS = 4000


def _logits(*rows: list[float]) -> Tensor:
    """Logits [N, V] whose softmax is proportional to the given weights."""
    return torch.tensor(rows, dtype=torch.float32).log()


def _column(*values: float) -> Tensor:
    return torch.tensor(values).unsqueeze(-1)  # [N, 1]


def _row(prompt=(), output=(), stop=(), seed=None, **params: Any) -> SamplingRow:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return SamplingRow(
        SamplingParams(seed=seed, **params),
        *(list(prompt), list(output), tuple(stop), generator),
    )


def _kept(logits: Tensor) -> list[list[int]]:
    """Per row the ids that were not removed."""
    return [[i for i, x in enumerate(row) if x > -math.inf] for row in logits.tolist()]


def _weights(logits: Tensor) -> str:
    return str(plain(logits.exp()))


# ----- filters


@_SUITE.property(
    "apply_min_p", hint="compare with min_p times the largest probability of the row"
)
def _min_p_threshold(p: SimpleNamespace) -> None:
    """min_p keeps the tokens at least min_p times as likely as the row's likeliest."""
    for weights, min_p, kept in (
        ([4, 2], 0.6, [0]),
        ([4, 2], 0.4, [0, 1]),
        ([1, 2, 4], 0.4, [1, 2]),
        ([1, 1, 1, 1], 0.9, [0, 1, 2, 3]),
        ([8, 4, 2, 1], 0.3, [0, 1]),
    ):
        got = p.apply_min_p(_logits(weights), _column(min_p))
        expect(f"weights {weights}, min_p {min_p}: kept ids", _kept(got), [kept])


@_SUITE.property(
    "apply_min_p",
    hint="log(0) is -inf: does your comparison survive that? And whose likeliest is "
    "it?",
)
def _min_p_zero(p: SimpleNamespace) -> None:
    """min_p 0 removes nothing, and each row of a batch has its own min_p."""
    got = p.apply_min_p(_logits([8, 1], [8, 1]), _column(0.0, 0.5))
    given = "two rows of weights [8, 1], min_p 0 and 0.5: kept ids"
    expect(given, _kept(got), [[0, 1], [0]])
    got = p.apply_min_p(_logits([4, 2], [400, 1]), _column(0.4, 0.4))
    given = "rows of weights [4, 2] and [400, 1], min_p 0.4 for both: kept ids"
    expect(given, _kept(got), [[0, 1], [0]])


@_SUITE.property("apply_min_p", hint="at least: is the likeliest below 1 times itself?")
def _min_p_one(p: SimpleNamespace) -> None:
    """The likeliest tokens stay, at min_p 1 too."""
    for weights, kept in (([1, 1], [0, 1]), ([3, 1, 3], [0, 2])):
        got = p.apply_min_p(_logits(weights), _column(1.0))
        expect(f"weights {weights}, min_p 1: kept ids", _kept(got), [kept])


@_SUITE.property(
    "apply_top_k",
    hint="sort, and look at ranks instead of values; then from rank back to id",
)
def _top_k_exact(p: SimpleNamespace) -> None:
    """top_k keeps exactly the k likeliest tokens."""
    for weights, k, kept in (
        ([1, 2], 1, [1]),
        ([3, 1, 2], 2, [0, 2]),
        ([1, 2, 3, 4], 3, [1, 2, 3]),
    ):
        got = p.apply_top_k(_logits(weights), _column(k))
        expect(f"weights {weights}, top_k {k}: kept ids", _kept(got), [kept])


@_SUITE.property(
    "apply_top_k",
    hint="comparing with the k-th value keeps every token that equals it; a stable "
    "sort knows which came first",
)
def _top_k_ties(p: SimpleNamespace) -> None:
    """Of equally likely tokens, top_k keeps the lower ids, and never more than k."""
    for weights, k, kept in (
        ([1, 1], 1, [0]),
        ([1, 2, 2, 2], 2, [1, 2]),
        ([2, 1, 2, 1, 1], 3, [0, 1, 2]),
        ([1] * 40, 20, list(range(20))),
    ):
        got = p.apply_top_k(_logits(weights), _column(k))
        expect(f"weights {weights}, top_k {k}: kept ids", _kept(got), [kept])


@_SUITE.property(
    "apply_top_k", hint="-1 switches it off, and k may be larger than the vocabulary"
)
def _top_k_all(p: SimpleNamespace) -> None:
    """top_k -1, or a k of the vocabulary's size or more, keeps everything."""
    for k in (-1, 3, 4, 1000):
        column = _column(k)
        got = p.apply_top_k(_logits([1, 3, 2]), column)
        expect(f"weights [1, 3, 2], top_k {k}: kept ids", _kept(got), [[0, 1, 2]])
        expect(f"top_k {k}: the column, afterwards", column, _column(k))


@_SUITE.property("apply_top_k", hint="one k for the whole batch is not enough")
def _top_k_rows(p: SimpleNamespace) -> None:
    """Each row of a batch has its own top_k."""
    got = p.apply_top_k(_logits([1, 2, 3], [3, 2, 1], [1, 2, 3]), _column(1, 2, -1))
    expect("three rows, top_k 1, 2, -1: kept ids", _kept(got), [[2], [0, 1], [0, 1, 2]])


@_SUITE.property(
    "apply_top_p",
    hint="the cut is found in the order of the ranking: which id does its place j "
    "belong to?",
)
def _top_p_ids(p: SimpleNamespace) -> None:
    """What top_p removes is less likely than everything that it keeps."""
    for weights in ([1, 4, 3], [2, 1, 4, 1], [1, 2, 3, 4, 10]):
        kept = _kept(p.apply_top_p(_logits(weights), _column(0.6)))[0]
        least = min((weights[i] for i in kept), default=math.inf)
        gone = [i for i in range(len(weights)) if i not in kept]
        if any(weights[i] > least for i in gone):
            given = f"weights {weights}, top_p 0.6: kept ids"
            fail(given, kept, "no likelier token among the others")


@_SUITE.property(
    "apply_top_p",
    hint="a token goes when those before it reach top_p, not when it does itself",
)
def _top_p_crossing(p: SimpleNamespace) -> None:
    """top_p keeps the smallest set that reaches it; the crossing token stays."""
    for weights, top_p, kept in (
        ([3, 1], 0.5, [0]),
        ([3, 1], 0.8, [0, 1]),
        ([1, 4, 3], 0.55, [1, 2]),
        ([5, 3, 1, 1], 0.85, [0, 1, 2]),
        ([2, 1, 4, 1], 0.7, [0, 2]),
    ):
        got = p.apply_top_p(_logits(weights), _column(top_p))
        expect(f"weights {weights}, top_p {top_p}: kept ids", _kept(got), [kept])


@_SUITE.property("apply_top_p", hint="at least top_p: what if it is reached exactly?")
def _top_p_exact(p: SimpleNamespace) -> None:
    """A set that reaches top_p exactly is enough."""
    for count, top_p, kept in ((2, 0.5, [0]), (4, 0.5, [0, 1]), (4, 0.25, [0])):
        got = p.apply_top_p(torch.zeros(1, count), _column(top_p))  # exact in binary
        given = f"{count} equal weights, top_p {top_p}: kept ids"
        expect(given, _kept(got), [kept])


@_SUITE.property(
    "apply_top_p", hint="nothing stands before the first token of the ranking"
)
def _top_p_one(p: SimpleNamespace) -> None:
    """However small top_p is, the likeliest token stays, the lower id of two."""
    for top_p in (1e-6, 1e-50):  # the second is 0 in float32
        for weights in ([1, 5, 1], [2, 2, 1]):
            got = p.apply_top_p(_logits(weights), _column(top_p))
            best = weights.index(max(weights))
            given = f"weights {weights}, top_p {top_p}: kept ids"
            expect(given, _kept(got), [[best]])


@_SUITE.property(
    "apply_top_p",
    hint="a rounded cumulative sum can reach 1 early: leave rows with 1 alone",
)
def _top_p_off(p: SimpleNamespace) -> None:
    """top_p 1 keeps everything, down to the least likely token, row by row."""
    weights = [1.0, *[1e-9] * 50]
    column = _column(1.0, 0.5)
    got = p.apply_top_p(_logits(weights, weights), column)
    given = "two rows of weights [1, 50 times 1e-9], top_p 1 and 0.5: how many are kept"
    expect(given, [len(row) for row in _kept(got)], [51, 1])
    expect("top_p 1 and 0.5: the column, afterwards", column, _column(1.0, 0.5))


@_SUITE.property("apply_top_p", hint="compare with the column, not with one number")
def _top_p_rows(p: SimpleNamespace) -> None:
    """Each row of a batch has its own top_p."""
    for column, kept in (
        ([0.85, 0.4, 1.0], [[0, 1, 2], [0], [0, 1, 2, 3]]),
        ([0.4, 0.7, 0.85], [[0], [0, 1], [0, 1, 2]]),
    ):
        got = p.apply_top_p(_logits(*[[5, 3, 1, 1]] * 3), _column(*column))
        given = f"three rows of weights [5, 3, 1, 1], top_p {column}: kept ids"
        expect(given, _kept(got), kept)


@_SUITE.property(
    "apply_min_p", "apply_top_k", "apply_top_p", hint="use masked_fill, not indexing"
)
def _filters_only_remove(p: SimpleNamespace) -> None:
    """A filter sets what it removes to -inf; the rest, and its input, stay."""
    for name, value in (("apply_min_p", 0.6), ("apply_top_k", 2), ("apply_top_p", 0.6)):
        for shift in (0.0, 200.0, -200.0):  # the softmax doesn't change
            logits, column = _logits([1, 4, 3]) + shift, _column(value)
            before, given = logits.clone(), f"{name}, {value}, logs of [1, 4, 3]"
            given += f" + {shift:g}" * (shift != 0)
            got = getattr(p, name)(logits, column)
            expect(f"{given}: the logits that were passed in, after", logits, before)
            expect(f"{given}: the column, afterwards", column, _column(value))
            expect(f"{given}: kept ids", _kept(got), [[1, 2]])
            expect(f"{given}: the logits that are kept", got[0, 1:], before[0, 1:])
            expect(f"{given}: dtype", got.dtype, before.dtype)


# ----- penalties and stop tokens


@_SUITE.property("apply_penalties", hint="dividing a negative logit makes it likelier")
def _repetition(p: SimpleNamespace) -> None:
    """The repetition penalty divides positive logits and multiplies negative ones."""
    for penalty, wanted in ((2.0, [1.0, -4.0, 2.0]), (0.5, [4.0, -1.0, 2.0])):
        row = _row(prompt=[0, 1], repetition_penalty=penalty)
        got = p.apply_penalties(torch.tensor([[2.0, -2.0, 2.0]]), [row])
        given = f"logits [2, -2, 2], seen 0 and 1, penalty {penalty:g}"
        expect(given, got, [wanted])


@_SUITE.property("apply_penalties", hint="make a set of the ids first")
def _repetition_once(p: SimpleNamespace) -> None:
    """Repetition counts prompt and output, each token once however often it came."""
    got = p.apply_penalties(
        torch.tensor([[4.0, 4.0, 4.0]]),
        [_row(prompt=[0, 0], output=[0, 1], repetition_penalty=2.0)],
    )
    expect(
        "logits [4, 4, 4], prompt [0, 0], output [0, 1], penalty 2",
        got,
        [[2.0, 2.0, 4.0]],
    )


@_SUITE.property(
    "apply_penalties", hint="presence asks whether, frequency asks how often"
)
def _frequency(p: SimpleNamespace) -> None:
    """Frequency subtracts once per occurrence in the output, presence once in all."""
    for params, wanted in (
        ({"presence_penalty": 1.0}, [-1.0, -1.0, 0.0]),
        ({"frequency_penalty": 1.0}, [-2.0, -1.0, 0.0]),
        ({"frequency_penalty": 1.0, "presence_penalty": 0.5}, [-2.5, -1.5, 0.0]),
        ({"frequency_penalty": -1.0}, [2.0, 1.0, 0.0]),
        ({"presence_penalty": -1.0}, [1.0, 1.0, 0.0]),
    ):
        got = p.apply_penalties(torch.zeros(1, 3), [_row(output=[0, 1, 0], **params)])
        expect(f"logits [0, 0, 0], output [0, 1, 0], {params}", got, [wanted])


@_SUITE.property("apply_penalties", hint="which ids does each penalty look at?")
def _output_only(p: SimpleNamespace) -> None:
    """Frequency and presence don't look at the prompt."""
    got = p.apply_penalties(
        torch.zeros(1, 2),
        [_row(prompt=[0, 1], output=[1], frequency_penalty=1.0, presence_penalty=1.0)],
    )
    expect("logits [0, 0], prompt [0, 1], output [1], both 1", got, [[0.0, -2.0]])


@_SUITE.property("apply_penalties", hint="clone before you write; write to one row")
def _penalties_stay(p: SimpleNamespace) -> None:
    """A penalty changes its own row only, and nothing that was passed in."""
    logits = torch.ones(2, 2)
    row = _row([0], [0], repetition_penalty=2.0, presence_penalty=0.25)
    got = p.apply_penalties(logits, [_row(output=[0]), row])
    expect(
        "two rows of [1, 1], penalties in the second", got, [[1.0, 1.0], [0.25, 1.0]]
    )
    expect(
        "the logits that were passed in, afterwards", logits, [[1.0, 1.0], [1.0, 1.0]]
    )
    lists = [row.prompt_token_ids, row.output_token_ids]
    expect("a row with prompt [0] and output [0], afterwards", lists, [[0], [0]])


@_SUITE.property(
    "mask_stop_tokens", hint="with min_tokens 2, may the second token be a stop?"
)
def _min_tokens(p: SimpleNamespace) -> None:
    """A stop token can't be chosen before min_tokens other tokens were."""
    for made, kept in ((0, [0, 2]), (1, [0, 2]), (2, [0, 1, 2]), (3, [0, 1, 2])):
        for temperature in (1, 0):
            row = _row((), [0] * made, [1], temperature=temperature, min_tokens=2)
            got = p.mask_stop_tokens(torch.zeros(1, 3), [row])
            given = f"min_tokens 2, stop token 1, {made} generated"
            expect(f"{given}, temperature {temperature}: kept ids", _kept(got), [kept])


@_SUITE.property("mask_stop_tokens", hint="min_tokens counts what was generated")
def _min_tokens_prompt(p: SimpleNamespace) -> None:
    """The tokens of the prompt don't count."""
    row = _row(prompt=[0, 0, 2], output=[0], stop=[1], min_tokens=2)
    got = p.mask_stop_tokens(torch.zeros(1, 3), [row])
    given = "min_tokens 2, stop token 1, prompt [0, 0, 2], 1 generated: kept ids"
    expect(given, _kept(got), [[0, 2]])


@_SUITE.property("mask_stop_tokens", hint="mask the row's own stop tokens, in a copy")
def _min_tokens_rows(p: SimpleNamespace) -> None:
    """Each row masks all of its own stop tokens and leaves its neighbours alone."""
    logits = torch.zeros(2, 3)
    got = p.mask_stop_tokens(
        logits, [_row(stop=[0, 2], min_tokens=1), _row(stop=[1], min_tokens=0)]
    )
    given = "rows with stop tokens [0, 2] and [1], min_tokens 1 and 0: kept ids"
    expect(given, _kept(got), [[1], [0, 1, 2]])
    expect("the logits that were passed in, afterwards", _kept(logits), [[0, 1, 2]] * 2)


# ----- the order


@_SUITE.property(
    "filter_logits",
    hint="`/=` and item assignment write into the tensor you were given",
)
def _filters_leave_logits(p: SimpleNamespace) -> None:
    """The logits and rows that come in are read, and never written to."""
    drawn = {"temperature": 2.0}
    greedy = {"temperature": 0, "top_k": 1, "top_p": 0.5, "min_p": 0.5}
    for asked in (
        [drawn],
        [{**drawn, "top_k": 1, "min_p": 0.5}],
        [{**drawn, "top_p": 0.5, "top_k": 9}],
        [{**greedy, "output": [0], "presence_penalty": 1.0}],
        [{**greedy, "stop": [0], "min_tokens": 1}],
        [greedy, drawn],
    ):
        logits = _logits(*[[3, 1]] * len(asked))
        rows, before = ([_row(**each) for each in asked] for _ in range(2))
        p.filter_logits(logits, rows)
        given = f"rows of weights [3, 1] with {asked}"
        expect(
            f"{given}: the logits, afterwards", logits, _logits(*[[3, 1]] * len(rows))
        )
        for row, was in zip(rows, before, strict=True):
            for name in ("params", "prompt_token_ids", "output_token_ids"):
                got, wanted = getattr(row, name), getattr(was, name)
                expect(f"{given}: {name} of a row, afterwards", got, wanted)


@_SUITE.property("filter_logits", hint="a column of temperatures, [N, 1]; 1 is off")
def _temperature(p: SimpleNamespace) -> None:
    """Temperature divides the logits, each row's by its own."""
    for column in ([2.0], [0.5], [0.01], [1.0], [1.0, 2.0], [0.5, 1.0]):
        rows = [_row(temperature=t) for t in column]
        got = p.filter_logits(torch.tensor([[1.0, 3.0]] * len(rows)), rows)
        wanted = [[1 / t, 3 / t] for t in column]
        expect(f"rows of logits [1, 3], temperature {column}", got, wanted)
        expect(f"temperature {column}: dtype", got.dtype, torch.float32)


@_SUITE.property(
    "filter_logits", hint="steps 3 and 4 are for all rows, before anybody leaves"
)
def _before_the_filters(p: SimpleNamespace) -> None:
    """Stop tokens are masked and penalties taken in every row, greedy or drawn."""
    # Greedy rows beside others: `_greedy_rows`, whose hint is about dividing by 0.
    for temperatures in ([1], [0], [0, 0]):
        logits = torch.zeros(len(temperatures), 3)
        for what, more, wanted in (
            ("presence_penalty 1, output [0]",
             {"presence_penalty": 1.0, "output": [0]}, [-1.0, 0.0, 0.0]),
            ("min_tokens 1, stop token 1",
             {"min_tokens": 1, "stop": [1]}, [0.0, -math.inf, 0.0]),
        ):  # fmt: skip
            rows = [_row(temperature=t, **more) for t in temperatures]
            given = f"rows of logits [0, 0, 0], {what}, temperatures {temperatures}"
            expect(given, p.filter_logits(logits, rows), [wanted] * len(rows))


@_SUITE.property(
    "filter_logits", hint="penalties act on the raw logits, then comes temperature"
)
def _penalties_first(p: SimpleNamespace) -> None:
    """Stop tokens and penalties come before temperature and filters."""
    for name, value in (("top_k", 1), ("top_p", 0.5), ("min_p", 1.0)):
        for what, more in (
            ("output [0], presence_penalty 1", {"output": [0], "presence_penalty": 1}),
            ("stop token 0, min_tokens 1", {"stop": [0], "min_tokens": 1}),
        ):
            row = _row(**{name: value}, **more)
            given = f"weights [3, 2], {what}, {name} {value}: kept ids"
            expect(given, _kept(p.filter_logits(_logits([3, 2]), [row])), [[1]])
    row = _row(output=[0], presence_penalty=1.0, temperature=0.5)
    expect(
        "logits [3, 1], output [0], presence_penalty 1, temperature 0.5",
        p.filter_logits(torch.tensor([[3.0, 1.0]]), [row]),
        [[4.0, 2.0]],
    )


@_SUITE.property(
    "filter_logits", hint="the filters look at the distribution that is drawn from"
)
def _temperature_first(p: SimpleNamespace) -> None:
    """Temperature comes before min_p and top_p."""
    for name, value in (("min_p", 0.3), ("top_p", 0.7)):
        row = _row(temperature=0.5, **{name: value})
        got = p.filter_logits(_logits([2, 1]), [row])
        given = f"weights [2, 1], temperature 0.5 (so [4, 1]), {name} {value}: kept ids"
        expect(given, _kept(got), [[0]])


@_SUITE.property(
    "filter_logits", hint="top_p sees the survivors of top_k, renormalised"
)
def _top_k_first(p: SimpleNamespace) -> None:
    """top_k comes before top_p, which looks at what top_k left, renormalised."""
    got = p.filter_logits(_logits([4, 3, 2, 2]), [_row(top_k=2, top_p=0.5)])
    given = "weights [4, 3, 2, 2], top_k 2 (so 4/7 and 3/7), top_p 0.5: kept ids"
    expect(given, _kept(got), [[0]])


@_SUITE.property("filter_logits", hint="min_p first, then top_k, then top_p")
def _min_p_first(p: SimpleNamespace) -> None:
    """min_p comes before top_p, which looks at what min_p left, renormalised."""
    got = p.filter_logits(_logits([5, 4, 1, 1, 1]), [_row(min_p=0.5, top_p=0.5)])
    given = "weights [5, 4, 1, 1, 1], min_p 0.5 (so 5/9 and 4/9), top_p 0.5: kept ids"
    expect(given, _kept(got), [[0]])


_EVERY = [
    {"top_k": 2},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 0},
    {"min_p": 0.1},
    {},
    {"temperature": 0.5, "top_k": 10**12},
    {"output": [2, 2], "frequency_penalty": 1.0},
    {"stop": [2], "min_tokens": 1, "top_k": 1},
]


def _expect_as_alone(p: SimpleNamespace, *orders: Sequence[int]) -> None:
    """Fail if a row of `_EVERY` is left with something else because of the others."""
    weights = [9, 1, 64, 9, 16, 1]
    alone = [p.filter_logits(_logits(weights), [_row(**x)])[0] for x in _EVERY]
    for order in orders:
        rows, asked = [_row(**_EVERY[i]) for i in order], [_EVERY[i] for i in order]
        got = p.filter_logits(_logits(weights).expand(len(rows), -1), rows)
        given = f"rows of weights {weights} with {asked}: "
        expect(
            f"{given}kept ids",
            _kept(got),
            _kept(torch.stack([alone[i] for i in order])),
        )
        for at, i in enumerate(order):
            expect(f"{given}logits of row {at}", got[at], alone[i])


@_SUITE.property(
    "filter_logits", hint="make a column [N, 1] of each parameter, one entry for a row"
)
def _rows_as_alone(p: SimpleNamespace) -> None:
    """A row of a batch is left with what it would be left with alone."""
    _expect_as_alone(p, [0, 1], [1, 0], [0, 4, 3], [5, 1], [6, 7, 4, 4])


@_SUITE.property(
    "filter_logits", hint="dividing by 0 gives inf or NaN; leave such rows out"
)
def _greedy_rows(p: SimpleNamespace) -> None:
    """A row at temperature 0 gets its penalties, but no temperature and no filter."""
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 2)
    rows = [
        _row(
            temperature=0,
            top_k=1,
            top_p=0.1,
            min_p=0.9,
            output=[0],
            presence_penalty=1.0,
        ),
        _row(temperature=2.0),
    ]
    got = p.filter_logits(logits, rows)
    given = "two rows of [1, 2, 3]: temperature 0 with all filters, temperature 2"
    expect(given, got, [[0.0, 2.0, 3.0], [0.5, 1.0, 1.5]])
    _expect_as_alone(p, [2, 0], [1, 2], [1, 0, 2], [6, 2], [2, 7, 6], range(8))


# ----- the draw


@_SUITE.property("draw", hint="argmax takes the first maximum")
def _argmax(p: SimpleNamespace) -> None:
    """Temperature 0 takes the likeliest token, the lower id of two that are equal."""
    greedy = _row(temperature=0)
    for weights, wanted in (([1, 2], 1), ([2, 2, 1], 0), ([1, 3, 2, 3], 1)):
        got = p.draw(_logits(weights), [greedy])
        expect(f"weights {weights}", got, [wanted])
        expect(f"weights {weights}: dtype of the ids", got.dtype, torch.int64)


@_SUITE.property(
    "draw", hint="which rows get noise? A greedy one wants none, whoever is beside it"
)
def _argmax_beside(p: SimpleNamespace) -> None:
    """A greedy row beside a row that is drawn takes its likeliest token as well."""
    logits = _logits([5, 4, 4]).expand(20, -1)
    for at in (0, 1):
        rows = [_row(temperature=0) if i % 2 == at else _row(seed=i) for i in range(20)]
        got = p.draw(logits, rows)[at::2]
        given = f"20 rows of weights [5, 4, 4], every other one drawn: rows {at}::2"
        expect(given, got, [0] * 10)


@_SUITE.property(
    "draw", hint="softmax rounds: two logits can become one probability; compare logits"
)
def _argmax_close(p: SimpleNamespace) -> None:
    """It takes the larger of two logits, though their probabilities round to one."""
    close = torch.tensor([[0.0, 1e-9, -30.0]])
    got = p.draw(close.expand(2, -1), [_row(temperature=0), _row(seed=0)])[0]
    expect("logits [0, 1e-9, -30], next to a row that is drawn", got, 1)


def _expect_shares(given: str, drawn: Tensor, weights: list[int]) -> None:
    """Fail unless ids were drawn about as often as three weights say."""
    total = len(drawn) / sum(weights)
    counts = drawn.bincount(minlength=3).tolist()
    wanted = [total * weight for weight in weights]
    chi_squared = sum((c - w) ** 2 / w for c, w in zip(counts, wanted, strict=True))
    if chi_squared > 13.8:  # two degrees of freedom: once in a thousand
        fail(f"weights {weights}, {given}: counts", counts, f"about {wanted}")


@_SUITE.property("draw", hint="count: draw i with its probability, whatever the trick")
def _frequencies(p: SimpleNamespace) -> None:
    """Tokens are drawn with the probabilities of the softmax."""
    weights = [1, 2, 5]
    for shift, done in (  # what the filters have done already isn't done again
        (0.0, {}),
        (200.0, {}),
        (0.0, {"temperature": 2.0, "top_k": 1, "top_p": 0.1, "min_p": 0.9}),
    ):
        generator = torch.Generator().manual_seed(0)
        logits = (_logits(weights) + shift).repeat(_DRAWS, 1)
        before = logits.clone()
        drawn = p.draw(logits, [_row(**done) for _ in range(_DRAWS)], generator)
        given = (
            f"{_DRAWS} draws from their logs + {shift:g}, rows that asked for {done}"
        )
        _expect_shares(given, drawn, weights)
        if not torch.equal(logits, before):
            fail(f"{given}: the logits, afterwards", "changed", "as they were")


@_SUITE.property("draw", hint="each row its own noise, from whichever generator it is")
def _frequencies_seeded(p: SimpleNamespace) -> None:
    """So they are in seeded rows, and in free rows that stand among others."""
    weights = [1, 2, 5]
    rows = [_row(seed=seed) for seed in range(_DRAWS)]
    drawn = p.draw(_logits(weights).expand(_DRAWS, -1), rows)
    _expect_shares(f"{_DRAWS} rows with seeds of their own", drawn, weights)
    generator = torch.Generator().manual_seed(0)
    rows = [_row(temperature=i % 2) for i in range(_DRAWS)]
    drawn = p.draw(_logits(weights).expand(_DRAWS, -1), rows, generator)[1::2]
    _expect_shares(f"{_DRAWS // 2} draws, each beside a greedy row", drawn, weights)


@_SUITE.property(
    "draw", hint="a removed token has probability 0: can your noise still pick it?"
)
def _never_removed(p: SimpleNamespace) -> None:
    """A token that a filter removed is never drawn."""
    logits = _logits([1, 0, 1, 0]).expand(_DRAWS, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = p.draw(logits, [_row() for _ in range(_DRAWS)], generator)
    given = f"weights [1, 0, 1, 0], {_DRAWS} draws: which ids came"
    expect(given, sorted(set(drawn.tolist())), [0, 2])


@_SUITE.property(
    "draw", hint="a row with a generator draws from that one and from no other"
)
def _neighbours(p: SimpleNamespace) -> None:
    """A seeded row draws the same alone, with neighbours, and anywhere in the batch."""
    logits = torch.zeros(1, 50)
    for seed in range(5):
        row = _row(seed=seed)
        alone = [p.draw(logits, [row]).tolist()[0] for _ in range(3)]
        batches = (
            [_row(seed=seed), _row()],
            [_row(seed=99), _row(seed=seed)],
            [_row(seed=99), _row(seed=98), _row(seed=seed)],
            [_row(temperature=0), _row(), _row(seed=seed)],
        )
        for rows in batches:
            at = next(
                i for i, row in enumerate(rows)
                if row.generator and row.generator.initial_seed() == seed
            )  # fmt: skip
            batch = logits.expand(len(rows), -1)
            got = [p.draw(batch, rows).tolist()[at] for _ in range(3)]
            given = f"50 equal weights, seed {seed} as row {at} of {len(rows)}"
            expect(f"{given}, three draws", got, alone)


@_SUITE.property(
    "draw", hint="keep using the row's generator; don't seed a new one each time"
)
def _goes_on(p: SimpleNamespace) -> None:
    """A seeded row goes on from draw to draw, and differs from other seeds."""
    logits = torch.zeros(1, 50)
    row = _row(seed=0)
    drawn = [p.draw(logits, [row]).item() for _ in range(20)]
    if len(set(drawn)) < 5:
        fail(
            "50 equal weights, 20 draws of one seeded row",
            drawn,
            "more than a few tokens",
        )
    firsts = [p.draw(logits, [_row(seed=seed)]).item() for seed in range(20)]
    if len(set(firsts)) < 5:
        fail("50 equal weights, the first draw of seeds 0 to 19", firsts, "many tokens")


@_SUITE.property("draw", hint="pass `generator` on to whatever makes the noise")
def _shared_generator(p: SimpleNamespace) -> None:
    """Rows without a seed draw from the generator that is handed in."""
    logits = torch.zeros(8, 1000)
    for what, other in (("and one more", None), ("and one with", 0)):

        def drawn(generator: torch.Generator | None = None, other: Any = other) -> list:
            rows = [*(_row() for _ in range(7)), _row(seed=other)]
            return p.draw(logits, rows, generator).tolist()[:7]

        first, second, third = (
            drawn(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
        )
        rows = f"7 rows without a seed {what}, 1000 equal weights"
        given = f"{rows}, a generator with seed"
        expect(f"{given} 5, for the second time", second, first)
        if third == first:
            fail(f"{given} 6", third, "other tokens than with seed 5")
        with torch.random.fork_rng(devices=[]):
            first, second, third = (drawn() for _ in map(torch.manual_seed, (5, 5, 6)))
        given = f"{rows}, no generator, after torch.manual_seed"
        expect(f"{given}(5), for the second time", second, first)
        if third == first:
            fail(f"{given}(6)", third, "other tokens than after (5)")


# ----- logprobs, and the whole


@_SUITE.property("gather_logprobs", hint="gather wants a column of ids; you want [N]")
def _chosen(p: SimpleNamespace) -> None:
    """The chosen tokens come back, each with its own log-probability: both [N]."""
    logprobs = _logits([4, 2, 1], [1, 3, 2]).log_softmax(-1)
    for count in (None, 1):
        got = p.gather_logprobs(logprobs, torch.tensor([1, 2]), count)
        given = f"weights [4, 2, 1] and [1, 3, 2], tokens 1 and 2, {count} asked"
        expect(f"{given}: token_ids", got.token_ids, [1, 2])
        wanted = [math.log(2 / 7), math.log(2 / 6)]
        expect(f"{given}: logprobs", got.logprobs, wanted)


@_SUITE.property("gather_logprobs", hint="count the tokens that are strictly likelier")
def _ranks(p: SimpleNamespace) -> None:
    """A rank of 1 is the likeliest; equally likely tokens share the better rank."""
    logprobs = _logits([4, 2, 2, 1]).log_softmax(-1).expand(4, -1)
    got = p.gather_logprobs(logprobs, torch.arange(4), 1)
    expect("weights [4, 2, 2, 1]: ranks of ids 0 to 3", got.ranks, [1, 2, 2, 4])
    got = p.gather_logprobs(logprobs, torch.arange(4), None)
    given = (
        "weights [4, 2, 2, 1], no logprobs asked: ranks, top_token_ids, top_logprobs"
    )
    expect(given, [got.ranks, got.top_token_ids, got.top_logprobs], [None] * 3)
    logprobs = _logits([4, 2, 1], [1, 3, 2]).log_softmax(-1)
    got = p.gather_logprobs(logprobs, torch.tensor([1, 0]), 1)
    expect("weights [4, 2, 1] and [1, 3, 2], tokens 1 and 0: ranks", got.ranks, [2, 3])


@_SUITE.property("gather_logprobs", hint="0 is not None: it asks for the chosen token")
def _no_top(p: SimpleNamespace) -> None:
    """A count of 0 gives ranks, and none of the likeliest."""
    logprobs = _logits([4, 2, 1]).log_softmax(-1)
    got = p.gather_logprobs(logprobs, torch.tensor([1]), 0)
    expect("weights [4, 2, 1], token 1, 0 asked: ranks", got.ranks, [2])
    expect(
        "weights [4, 2, 1], token 1, 0 asked: top_token_ids", got.top_token_ids, [[]]
    )
    given = "weights [4, 2, 1], token 1, 0 asked: shape of top_logprobs"
    expect(given, list(got.top_logprobs.shape), [1, 0])


@_SUITE.property(
    "gather_logprobs", hint="topk of the log-probabilities, capped at the vocabulary"
)
def _top(p: SimpleNamespace) -> None:
    """The k likeliest come in order, and k may be larger than the vocabulary."""
    logprobs = _logits([1, 4, 3], [3, 1, 4]).log_softmax(-1)
    ranking = torch.tensor([[1, 2, 0], [2, 0, 1]])
    for count in (1, 2, 3, 9):
        got = p.gather_logprobs(logprobs, torch.tensor([0, 0]), count)
        given = f"weights [1, 4, 3] and [3, 1, 4], {count} asked"
        wanted = ranking[:, :count]
        expect(f"{given}: top_token_ids", got.top_token_ids, wanted)
        values = logprobs.gather(-1, wanted)
        expect(f"{given}: top_logprobs", got.top_logprobs, values)


@_SUITE.property(
    "sample", hint="take log_softmax before anything else happens to the logits"
)
def _raw(p: SimpleNamespace) -> None:
    """Logprobs are the model's own: before penalties, temperature and filters."""
    logits = _logits([3, 1])
    row = _row(temperature=0.1, top_k=1, output=[0], presence_penalty=1.0, logprobs=2)
    got = p.sample(logits, [row])
    wanted = plain(logits.log_softmax(-1))[0]
    given = "weights [3, 1], strong parameters"
    expect(f"{given}: logprob of the token", got.logprobs, wanted[:1])
    expect(f"{given}: top_logprobs", got.top_logprobs, [wanted])
    row = _row(stop=[0], temperature=0, min_tokens=1, logprobs=2)
    got = p.sample(logits, [row])
    given = "weights [3, 1], min_tokens protects token 0"
    expect(
        f"{given}: token, its logprob", [got.token_ids, got.logprobs], [[1], wanted[1:]]
    )
    expect(f"{given}: top_token_ids", got.top_token_ids, [[0, 1]])


@_SUITE.property("sample", hint="draw from what the filters leave, as `generator` says")
def _sampled(p: SimpleNamespace) -> None:
    """Tokens are drawn from what the filters leave; `generator` is for rows without
    their own.
    """
    logits = _logits([4, 3, 2, 1]).expand(40, -1)
    for name, value in (("top_k", 2), ("top_p", 0.5), ("min_p", 0.7)):
        rows = [_row(seed=seed, **{name: value}) for seed in range(40)]
        got = sorted(set(p.sample(logits, rows).token_ids.tolist()))
        given = f"40 rows of weights [4, 3, 2, 1], {name} {value}: which ids came"
        expect(given, got, [0, 1])
    logits, rows = torch.zeros(8, 1000), [_row() for _ in range(8)]
    seeded = [torch.Generator().manual_seed(5) for _ in range(2)]
    drawn = [p.sample(logits, rows, each).token_ids.tolist() for each in seeded]
    given = "8 rows of 1000 equal weights, a generator with seed 5"
    expect(f"{given}, for the second time", drawn[1], drawn[0])


@_SUITE.property(
    "sample", hint="the caller may read the logits again: write to a copy of them"
)
def _logits_stay(p: SimpleNamespace) -> None:
    """The logits that were passed in stay as they were."""
    for params in (
        {"temperature": 0.5},
        {"output": [0], "presence_penalty": 1.0},
        {"stop": [1], "min_tokens": 1},
        {"top_k": 1, "min_p": 0.5, "top_p": 0.5},
    ):
        logits = _logits([3, 1])
        p.sample(logits, [_row(**params)])
        expect(
            f"weights [3, 1], {params}: the logits afterwards", logits, _logits([3, 1])
        )


@_SUITE.property(
    "sample", hint="the rows may ask for different counts: which is enough?"
)
def _most_logprobs(p: SimpleNamespace) -> None:
    """K is the largest `logprobs` of the batch, whichever row asks."""
    for counts, wanted in (((None, 2), 2), ((3, 1), 3), ((1, 3), 3), ((0, None), 0)):
        rows = [_row(temperature=0, logprobs=count) for count in counts]
        got = p.sample(torch.zeros(2, 4), rows).top_token_ids
        given = f"two rows with logprobs {counts}: shape of top_token_ids"
        expect(given, None if got is None else list(got.shape), [2, wanted])


@_SUITE.property(
    "sample",
    hint="the dtype of the logits decides how a log_softmax is rounded: convert first",
)
def _half(p: SimpleNamespace) -> None:
    """Logits in bfloat16 or float16 are computed with in float32."""
    for dtype in (torch.bfloat16, torch.float16):
        got = p.sample(torch.zeros(1, 3, dtype=dtype), [_row(temperature=0)]).logprobs
        expect(f"three equal logits in {dtype}", got, [math.log(1 / 3)])
        expect("dtype of the logprobs", got.dtype, torch.float32)
        logits = torch.tensor([[1024.0, 1024.0]], dtype=dtype)
        row = _row(temperature=0, output=[0], presence_penalty=0.125)
        given = f"logits [1024, 1024] in {dtype}, presence_penalty 0.125 on token 0"
        expect(f"{given}: token", p.sample(logits, [row]).token_ids, [1])
        row = _row(temperature=1e-5, seed=0)
        given = f"logits [1, 8] in {dtype}, temperature 1e-5: token"  # 8e5 in float16
        logits = torch.tensor([[1.0, 8.0]], dtype=dtype)
        expect(given, p.sample(logits, [row]).token_ids, [1])


@_SUITE.property(
    "check_logits", "sample", hint="one amax per row finds NaN, +inf and all -inf"
)
def _bad_rows(p: SimpleNamespace) -> None:
    """A row of NaN, with +inf, or with nothing left is a ValueError naming the row."""
    for bad in ([math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]):
        logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], bad])
        for name, call in (
            ("check_logits", lambda x=logits: p.check_logits(x)),
            ("sample", lambda x=logits: p.sample(x, [_row()] * 3)),
        ):
            given = f"{name}, rows [0, 0], [0, 0] and {bad}"
            expect_error(given, call, ValueError, "2")


@_SUITE.property(
    "sample", hint="who is refused after the draw has cost the others their numbers"
)
def _bad_rows_draw_nothing(p: SimpleNamespace) -> None:
    """A row that can't be sampled is refused, and moves nobody's generator."""
    cases = [(order, (1, 2)) for order in ([0, 1], [1, 0])]
    for order, seeds in (*cases, ([0, 1], (1, None)), ([0, 1], (None, 2))):
        logits = torch.tensor([[0.0, 0.0], [math.nan, 0.0]])[order]
        rows = [_row(seed=seed) for seed in seeds]
        given = f"a row [0, 0] and a row [nan, 0], in order {order}, seeds {seeds}"
        own = [row.generator for row in rows if row.generator]
        before = [generator.get_state() for generator in own]
        bad = str(order.index(1))
        expect_error(given, lambda: p.sample(logits, rows), ValueError, bad)  # noqa: B023
        for state, generator in zip(before, own, strict=True):
            if not torch.equal(generator.get_state(), state):
                fail(f"{given}: a generator, afterwards", "has moved", "is as it was")


@_SUITE.property(
    "check_logits", hint="a sum of finite numbers may be infinite: look at each maximum"
)
def _large_rows(p: SimpleNamespace) -> None:
    """Rows of large finite logits pass, and so does one with some -inf."""
    for rows in ([[3e38, 0.0]] * 2, [[-3e38, -3e38]] * 2, [[-math.inf, 0.0]]):
        try:
            p.check_logits(torch.tensor(rows))
        except ValueError as error:
            fail(f"check_logits, rows {rows}", f"ValueError: {error}", "no error")


# ----- the exercises: pieces that the package doesn't have

_TRACE = [4, 25, 9, 1, 9, 16]


def _judge_trace(p: SimpleNamespace, name: str, right: Any, slips: list) -> None:
    """Fail with what led to a wrong answer, never with the right one."""
    answer = p.survivors()
    if not isinstance(answer, dict) or name not in answer:
        fail("survivors()", answer, f"a dict with the key {name!r}")
    got = answer[name]
    got = sorted(got) if isinstance(got, list | tuple | set) else got
    if plain(got) == plain(right):
        return
    about = next((why for slip, why in slips if plain(got) == plain(slip)), None)
    if about is None and isinstance(right, float):
        number = isinstance(answer[name], float | int)
        about = "another share" if number else "a number, such as 3 / 7"
    elif about is None and isinstance(got, list) and len(got) == len(right):
        about = "other ids: ids are places, 0 to 5, not weights"
    elif about is None:
        about = f"{len(right)} ids"
    given = f"weights {_TRACE}, temperature 2, min_p 0.5, top_k 3, top_p 0.7: {name}"
    fail(given, got, about)


@_SUITE.property("survivors", hint="what does temperature 2 make of a weight of 25?")
def _trace_min_p(p: SimpleNamespace) -> None:
    """After min_p, the ids are those that the warmed distribution leaves."""
    slips = [
        ([1, 5], "min_p sees the distribution after the temperature"),
        ([1], "the threshold is a share of the likeliest, not a probability"),
        ([], "the threshold is a share of the likeliest, not a probability"),
        ([0, 1, 2, 4, 5], "half as likely as the likeliest is the least that stays"),
    ]
    _judge_trace(p, "min_p", [1, 2, 4, 5], slips)


@_SUITE.property("survivors", hint="k tokens stay; when two are equal, which?")
def _trace_top_k(p: SimpleNamespace) -> None:
    """After top_k, as many ids are left as the contract says."""
    slips = [
        ([1, 2, 4, 5], "a tie lets nobody through: k means k"),
        ([1, 4, 5], "of two equally likely tokens, the lower id stays"),
    ]
    _judge_trace(p, "top_k", [1, 2, 5], slips)


@_SUITE.property("survivors", hint="divide by the sum of what top_k has left")
def _trace_top_p(p: SimpleNamespace) -> None:
    """After top_p, the ids are the smallest set that reaches it."""
    slips = [
        ([1, 2, 5], "top_p sees the survivors renormalised: their sum is 1 again"),
        ([1], "the token that crosses the line stays"),
    ]
    _judge_trace(p, "top_p", [1, 5], slips)


@_SUITE.property(
    "survivors", hint="a share of what? of the sum of what the last filter left"
)
def _trace_draw(p: SimpleNamespace) -> None:
    """The chance of id 1 in the draw is its share of what is left."""
    slips = [
        (25 / 41, "what is drawn from is the distribution after the temperature"),
        (5 / 12, "renormalise over the survivors of the last filter"),
        (5 / 18, "renormalise over the survivors of the last filter"),
        (25 / 64, "renormalise over the survivors of the last filter"),
    ]
    _judge_trace(p, "chance", 5 / 9, slips)


@_SUITE.property(
    "apply_typical_p",
    hint="rank by the distance of a token's surprise, -log p, from the mean surprise",
)
def _typical_order(p: SimpleNamespace) -> None:
    """typical_p keeps the tokens whose surprise is nearest to the entropy."""
    for weights, typical_p, kept in (
        ([6, 1, 1], 0.4, [0]),
        ([5, 2, 2, 1], 0.1, [1]),
        ([5, 2, 2, 1], 0.3, [1, 2]),
        ([1, 5, 2, 2], 0.3, [2, 3]),
        ([2, 2, 4, 2], 0.25, [0, 1]),
    ):
        for shift in (0.0, 200.0, -200.0):  # the softmax doesn't change
            given = f"logs of weights {weights}" + f" + {shift:g}" * (shift != 0)
            got = p.apply_typical_p(_logits(weights) + shift, _column(typical_p))
            expect(f"{given}, typical_p {typical_p}: kept ids", _kept(got), [kept])


@_SUITE.property(
    "apply_typical_p", hint="the same rule as in top_p, on another ranking"
)
def _typical_crossing(p: SimpleNamespace) -> None:
    """The token that crosses the line stays, and so does at least one."""
    for weights, typical_p, kept in (
        ([5, 2, 2, 1], 1e-6, [1]),
        ([5, 2, 2, 1], 1e-50, [1]),  # 0 in float32
        ([5, 2, 2, 1], 0.5, [0, 1, 2]),
        ([5, 2, 2, 1], 0.95, [0, 1, 2, 3]),
        ([1, 1], 0.5, [0]),  # exactly reached
        ([1, 1, 1, 1], 0.5, [0, 1]),
    ):
        got = p.apply_typical_p(_logits(weights), _column(typical_p))
        given = f"weights {weights}, typical_p {typical_p}: kept ids"
        expect(given, _kept(got), [kept])


@_SUITE.property(
    "apply_typical_p",
    hint="0 times infinity is NaN: what does a removed token add to the entropy?",
)
def _typical_removed(p: SimpleNamespace) -> None:
    """Tokens that an earlier filter removed change nothing and don't come back."""
    for typical_p, kept in ((0.3, [2, 3]), (0.5, [0, 2, 3]), (1.0, [0, 2, 3, 4])):
        got = p.apply_typical_p(_logits([5, 0, 2, 2, 1]), _column(typical_p))
        given = f"weights [5, 0, 2, 2, 1], typical_p {typical_p}: kept ids"
        expect(given, _kept(got), [kept])
    for typical_p in (0.5, 1e-50, 1.0):
        got = p.apply_typical_p(_logits([0, 3, 0]), _column(typical_p))
        expect(f"weights [0, 3, 0], typical_p {typical_p}: kept ids", _kept(got), [[1]])
    got = p.apply_typical_p(
        _logits([5, 0, 2, 2, 1], [0, 5, 2, 2, 1]), _column(0.3, 0.3)
    )
    given = "weights [5, 0, 2, 2, 1] and [0, 5, 2, 2, 1], typical_p 0.3: kept ids"
    expect(given, _kept(got), [[2, 3], [2, 3]])


@_SUITE.property(
    "apply_typical_p", hint="every row has its own entropy, and 1 switches it off"
)
def _typical_rows(p: SimpleNamespace) -> None:
    """Each row has its own typical_p and its own entropy, and 1 keeps all."""
    logits = _logits([5, 2, 2, 1], [1, 1, 12, 1], [5, 2, 2, 1])
    got = p.apply_typical_p(logits, _column(0.3, 0.3, 1.0))
    given = "weights [5, 2, 2, 1], [1, 1, 12, 1], [5, 2, 2, 1], typical_p 0.3, 0.3, 1"
    expect(f"{given}: kept ids", _kept(got), [[1, 2], [2], [0, 1, 2, 3]])
    rare = _logits([1.0, *[1e-9] * 50])
    got = p.apply_typical_p(rare, _column(1.0))
    given = "weights [1, 50 times 1e-9], typical_p 1: how many are kept"
    expect(given, len(_kept(got)[0]), 51)


@_SUITE.property("apply_typical_p", hint="use masked_fill on the logits you were given")
def _typical_only_removes(p: SimpleNamespace) -> None:
    """What is kept, and what was passed in, stays as it was."""
    for count in (1, 2):
        logits = _logits(*[[5, 2, 2, 1]] * count)
        before, column = logits.clone(), _column(*[0.3, 1.0][:count])
        got = p.apply_typical_p(logits, column)
        given = f"{count} of weights [5, 2, 2, 1]"
        expect(f"{given}: the logits that were passed in, afterwards", logits, before)
        wanted = _column(*[0.3, 1.0][:count])
        expect(f"{given}: the column, afterwards", column, wanted)
        expect(f"{given}: the logits that are kept", got[0, 1:3], before[0, 1:3])
        expect(f"{given}: dtype", got.dtype, before.dtype)


def _hash_elsewhere(value: Any, here: Callable[[Any], int] = hash) -> int:
    """Python's hash as another process has it: that of a text differs, by intent."""
    texts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(each, str | bytes) for each in texts):
        return here((value, "elsewhere"))
    return here(value)


@_SUITE.property("draw_at", hint="make the noise of a row from its own seed and step")
def _at_alone(p: SimpleNamespace) -> None:
    """A row's token depends on its logits, its seed and its step, on nothing else."""
    flat = torch.zeros(1, 1000)
    alone = {s: p.draw_at(flat, [s], [3]).tolist()[0] for s in range(5)}
    again = p.draw_at(flat, [0], [3]).tolist()[0]
    expect("1000 equal weights, seed 0, step 3, for the second time", again, alone[0])
    for seeds in ([0, 1], [1, 0], [4, 2, 0, 3, 1]):
        got = p.draw_at(flat.expand(len(seeds), -1), seeds, [3] * len(seeds))
        given = f"1000 equal weights, seeds {seeds} in one batch, all at step 3"
        expect(given, got, [alone[s] for s in seeds])
    seeds, steps = [7, 2, 7, 2], [5, 3, 0, 9]
    one = [
        p.draw_at(flat, [seed], [step]).tolist()[0]
        for seed, step in zip(seeds, steps, strict=True)
    ]
    for logits in (flat.expand(4, -1), flat.repeat(4, 1)):
        given = f"1000 equal weights, seeds {seeds}, steps {steps}"
        told = list(seeds), list(steps)
        expect(given, p.draw_at(logits, *told), one)
        expect(f"{given}: both lists, afterwards", told, [seeds, steps])
    certain = _logits([1, 0, 0], [0, 0, 1], [0, 1, 0])
    given = "weights [1, 0, 0], [0, 0, 1], [0, 1, 0]"
    before = certain.clone()
    expect(given, p.draw_at(certain, [0, 0, 1], [4, 4, 0]), [0, 2, 1])
    expect(f"{given}: their logs, afterwards", certain, before)
    with mock.patch("builtins.hash", _hash_elsewhere):
        elsewhere = p.draw_at(flat, [0], [3]).tolist()[0]
    given = (
        "1000 equal weights, seed 0, step 3, where hash() of a text is another one, "
    )
    expect(f"{given}as in every new process", elsewhere, alone[0])


@_SUITE.property("draw_at", hint="torch.Generator() makes one that is nobody else's")
def _at_global(p: SimpleNamespace) -> None:
    """PyTorch's global generator is neither used nor changed."""
    flat = torch.zeros(1, 1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = p.draw_at(flat, [5], [0]).tolist()
        if not torch.equal(before, torch.get_rng_state()):
            fail("the state of the global generator, afterwards", "changed", "the same")
        torch.manual_seed(1)
        given = "seed 5, step 0, after torch.manual_seed(1) instead of (0)"
        expect(given, p.draw_at(flat, [5], [0]), first)


class _Operations(TorchDispatchMode):
    """Counts the operations that PyTorch carries out."""

    count = 0

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return op(*args, **(kwargs or {}))


@_SUITE.property("draw_at", hint="reach a step without going through those before it")
def _at_cost(p: SimpleNamespace) -> None:
    """A late step takes no more operations than the first."""
    flat = torch.zeros(1, 1000)
    with _Operations() as first:
        p.draw_at(flat, [5], [0])
    with _Operations() as late:
        p.draw_at(flat, [5], [50])
    if late.count > first.count:
        given = "seed 5, step 50: PyTorch's operations for one draw"
        fail(given, late.count, f"{first.count}, as at step 0")

    def seconds(step: int) -> float:
        start = time.perf_counter()
        p.draw_at(flat, [5], [step])
        return time.perf_counter() - start

    early = min(seconds(0) for _ in range(3))
    if all(seconds(20_000) > 20 * early + 0.005 for _ in range(3)):
        given = "seed 5, step 20,000: the time of one draw"
        fail(given, "more than 20 times that of step 0", "about the same")


@_SUITE.property(
    "draw_at", hint="count: draw i with its probability, whatever the trick"
)
def _at_frequencies(p: SimpleNamespace) -> None:
    """Over many steps, and over many seeds, tokens come with their probabilities."""
    weights = [1, 0, 2, 5]
    many = list(range(_DRAWS))
    logits = (_logits(weights) + 200).expand(_DRAWS, -1)  # the softmax is the same
    wanted = [_DRAWS * weight / 8 for weight in weights]
    for what, seeds, steps in (
        # Not one seed's 4000 steps: who plays through all steps would wait for minutes.
        ("draws, 100 steps of 40 seeds", [i // 100 for i in many], [*range(100)] * 40),
        ("seeds at step 7", many, [7] * _DRAWS),
    ):
        counts = p.draw_at(logits, seeds, steps).bincount(minlength=4).tolist()
        pairs = [(c, w) for c, w in zip(counts, wanted, strict=True) if w]
        chi_squared = sum((c - w) ** 2 / w for c, w in pairs)
        if counts[1] or chi_squared > 13.8:  # two degrees: once in a thousand
            given = f"weights {weights}, {_DRAWS} {what}: counts"
            fail(given, counts, f"about {wanted}")


def _runs(p: SimpleNamespace, seed: int, starts: list[int]) -> list[tuple[int, ...]]:
    """The tokens that `seed` draws in four steps from each of `starts` on."""
    steps = sorted({start + i for start in starts for i in range(4)})
    drawn = p.draw_at(torch.zeros(len(steps), 1000), [seed] * len(steps), steps)
    token = dict(zip(steps, drawn.tolist(), strict=True))
    return [tuple(token[start + i] for i in range(4)) for start in starts]


@_SUITE.property(
    "draw_at",
    hint="which other (seed, step) gives the same number in your mix of the two?",
)
def _at_streams(p: SimpleNamespace) -> None:
    """No seed's tokens are another seed's tokens, moved by some steps."""
    _at_cost(p)  # who plays through all steps would never reach the far ones
    # Seeds whose digits, bits or sums meet; then seed 0 where a factor of up to a
    # million would put seed 1: some multiple of 2,000 is within 2,000 steps of it, and
    # seed 1 goes through those one by one.
    runs: dict[tuple[int, ...], tuple[int, int]] = {}
    near, stride = list(range(40)), 2000
    powers = [base**n for base, most in ((2, 40), (10, 13)) for n in range(8, most)]
    far = [x * stride for x in range(1, 502)] + [
        x + d for x in (*powers, 998_244_353, 10**9) for d in (-1, 0, 1, 7, 9)
    ]
    for seed, starts in (
        *((seed, near) for seed in (0, 2, 4, 8, 9, 11)),
        (1, list(range(stride))),
        (0, far),
    ):
        for first, run in zip(starts, _runs(p, seed, starts), strict=True):
            other, there = runs.setdefault(run, (seed, first))
            if (other, there) != (seed, first):
                fail(
                    f"1000 equal weights, seed {seed}, steps {first} to {first + 3}",
                    f"the tokens of seed {other}, steps {there} to {there + 3}",
                    "tokens of its own",
                )


@_SUITE.property(
    "draw_at",
    hint="does your mix use all bits of a seed? Python's own hash() of an int is its "
    "remainder, and a float keeps 53 bits",
)
def _at_apart(p: SimpleNamespace) -> None:
    """Two seeds that lie far apart draw different tokens."""
    first = {seed: _runs(p, seed, [0, 8]) for seed in (0, 1)}
    for seed in (0, 1):
        ends = (2**62, 2**63 - 1 - seed)
        for apart in (2**31 - 1, 2**31, 2**32, 2**53, 2**61 - 1, *ends):
            if _runs(p, seed + apart, [0, 8]) == first[seed]:
                given = f"1000 equal weights, seed {seed + apart}, steps 0 to 3"
                fail(given, f"the tokens of seed {seed}", "tokens of its own")


@_SUITE.property(
    "draw_at",
    hint="seeds go up to 2**63 - 1: floats are too coarse, products too large",
)
def _at_large(p: SimpleNamespace) -> None:
    """The largest seeds work, and neighbours among them differ."""
    flat = torch.zeros(20, 1000)
    steps = list(range(20))
    last = p.draw_at(flat, [2**63 - 1] * 20, steps).tolist()
    before = p.draw_at(flat, [2**63 - 2] * 20, steps).tolist()
    if sum(a == b for a, b in zip(last, before, strict=True)) > 3:
        fail("seeds 2**63 - 1 and 2**63 - 2, 20 steps each", last, "other tokens")
