"""What has to be true of GPTQ and of its layout (notebook 15)."""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from folovllm_lite import gptq as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.gptq import GPTQConfig, Quantized

_SUITE = gptq = Suite(
    package,
    """Judge the pieces of GPTQ, or notebook 15's exercises.

    `checks.gptq(gptq=mine, pack=mine_too)` judges functions, `checks.gptq(module)` a
    module's. `quantize_columns` is judged as what the package's `gptq` calls for the
    columns. The exercises are judged as `trace_columns`, `regroup` and `choose_bits`.
    """,
    methods={"quantize_columns": "gptq._quantize_columns"},
)


# ----- what the properties share


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _inputs(tokens: int, K: int, seed: int = 0) -> Tensor:
    """Inputs [tokens, K] that depend on each other, large and small in any order."""
    mix = torch.eye(K) + 0.5 * _random(K, K, seed=seed) / K**0.5
    # In falling or rising order, sorting them would be its own inverse.
    sizes = torch.logspace(-0.5, 0.5, K)[_random(K, seed=seed + 2).argsort()]
    return _random(tokens, K, seed=seed + 1) @ mix * sizes


def _hessian(K: int, seed: int = 0, dead: tuple[int, ...] = ()) -> Tensor:
    x = _inputs(4 * K, K, seed)
    x[:, list(dead)] = 0
    return x.T @ x / len(x)


def _config(group_size: int = -1, sym: bool = True, **more: Any) -> GPTQConfig:
    return GPTQConfig(group_size, sym, **more)


def _rounded(weight: Tensor, sym: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row, computed here on its own."""
    rows = []
    for row in weight.double().tolist():
        low, high = min(0.0, *row), max(0.0, *row)
        if sym:
            high = max(-low, high)
            low = -high
        scale = float(torch.tensor((high - low) / 15).half()) or 1.0
        zero = 8 if sym else min(15, max(0, round(-low / scale)))
        rows.append((scale, zero))
    scale, zero = torch.tensor(rows, dtype=torch.float64).T
    return scale, zero


def _nearest(column: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((column / scale).round() + zero).clamp(0, 15)


def _oracle(weight: Tensor, hessian: Tensor, config: GPTQConfig) -> dict:
    """GPTQ without Cholesky and without blocks: a new inverse for every column.

    Columns that are left make up for an error by -error / inverse[0, 0] * inverse[0].
    """
    N, K = weight.shape
    size = K if config.group_size == -1 else config.group_size
    order = list(range(K))
    if config.desc_act:
        order.sort(key=lambda k: -float(hessian[k, k]))
    H = hessian.double()[order][:, order]
    diagonal = H.diagonal()  # a view
    dead = diagonal == 0
    diagonal += config.damp_percent * diagonal[~dead].mean()
    diagonal[dead] = 1
    w = weight.double()[:, order]
    levels, scales, zeros = torch.zeros(N, K), [], []
    for k in range(K):
        if k % size == 0:
            scale, zero = _rounded(w[:, k : k + size], config.sym)
            scales.append(scale)
            zeros.append(zero)
        level = _nearest(w[:, k], scale, zero)
        inverse = torch.linalg.inv(H[k:, k:])
        error = w[:, k] - (level - zero) * scale
        w[:, k:] -= torch.outer(error / inverse[0, 0], inverse[0])
        levels[:, order[k]] = level.float()
    g_idx = torch.zeros(K, dtype=torch.int64)
    g_idx[order] = torch.arange(K) // size
    return {
        "levels": levels,
        "scales": torch.stack(scales, 1).float(),
        "zeros": torch.stack(zeros, 1).float(),
        "g_idx": g_idx,
    }


@cache
def _solved(K: int, config: GPTQConfig, dead: tuple[int, ...]) -> dict:
    """The oracle's answer for a random layer of 16 outputs."""
    return _oracle(_random(16, K, seed=K), _hessian(K, K, dead), config)


def _judge(
    quantize: Callable, K: int, config: GPTQConfig, dead: tuple[int, ...] = ()
) -> None:
    """Fail unless it quantizes the random layer as the oracle does."""
    got = quantize(_random(16, K, seed=K), _hessian(K, K, dead), config)
    n, order = config.group_size, ", act order" if config.desc_act else ""
    damp = f", damp_percent {config.damp_percent}" * (config.damp_percent != 0.01)
    zero = "".join(f", input {k} always 0" for k in dead)
    given = f"[16, {K}], group_size {n}, sym={config.sym}{order}{damp}{zero}"
    _same(given, got, _solved(K, config, dead))


_DTYPES = {
    "g_idx": torch.int32,
    "scales": torch.float16,
    "zeros": torch.uint8,
    "levels": torch.uint8,
}


def _same(given: str, got: Quantized, wanted: dict) -> None:
    """Fail at the first difference, told by where it is."""
    for name, dtype in _DTYPES.items():
        theirs, ours = getattr(got, name), wanted[name]
        if list(theirs.shape) != list(ours.shape):
            fail(f"{given}: {name}", list(theirs.shape), f"shape {list(ours.shape)}")
        apart = (theirs.double() - ours.double()).abs() > 1e-6
        if bool(apart.any()):
            at = tuple(apart.nonzero()[0].tolist())
            fail(f"{given}: {name}{list(at)}", float(theirs[at]), float(ours[at]))
        if theirs.dtype != dtype:
            fail(f"{given}: dtype of {name}", theirs.dtype, dtype)


def _weight(q: Quantized) -> Tensor:
    """The weight that levels stand for, computed here on its own."""
    return torch.stack([
        (q.levels[:, k].float() - q.zeros[:, g].float()) * q.scales[:, g].float()
        for k, g in enumerate(q.g_idx.tolist())
    ], 1)  # fmt: skip


def _example(
    sym: bool = True,
    v2: bool = False,
    seed: int = 0,
    K: int = 16,
    G: int = 2,
    N: int = 8,
) -> tuple:
    """A layer of N outputs and K inputs in G groups, in any order, and its config.

    What is stored of a zero point must not depend on its neighbours: all differ.
    """
    config = _config(8, sym, checkpoint_format="gptq_v2" if v2 else "gptq")
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 16, (N, K), generator=generator).to(torch.uint8)
    zeros = torch.full((N, G), 8)
    if not sym:
        zeros = torch.arange(N * G).view(G, N).T % 15 + 1
    scales = torch.rand(N, G, generator=generator).half() + 0.01
    g_idx = torch.randperm(K, generator=generator).int() % G
    return Quantized(levels, scales, zeros.to(torch.uint8), g_idx), config


def _stored(q: Quantized, v2: bool) -> dict[str, Tensor]:
    """What a checkpoint holds, written digit by digit in hexadecimal."""

    def packed(rows: list[list[int]]) -> Tensor:  # [8 r][n] -> [r, n]
        words = []
        for start in range(0, len(rows), 8):
            eight = rows[start : start + 8]
            columns = zip(*eight, strict=True)
            digits = ["".join(f"{v:x}" for v in column) for column in columns]
            numbers = [int(word[::-1], 16) for word in digits]
            words.append([n - 2**32 if n >= 2**31 else n for n in numbers])
        return torch.tensor(words, dtype=torch.int32)

    zeros = (q.zeros.int() - (0 if v2 else 1)) % 16
    return {
        "qweight": packed(q.levels.T.tolist()),
        "qzeros": packed(zeros.tolist()).T.contiguous(),
        "scales": q.scales.T.contiguous(),
        "g_idx": q.g_idx,
    }


def _equal(given: str, got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        fail(given, f"{list(got.shape)} {got.dtype}",
             f"{list(wanted.shape)} {wanted.dtype}")  # fmt: skip
    expect(given, got, wanted)


# ----- levels


@_SUITE.property("make_grid", hint="what are the least and the greatest level for?")
def _symmetric_grid(p: SimpleNamespace) -> None:
    """A symmetric grid has 0 in the middle; 15 steps are twice the largest weight."""
    for row, scale in (([1.0, -7.5], 1.0), ([15.0, 3.0], 2.0), ([0.0, -3.75], 0.5)):
        got = p.make_grid(torch.tensor([row]), True)
        expect(f"make_grid([{row}], sym=True)", list(got), [[scale], [8.0]])
    got = p.make_grid(torch.tensor([[1.0, -7.5], [0.0, -3.75]]), True)
    given = "make_grid([[1.0, -7.5], [0.0, -3.75]], sym=True)"
    expect(given, list(got), [[1.0, 0.5], [8.0, 8.0]])


@_SUITE.property("make_grid", hint="15 steps lie between 16 levels; 0 has to be one")
def _asymmetric_grid(p: SimpleNamespace) -> None:
    """An asymmetric grid goes from the least weight to the greatest, and holds 0."""
    cases = (
        ([-1.0, 14.0], 1.0, 1.0), ([-15.0, 0.0], 1.0, 15.0), ([5.0, 7.5], 0.5, 0.0),
        ([-7.5, -3.0], 0.5, 15.0), ([-1.2, 6.3], 0.5, 2.0), ([-1.4, 6.1], 0.5, 3.0),
    )  # fmt: skip
    for row, scale, zero in cases:
        got = p.make_grid(torch.tensor([row]), False)
        expect(f"make_grid([{row}], sym=False)", list(got), [[scale], [zero]])
    got = p.make_grid(torch.tensor([[-1.0, 14.0], [-7.5, -3.0]]), False)
    given = "make_grid([[-1.0, 14.0], [-7.5, -3.0]], sym=False)"
    expect(given, list(got), [[1.0, 0.5], [1.0, 15.0]])
    # float16 rounds this scale down: -1e-6 is 17 steps from 0, and 15 the last level.
    _, zero = p.make_grid(torch.tensor([[-1e-6, 0.0]]), False)
    expect("make_grid([[-0.000001, 0]], sym=False): zero point", zero, [15.0])


@_SUITE.property("make_grid", hint="what will a reader of the file multiply with?")
def _grid_is_stored(p: SimpleNamespace) -> None:
    """The scale is a number that float16 can hold, and 1 for a row of zeros."""
    for row in ([1.0, 0.0], [0.001, -0.3], [0.0, 0.0], [1e-8, -1e-8]):
        for sym in (True, False):
            scale, _ = p.make_grid(torch.tensor([row]), sym)
            given = f"make_grid([{row}], sym={sym}): scale"
            if scale.half().float().tolist() != scale.tolist():
                fail(given, f"{float(scale):.9f}", f"{float(scale.half()):.9f}")
            if not float(scale) > 0:
                fail(given, float(scale), "a positive number")
    for sym, scale in ((True, 2.0), (False, 1.0)):
        got, _ = p.make_grid(torch.tensor([[0.0, 0.0], [0.0, 15.0]]), sym)
        expect(f"make_grid([[0, 0], [0, 15]], sym={sym}): scales", got, [1.0, scale])


@_SUITE.property("to_levels", hint="round to the nearest, then count from zero's place")
def _levels(p: SimpleNamespace) -> None:
    """A weight goes to the nearest level, and what lies beyond goes to the last."""
    one = torch.ones(1)
    for w, zero, wanted in (
        (0.0, 8, 8), (1.4, 8, 9), (1.6, 8, 10), (-1.6, 3, 1), (7.6, 8, 15), (-9.0, 8, 0)
    ):  # fmt: skip
        got = p.to_levels(torch.tensor([w]), one, zero * one)
        expect(f"to_levels({w}, scale 1, zero {zero})", got, [float(wanted)])
    got = p.to_levels(torch.tensor([0.3]), torch.tensor([0.25]), 8 * one)
    expect("to_levels(0.3, scale 0.25, zero 8)", got, [9.0])


@_SUITE.property("round_to_nearest", hint="each group of each row has a grid")
def _rounding(p: SimpleNamespace) -> None:
    """Plain rounding takes each weight to the nearest level of its group."""
    for size, sym in ((8, True), (4, False), (-1, True), (-1, False)):
        weight = _random(8, 24, seed=size + 1)[:, :16]  # a slice, as of a layer
        kept = weight.clone()
        got = p.round_to_nearest(weight, _config(size, sym))
        given = f"[8, 24][:, :16], groups of {size}, sym={sym}"
        _same(given, got, _rounded_groups(kept, size, sym))
        expect(f"{given}: the weight is as before", torch.equal(weight, kept), True)


def _rounded_groups(weight: Tensor, size: int, sym: bool) -> dict:
    """Plain rounding, computed here on its own."""
    K = weight.shape[1]
    n = K if size == -1 else size
    grids = [_rounded(part, sym) for part in weight.split(n, 1)]
    scales, zeros = (torch.stack(each, 1) for each in zip(*grids, strict=True))
    group = torch.arange(K) // n
    levels = _nearest(weight.double(), scales[:, group], zeros[:, group])
    return {"levels": levels, "scales": scales, "zeros": zeros, "g_idx": group}


@_SUITE.property("round_to_nearest", hint="in which dtype is the scale computed?")
def _rounding_of_bfloat16(p: SimpleNamespace) -> None:
    """A weight in bfloat16 or float16 is rounded as the same numbers in float32 are."""
    for dtype in (torch.bfloat16, torch.float16):
        weight = _random(8, 16, seed=3).to(dtype)
        for sym in (True, False):
            got = p.round_to_nearest(weight, _config(8, sym))
            given = f"[8, 16] in {dtype}, groups of 8, sym={sym}"
            _same(given, got, _rounded_groups(weight.float(), 8, sym))


@_SUITE.property("round_to_nearest", hint="check_sizes knows which sizes fit")
def _rounding_refuses(p: SimpleNamespace) -> None:
    """A layer that can't be cut into groups, or packed by eights, is refused."""
    for N, K, size, *named in (
        (8, 24, 16, 16, 24), (8, 16, 32, 32, 16), (8, 12, 4, 12), (4, 8, 8, 4)
    ):  # fmt: skip
        expect_error(
            f"{N} outputs, {K} inputs, groups of {size}",
            lambda N=N, K=K, n=size: p.round_to_nearest(_random(N, K), _config(n)),
            ValueError, *map(str, named),
        )  # fmt: skip


# ----- the Hessian


@_SUITE.property("Hessian", hint="sum over tokens, divide once at the end")
def _mean(p: SimpleNamespace) -> None:
    """The Hessian is the mean of x x^T over all tokens, however they arrive."""
    x = _inputs(12, 3)
    wanted = x.T @ x / 12
    for cuts in ((12,), (1, 11), (4, 4, 4), (5, 1, 6)):
        hessian = p.Hessian(3)
        for part in x.split(list(cuts)):
            hessian.add(part)
        expect(f"12 tokens in parts of {cuts}: mean", hessian.mean, wanted)
    hessian = p.Hessian(2)
    hessian.add(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16).expand(257, 2))
    given = "257 times the token [1, 2], in bfloat16"
    expect(given, hessian.mean, [[1.0, 2.0], [2.0, 4.0]])


@_SUITE.property("Hessian", hint="a sum that went to infinity can't be mended later")
def _no_mean(p: SimpleNamespace) -> None:
    """Without tokens, or with inputs that aren't finite, there is no mean."""
    expect_error("Hessian(2).mean", lambda: p.Hessian(2).mean, ValueError)
    for bad in (float("nan"), float("inf")):
        hessian = p.Hessian(2)
        hessian.add(torch.tensor([[1.0, bad]]))
        expect_error(f"mean after [1, {bad}]", lambda h=hessian: h.mean, ValueError)


@_SUITE.property(
    "inverse_factor",
    "GPTQConfig",
    hint="Cholesky of the inverse, its upper triangle",
)
def _factor(p: SimpleNamespace) -> None:
    """U is upper triangular, and U^T U times the damped Hessian is the identity."""
    for K, damp, small in (
        (1, 0.0, 1), (1, 0.5, 1), (2, 0.0, 1), (3, 0.01, 1), (8, 0.1, 1), (3, 0.0, 1e-6)
    ):  # fmt: skip
        damp = p.GPTQConfig(damp_percent=damp).damp_percent  # none is fine, too
        H = _hessian(K, seed=K) * small
        before = H.clone()
        U = p.inverse_factor(H, damp)
        given = f"a Hessian [{K}, {K}], damp_percent {damp}"
        if small != 1:
            given += f", squares of about {small}"
        if U.dtype != torch.float32:
            fail(f"{given}: dtype of U", U.dtype, torch.float32)
        expect(f"{given}: below the diagonal of U", U.tril(-1).abs().sum(), 0.0)
        damped = before + damp * before.diagonal().mean() * torch.eye(K)
        apart = float((U.T @ U @ damped - torch.eye(K)).abs().max())
        if not apart < 1e-3:
            fail(f"{given}: U^T U H", f"differs from the identity by {apart:.4f}",
                 "the identity")  # fmt: skip
        if not torch.equal(H, before):
            fail(f"{given}: H afterwards", "changed", "as it was")


@_SUITE.property("inverse_factor", hint="add a share of the mean diagonal to it")
def _damped(p: SimpleNamespace) -> None:
    """Damping makes the Hessian of too few tokens invertible, and not just any."""
    x = _inputs(2, 4)
    H = x.T @ x / 2  # rank 2
    U = p.inverse_factor(H, 0.01)
    expect("2 tokens for 4 inputs: U is finite", bool(U.isfinite().all()), True)
    damped = (H + 0.01 * H.diagonal().mean() * torch.eye(4)).double()
    apart = float((U.double().T @ U.double() @ damped - torch.eye(4)).abs().max())
    expect("… and U^T U inverts the damped H, within 0.05", apart < 0.05, True)
    never = torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1
    expect_error(
        "[[1, 2], [2, 1]], which no inputs have, damp_percent 0.02",
        lambda: p.inverse_factor(never, 0.02), ValueError, "0.02",
    )  # fmt: skip
    expect_error(
        "[[1, 1], [1, 1]], which has no inverse, damp_percent 0.0",
        lambda: p.inverse_factor(torch.ones(2, 2), 0.0), ValueError, "0.0",
    )  # fmt: skip


@_SUITE.property(
    "inverse_factor", hint="what does a diagonal of 0 tell about an input?"
)
def _dead(p: SimpleNamespace) -> None:
    """An input that was always 0 has no say in the others, and they none in it."""
    H, live = _hessian(4, dead=(1,)), [0, 2, 3]
    for damp in (0.0, 0.5):
        U = p.inverse_factor(H, damp)
        given = f"input 1 of 4 is always 0, damp_percent {damp}"
        expect(f"{given}: U is finite", bool(U.isfinite().all()), True)
        expect(f"{given}: U[0, 1]", float(U[0, 1]), 0.0)
        expect(f"{given}: U[1, 2:]", U[1, 2:], [0.0, 0.0])
        others, U = H[live][:, live], U[live][:, live]
        others = others + damp * others.diagonal().mean() * torch.eye(3)
        apart = float((U.T @ U @ others - torch.eye(3)).abs().max())
        right = apart < 1e-3
        expect(f"{given}: the others as if it weren't there, within 0.001", right, True)
    U = p.inverse_factor(torch.zeros(2, 2), 0.01)
    expect("all inputs are always 0: U is finite", bool(U.isfinite().all()), True)
    expect("all inputs are always 0: U[0, 1]", float(U[0, 1]), 0.0)


# ----- the algorithm


@_SUITE.property("gptq", hint="the error of a column goes to the columns behind it")
def _second_makes_up(p: SimpleNamespace) -> None:
    """With two inputs that are nearly one, the second makes up for the first."""
    # Scale 1 for all rows. Twice the same input: 0.4 and 0.4 are 0 and 1.
    weight = torch.tensor([[0.4] * 2 + [7.5] * 6]).repeat(8, 1)
    H = torch.eye(8)
    H[0, 1] = H[1, 0] = 0.999
    got = p.gptq(weight, H, _config(damp_percent=0.0))
    expect("row [0.4, 0.4, …], H of twin inputs: levels", got.levels[0, :2], [8, 9])
    got = p.gptq(weight, torch.eye(8), _config(damp_percent=0.0))
    expect("the same, inputs independent: levels", got.levels[0, :2], [8, 8])


@_SUITE.property("gptq", hint="fix a column, correct those behind it, by H's inverse")
def _columns(p: SimpleNamespace) -> None:
    """Column by column as a new inverse for every column gives it, one group."""
    for K in (8, 16):
        for sym in (True, False):
            _judge(p.gptq, K, _config(sym=sym))
    for damp in (0.0, 0.5):
        _judge(p.gptq, 16, _config(damp_percent=damp))
    _judge(p.gptq, 16, _config(), dead=(3, 9))


@_SUITE.property("gptq", hint="when is a group's grid made, and from which numbers?")
def _groups(p: SimpleNamespace) -> None:
    """A group's grid comes from its columns as corrected so far."""
    for size, K in ((4, 8), (8, 24), (16, 32)):
        for sym in (True, False):
            _judge(p.gptq, K, _config(size, sym))


@_SUITE.property("gptq", hint="what is put off has to be made good at a block's end")
def _lazy(p: SimpleNamespace) -> None:
    """More columns than one block changes nothing, whatever the groups."""
    for size, K in ((-1, 160), (96, 192), (32, 288)):  # the last has three blocks
        _judge(p.gptq, K, _config(size))


@_SUITE.property("gptq", hint="in which order do columns fill the groups?")
def _act_order(p: SimpleNamespace) -> None:
    """Act order takes the inputs with the largest squares first, and groups them so."""
    for size, K in ((4, 8), (8, 16), (-1, 16)):
        _judge(p.gptq, K, _config(size, desc_act=True))
    _judge(p.gptq, 16, _config(8, False, desc_act=True, damp_percent=0.1), dead=(5,))


@_SUITE.property(
    "gptq", "output_error", hint="is it the outputs' error that is made small?"
)
def _better(p: SimpleNamespace) -> None:
    """Its outputs are nearer to the true ones than those of plain rounding."""
    weight, H = _random(16, 64, seed=5), _hessian(64, seed=5)
    for size in (16, -1):
        errors = []
        for q in (p.gptq(weight, H, _config(size)),
                  package.round_to_nearest(weight, _config(size))):  # fmt: skip
            wrong = weight - _weight(q)
            errors.append(float(((wrong @ H) * wrong).sum()))
            share = errors[-1] / float(((weight @ H) * weight).sum())
            given = f"[16, 64], groups of {size}: output_error, a share of the outputs'"
            expect(f"{given} squares", p.output_error(weight, q, H), share)
        if not errors[0] < 0.9 * errors[1]:
            fail(f"[16, 64], groups of {size}: error of the outputs",
                 round(errors[0], 3), f"less than {0.9 * errors[1]:.3f}")  # fmt: skip


@_SUITE.property("gptq", hint="work on a copy")
def _leaves_its_arguments(p: SimpleNamespace) -> None:
    """Weight and Hessian stay as they were; a second call gives the same."""
    weight, H = _random(8, 24)[:, :16], _hessian(16)
    kept = weight.clone(), H.clone()
    for order in (False, True):
        given = f"desc_act={order}"
        first = p.gptq(weight, H, _config(8, desc_act=order))
        expect(f"{given}: the weight is as before", torch.equal(weight, kept[0]), True)
        expect(f"{given}: the Hessian is as before", torch.equal(H, kept[1]), True)
        second = p.gptq(weight, H, _config(8, desc_act=order))
        expect(f"{given}: levels of a second call", second.levels, first.levels)


@_SUITE.property("gptq", hint="which dtype has what is corrected?")
def _gptq_of_bfloat16(p: SimpleNamespace) -> None:
    """A weight in bfloat16 or float16 is quantized as those numbers in float32 are."""
    for dtype in (torch.bfloat16, torch.float16):
        weight, H = _random(8, 16, seed=7).to(dtype), _hessian(16, seed=7)
        got = p.gptq(weight, H, _config(8))
        wanted = _oracle(weight.float(), H, _config(8))
        _same(f"[8, 16] in {dtype}, group_size 8", got, wanted)


@_SUITE.property("gptq", hint="state the size and what doesn't fit it")
def _refused(p: SimpleNamespace) -> None:
    """Sizes that don't fit, weights and Hessians that can't be, are refused."""
    eye = torch.eye(24)
    expect_error(
        "24 inputs, groups of 16", lambda: p.gptq(_random(8, 24), eye, _config(16)),
        ValueError, "16", "24",
    )  # fmt: skip
    expect_error(
        "4 outputs", lambda: p.gptq(_random(4, 24), eye, _config()), ValueError, "4"
    )
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight = _random(8, 24)
        weight[3, 5] = bad
        expect_error(
            f"a weight of {bad}",
            lambda weight=weight: p.gptq(weight, eye, _config()), ValueError,
        )  # fmt: skip
    H = torch.eye(24)
    H[0, 1] = H[1, 0] = 2.0
    expect_error(
        "a Hessian that isn't positive definite",
        lambda: p.gptq(_random(8, 24), H, _config()), ValueError,
    )  # fmt: skip


# ----- the layout


@_SUITE.property("pack_levels", hint="the first of eight stands in the lowest 4 bits")
def _packed(p: SimpleNamespace) -> None:
    """Eight levels are one int32, the first the lowest four bits."""
    for values in ([1, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 0], [15] * 8,
                   [0] * 7 + [8]):  # fmt: skip
        number = sum(v << (4 * i) for i, v in enumerate(values))
        number -= 2**32 if number >= 2**31 else 0
        got = p.pack_levels(torch.tensor(values, dtype=torch.uint8)[:, None])
        _equal(f"pack_levels of {values}", got, torch.tensor([[number]]).int())
    levels = torch.tensor([[1, 2]] * 8 + [[3, 4]] * 8, dtype=torch.uint8)
    wanted = [[0x11111111, 0x22222222], [0x33333333, 0x44444444]]
    got = p.pack_levels(levels)
    expect("eight rows of [1, 2], eight of [3, 4]", got, wanted)


@_SUITE.property("unpack_levels", hint="an int32 may be negative: shift, then mask")
def _unpacked(p: SimpleNamespace) -> None:
    """Unpacking gives the levels back in their order, of negative numbers too."""
    for number, wanted in (
        (1, [1, 0, 0, 0, 0, 0, 0, 0]), (0x07654321, [1, 2, 3, 4, 5, 6, 7, 0]),
        (-1, [15] * 8), (-(2**31), [0] * 7 + [8]),
    ):  # fmt: skip
        got = p.unpack_levels(torch.tensor([[number]], dtype=torch.int32))
        given = f"unpack_levels of {number:#x}"
        _equal(given, got, torch.tensor(wanted, dtype=torch.uint8)[:, None])
    two = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    got = p.unpack_levels(two)
    expect("shape of [2, 2]", list(got.shape), [16, 2])
    expect("rows 0 and 8 of [[1, 2], [3, 4]]", got[::8], [[1, 2], [3, 4]])


@_SUITE.property("pack", hint="which of the four is transposed, and packed along what?")
def _stored_as_others_read(p: SimpleNamespace) -> None:
    """A layer is stored as readers expect it: qweight, scales and g_idx."""
    q, config = _example()
    got, wanted = p.pack(q, config), _stored(q, v2=False)
    for name in ("qweight", "scales", "g_idx"):
        _equal(f"[8, 16] in 2 groups: {name}", got[name], wanted[name])


@_SUITE.property("pack", hint="v1 stores the zero point minus one, v2 as it is")
def _zeros_stored(p: SimpleNamespace) -> None:
    """Zero points are stored minus one in "gptq", and as they are in "gptq_v2"."""
    for v2, sym, N in (
        (False, True, 8), (True, True, 8), (False, False, 8), (True, False, 16)
    ):  # fmt: skip
        q, config = _example(sym, v2, N=N)
        wanted = _stored(q, v2)["qzeros"]
        given = f"zeros {q.zeros.T.tolist()}, {config.checkpoint_format}: qzeros"
        _equal(given, p.pack(q, config)["qzeros"], wanted)


@_SUITE.property("pack", hint="-1 in four bits is 15, and then what of the next one?")
def _no_zero_in_v1(p: SimpleNamespace) -> None:
    """A zero point of 0 is stored in "gptq_v2" and refused in "gptq"."""
    q, config = _example(sym=False, v2=True)
    q.zeros[2, 1] = 0
    wanted = _stored(q, v2=True)["qzeros"]
    _equal("a zero point of 0 in gptq_v2", p.pack(q, config)["qzeros"], wanted)
    v1 = _config(8, False, checkpoint_format="gptq")
    expect_error("a zero point of 0 in gptq", lambda: p.pack(q, v1), ValueError)


@_SUITE.property(
    "unpack",
    "GPTQConfig",
    hint="the inverse of what a writer does, for both formats; who names none means "
    "the older one",
)
def _read_back(p: SimpleNamespace) -> None:
    """What others wrote is read: levels, zero points of both formats, any g_idx."""
    for v2, sym in itertools.product((False, True), (True, False)):
        q, config = _example(sym, v2, N=8 if sym else 16)
        got = p.unpack(_stored(q, v2), config)
        for name in ("levels", "zeros", "scales", "g_idx"):
            given = f"{config.checkpoint_format}, sym={sym}: {name}"
            expect(given, getattr(got, name), getattr(q, name))
    q, config = _example(sym=False, v2=False)
    q.zeros[2, 1] = 0  # stored as 15, which nothing else can be
    got = p.unpack(_stored(q, v2=False), config).zeros
    expect("gptq, a zero point stored as 15: zeros", got, q.zeros)
    for layout, offset in ((None, 1), ("gptq", 1), ("gptq_v2", 0)):
        hf = {"bits": 4, "group_size": 8} | (
            {"checkpoint_format": layout} if layout else {}
        )
        got = p.GPTQConfig.from_hf(hf).zero_offset
        expect(f"from_hf({hf}): zero_offset", got, offset)


@_SUITE.property("QuantizedLinear", hint="x W^T, W from levels, zeros, scales, g_idx")
def _layer(p: SimpleNamespace) -> None:
    """The layer computes with the weight that its levels stand for."""
    for v2, sym, bias in ((False, True, False), (True, False, True)):
        q, config = _example(sym, v2)
        layer = p.QuantizedLinear(16, 8, bias, config)
        stored = _stored(q, v2)
        if bias:
            stored["bias"] = torch.arange(8.0)
        layer.load_state_dict(copy.deepcopy(stored))
        x = _random(3, 16)
        wanted = x @ _weight(q).T + (torch.arange(8.0) if bias else 0)
        given = f"{config.checkpoint_format}, sym={sym}, bias={bias}: x [3, 16]"
        expect(given, layer(x), wanted)
        half = layer(x.bfloat16()) if not bias else None
        if half is not None:
            expect("dtype for x in bfloat16", half.dtype, torch.bfloat16)


# ----- the exercises

# Three columns by hand: weights, U, scale 1 and zero point 8.
TRACE = {
    "weights": [0.6, 1.4, -0.4],
    "U": [[2.0, -1.0, 0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]],
}


def _traced() -> dict:
    w, U = list(TRACE["weights"]), TRACE["U"]
    levels, seen = [], []
    for k in range(3):
        seen.append(w[k])
        levels.append(round(w[k]) + 8)
        error = (w[k] - round(w[k])) / U[k][k]
        w = [w[j] - error * U[k][j] if j > k else w[j] for j in range(3)]
    return {"levels": levels, "corrected": seen}


@_SUITE.property(
    "trace_columns", hint="error / U[k][k], times row k of U, is taken off"
)
def _trace(p: SimpleNamespace) -> None:
    """The weights as each column is rounded, and the levels that it goes to."""
    got, wanted = p.trace_columns(), _traced()
    if not isinstance(got, dict) or set(got) != set(wanted):
        fail("trace_columns()", got, f"a dict with {', '.join(sorted(wanted))}")
    for name in ("corrected", "levels"):
        try:
            numbers = [float(number) for number in got[name]]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != 3:
            fail(f"{name}", got[name], "three numbers")
        for k in range(3):
            if not abs(numbers[k] - wanted[name][k]) < 0.006:
                fail(f"{name}, column {k}", got[name][k], "another answer")


@_SUITE.property("regroup", hint="sort the inputs by group; eight rows share an int32")
def _regrouped(p: SimpleNamespace) -> None:
    """The new tensors give x[:, order] what the old ones give x, groups in a row."""
    for seed, sym, v2, K, G, N in (
        (0, True, False, 16, 2, 8),
        (1, False, True, 16, 2, 8),
        (2, False, False, 32, 3, 16),
        (3, True, False, 32, 3, 8),
    ):
        q, config = _example(sym, v2, seed, K, G, N)
        if seed == 3:
            q.g_idx[q.g_idx == 1] = 2  # a large group, and one without inputs
        stored = _stored(q, v2)
        kept = copy.deepcopy(stored)
        got = p.regroup(stored)
        given = f"[{N}, {K}], g_idx {q.g_idx.tolist()}"
        if not isinstance(got, tuple | list) or len(got) != 2:
            fail(given, type(got).__name__, "(tensors, order)")
        expect(f"{given}: names that were given", sorted(stored), sorted(kept))
        for name, tensor in kept.items():
            expect(f"{given}: {name} that was given", stored[name], tensor)
        tensors, order = got[0], torch.as_tensor(got[1])
        expect(f"{given}: sorted order", sorted(order.tolist()), list(range(K)))
        for name, tensor in kept.items():
            new = tensors[name]
            if (new.shape, new.dtype) != (tensor.shape, tensor.dtype):
                fail(f"{given}: {name}", f"{list(new.shape)} {new.dtype}",
                     f"{list(tensor.shape)} {tensor.dtype}")  # fmt: skip
        groups = tensors["g_idx"].tolist()
        expect(f"{given}: the new g_idx", groups, sorted(groups))
        # Equal weights give equal outputs; sums in another order needn't.
        new = _weight(package.unpack(tensors, config))
        apart = (new != _weight(q)[:, order.long()]).nonzero()
        if len(apart):
            n, k = apart[0].tolist()
            fail(f"{given}, order {order.tolist()}: new weight of output {n} for "
                 f"x[:, {int(order[k])}]", float(new[n, k]),
                 float(_weight(q)[n, order[k]]))  # fmt: skip


def _bytes_of(layer: dict, bits: int, group: int = 128) -> int:
    """Weights, and for each group a scale of 16 bits and a zero point."""
    N, K = layer["N"], layer["K"]
    return (N * K * bits + N * (K // group) * (16 + bits)) // 8


def _layers(count: int, seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        pick = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
        weight = 10 ** (3 * float(torch.rand((), generator=generator)))
        size = {"N": 128 * (1 + pick(4)), "K": 128 * (1 + pick(4))}
        errors = {b: weight * (1 + 0.1 * pick(5)) / 4**b for b in (2, 3, 4, 8)}
        short = {b: float(f"{error:.3g}") for b, error in errors.items()}
        found.append({**size, "error": short})
    return found


@_SUITE.property("choose_bits", hint="where does the next byte save the most error?")
def _bits_chosen(p: SimpleNamespace) -> None:
    """The choice fits the budget, and its error is within a tenth of the least."""
    for layers, budget in _budgets():
        got = p.choose_bits(copy.deepcopy(layers), budget)
        given = f"choose_bits({layers}, {budget})"
        if not isinstance(got, list) or len(got) != len(layers):
            fail(given, got, f"a list of {len(layers)} numbers of bits")
        if any(bits not in (2, 3, 4, 8) for bits in got):
            fail(given, got, "each of 2, 3, 4, 8")
        used = sum(map(_bytes_of, layers, got))
        if used > budget:
            fail(given, f"{got}, {used:,} bytes", f"at most {budget:,} bytes")
        error = sum(x["error"][b] for x, b in zip(layers, got, strict=True))
        best = min(
            sum(x["error"][b] for x, b in zip(layers, choice, strict=True))
            for choice in itertools.product((2, 3, 4, 8), repeat=len(layers))
            if sum(map(_bytes_of, layers, choice)) <= budget
        )
        if error > 1.1 * best:
            fail(given, f"{got}: error {error:.4g}", f"at most {1.1 * best:.4g}")


def _budgets() -> Iterator[tuple[list[dict], int]]:
    """Layers and a budget: where greedy steps go wrong, then any."""
    large, small = ({2: e, 3: e / 4, 4: e / 16, 8: 0.0} for e in (1.2, 1.0))
    layers = [{"N": 512, "K": 512, "error": large}]
    layers += [{"N": 128, "K": 256, "error": dict(small)} for _ in range(3)]
    least = sum(_bytes_of(each, 2) for each in layers)
    yield layers, least + _bytes_of(layers[0], 3) - _bytes_of(layers[0], 2)
    # A small good step, after which the large one that matters can't be paid.
    layers = [
        {"N": 128, "K": 128, "error": {2: 10.0, 3: 8.0, 4: 7.9, 8: 7.8}},
        {"N": 1024, "K": 128, "error": {2: 100.0, 3: 90.0, 4: 80.0, 8: 10.0}},
    ]
    yield layers, _bytes_of(layers[0], 2) + _bytes_of(layers[1], 8)
    # Three of a size: where exchanging the bits of two layers doesn't help either,
    # where the sum of the squares would choose otherwise, where more bits lose more.
    for bits, *errors in (
        ([8, 3, 3], [60.0, 40.0, 30.0, 8.0], [30.0, 5.0, 2.0, 0.0],
         [30.0, 20.0, 8.0, 2.0]),
        ([2, 3], [10.0, 9.0, 9.0, 9.0], [4.0, 0.0, 0.0, 0.0]),
        ([8], [5.0, 1.0, 2.0, 3.0]),
    ):  # fmt: skip
        sizes = {"N": 128, "K": 128}
        layers = [
            {**sizes, "error": dict(zip((2, 3, 4, 8), each, strict=True))}
            for each in errors
        ]
        yield layers, sum(map(_bytes_of, layers, bits))
    for seed in range(8):
        layers = _layers(2 + seed % 4, seed)
        least = sum(_bytes_of(each, 2) for each in layers)
        most = sum(_bytes_of(each, 8) for each in layers)
        for share in (0.0, 0.2, 0.34, 0.6, 1.0):
            yield layers, least + int(share * (most - least))


@_SUITE.property("choose_bits", hint="two bits for each layer are the least there is")
def _bits_refused(p: SimpleNamespace) -> None:
    """A budget below two bits for every layer is refused, and the message says it."""
    for sizes in (((8, 128),), ((8, 128), (8, 256))):
        layers = [
            {"N": N, "K": K, "error": {b: 1.0 / 4**b for b in (2, 3, 4, 8)}}
            for N, K in sizes
        ]
        least = sum(_bytes_of(each, 2) for each in layers)
        expect_error(
            f"layers {list(sizes)}, a budget of {least - 1} bytes, {least} needed",
            lambda layers=layers, budget=least - 1: p.choose_bits(layers, budget),
            ValueError, str(least - 1),
        )  # fmt: skip
