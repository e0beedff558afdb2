"""Attention that never holds all scores: over blocks where they lie, tile by tile.

The softmax of a long row can be taken in parts: two numbers for each part, its largest
score and its sum of exponentials, are enough to join them (Milakov and Gimelshein
2018). Attention built on it never writes its scores to memory, FlashAttention (Dao et
al. 2022, 2023), and the parts of one long sequence can be computed at the same time,
Flash-Decoding. Here that is done three times: in plain PyTorch, to be read; for a CPU,
with Numba; for a GPU, with Triton. Nothing here knows sequences or requests.
"""

from __future__ import (
    annotations,  # a kernel names Triton's types before they are there
)

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from folovllm_lite.paged import PagedKVCache, Segment
from folovllm_lite.utils import tensor_on

# ----- online softmax, to be read


class Partial(NamedTuple):
    """Attention over some of the keys, as much as is needed to join it with the rest.

    Args:
        best: [...] the largest score, -inf where no key is seen.
        total: [...] the sum of exp(score - best).
        out: [..., D] the values' sum, each weighted with exp(score - best).
    """

    best: Tensor
    total: Tensor
    out: Tensor


def attend_tile(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Partial:
    """Attention of scaled queries q [..., T, D] over one tile k, v [..., n, D].

    `hidden` [T, n] marks the keys that a query doesn't see.
    """
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, -math.inf)  # [..., T, n]
    best = scores.amax(-1)
    # Where all is hidden the difference is inf - inf.
    weights = (scores - best[..., None]).exp().masked_fill(hidden, 0)
    return Partial(best, weights.sum(-1), weights @ v)


def merge(a: Partial, b: Partial) -> Partial:
    """Both parts as one. It doesn't matter which is first, nor what is merged first."""
    best = torch.maximum(a.best, b.best)
    # -inf - -inf is NaN: who has seen nothing yet keeps its zeros.
    down = [torch.where(x.best == best, 1, (x.best - best).exp()) for x in (a, b)]
    total = a.total * down[0] + b.total * down[1]
    out = a.out * down[0][..., None] + b.out * down[1][..., None]
    return Partial(best, total, out)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, tile: int = 256
) -> Tensor:
    """`attention.attention`, with scores for `tile` keys at a time and never more.

    Args:
        q: [T, Hq, D].
        k: [S, Hkv, D], from position 0 on.
        v: [S, Hkv, D], likewise.
        q_positions: [T] int64.
        tile: keys of a tile; the last may have fewer.

    Returns:
        [T, Hq, D], in q's dtype; what is summed is summed in float32.
    """
    if tile < 1:
        raise ValueError(f"a tile holds at least 1 key, got {tile}")
    T, Hq, D = q.shape
    S, Hkv, _ = k.shape
    # [T, Hq, D] -> [Hkv, group, T, D]
    heads = q.float().reshape(T, Hkv, -1, D).permute(1, 2, 0, 3) / math.sqrt(D)
    k, v = (x.float().transpose(0, 1).unsqueeze(1) for x in (k, v))  # [Hkv, 1, S, D]
    done = None
    for start in range(0, S, tile):
        part = slice(start, min(start + tile, S))
        hidden = torch.arange(S, device=q.device)[part] > q_positions[:, None]
        found = attend_tile(heads, k[:, :, part], v[:, :, part], hidden)
        done = found if done is None else merge(done, found)
    out = done.out / done.total[..., None]  # [Hkv, group, T, D]
    return out.permute(2, 0, 1, 3).reshape(T, Hq, D).to(q.dtype)


# ----- a CPU: Numba

TILE = 256  # tokens of a tile: its keys stay in a core's own cache until all is done
_SUMS = {"reassoc", "contract", "nsz"}  # sums in any order; NaN and inf stay themselves


def compiled(function: Callable) -> Callable:
    """Machine code for this CPU, made at the first call and kept in a folder.

    The folder is `__pycache__` beside the source, or the user's own where that can't be
    written; Numba keeps one entry for each kind of CPU. While it runs, Python doesn't
    have to: other threads may.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": _SUMS}
    # In a notebook, where what a function calls stands in cells, nothing is kept.
    if function.__module__ == "__main__":
        return njit(**options)(function)
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # neither folder can be written: compile in every process
        return njit(**options)(function)
    # What was kept notices a change of its own file and of nothing that it calls, which
    # are functions of this one.
    changed = Path(__file__).stat().st_mtime
    for kept in Path(made.stats.cache_path).glob(f"*.{function.__name__}-*.nbi"):
        if kept.stat().st_mtime < changed:
            kept.unlink(missing_ok=True)
    return made


def widen(bits):
    """A number of the pool in float32. In compiled code alone; see `_widen`."""
    raise NotImplementedError("widen is compiled code")


@overload(widen)
def _widen(bits):
    """Numba knows neither half: bfloat16 comes as uint16, float16 as int16.

    bfloat16 is the upper half of a float32. float16 has its exponent 112 lower, and no
    number that float32 doesn't have.
    """

    def brain(bits):
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)

    def half(bits):
        size = np.uint32(np.uint16(bits)) & np.uint32(0x7FFF)
        number = np.uint32(size << np.uint32(13)).view(np.float32)
        number = number * np.float32(2.0**112)
        if size == 0x7C00:
            number = np.float32(np.inf)
        if size > 0x7C00:
            number = np.float32(np.nan)
        return -number if bits < 0 else number

    if bits == types.float32:
        return lambda bits: bits
    return brain if bits == types.uint16 else half


@compiled
def exp(x):
    """e^x in float32, to six digits or more: below -87 as there, beyond 88.3 infinite.

    It is 2^n e^r with a whole n and r within +-0.35, where few terms of the series are
    enough. The library's exp takes one number, this the compiler makes for many at
    once: in a tenth of the time.
    """
    x = min(max(x, np.float32(-87)), np.float32(89))  # 2^128 has the bits of infinity
    n = np.rint(x * np.float32(1.442695041))
    r = x - n * np.float32(0.693147181)
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = (series * r + np.float32(1)) * r + np.float32(1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))  # a float's bits
    return series * power.view(np.float32)


@compiled
def store_tokens(pool, layer, slots, k, v):
    """Write k, v [T, Hkv, D] to slots [T] of the pool [2, L, Hkv, B, S, D]."""
    S = pool.shape[4]
    T, Hkv, D = k.shape
    for t in range(T):
        block, offset = slots[t] // S, slots[t] % S
        for h in range(Hkv):
            for d in range(D):
                pool[0, layer, h, block, offset, d] = k[t, h, d]
                pool[1, layer, h, block, offset, d] = v[t, h, d]


@compiled
def attend_tile_cpu(q, keys, values, blocks, start, stop, scores, best, total, out):
    """A Partial: queries of a group over tokens [start, stop) of their sequence.

    q, out [group, D]; keys, values [B, S, D]; blocks [...] of the sequence; scores
    [group, TILE] to write in; best, total [group].
    """
    group, D = q.shape
    S = keys.shape[1]
    scale = np.float32(1 / math.sqrt(D))
    for t in range(start, stop):
        key = keys[blocks[t // S], t % S]
        for g in range(group):  # the key is read from memory for the first of them
            dot = np.float32(0)
            for d in range(D):
                dot += q[g, d] * widen(key[d])
            scores[g, t - start] = dot * scale
    for g in range(group):
        most, sum_ = np.float32(-np.inf), np.float32(0)
        for i in range(stop - start):
            most = max(most, scores[g, i])
        for i in range(stop - start):
            scores[g, i] = exp(scores[g, i] - most)
            sum_ += scores[g, i]
        best[g], total[g] = most, sum_
        out[g] = 0
    for t in range(start, stop):
        value = values[blocks[t // S], t % S]
        for g in range(group):
            for d in range(D):
                out[g, d] += scores[g, t - start] * widen(value[d])


@compiled
def attend_tiles_cpu(
    q, pool, layer, rows, tables, tiles, first, last, best, total, out
):
    """The Partials number [first, last) of all tiles and key/value heads.

    q [T, Hq, D]; rows [N] are those that attend; tiles [M, 4]: which of the N, where
    its blocks begin in tables, its tokens from, and to; best, total [M, Hq]; out
    [M, Hq, D].
    """
    Hkv = pool.shape[2]
    group = q.shape[1] // Hkv
    scores = np.empty((group, TILE), np.float32)
    for item in range(first, last):
        m, h = item // Hkv, item % Hkv
        n, table, start, stop = tiles[m]
        heads = slice(h * group, (h + 1) * group)
        attend_tile_cpu(
            q[rows[n], heads],
            pool[0, layer, h],
            pool[1, layer, h],
            tables[table:],
            start,
            stop,
            scores,
            best[m, heads],
            total[m, heads],
            out[m, heads],
        )


@compiled
def merge_tiles_cpu(rows, tiles, best, total, parts, out):
    """Join the Partials of each row; out [T, Hq, D] gets the rows [N]."""
    Hq, D = out.shape[1:]
    m, M = 0, len(tiles)
    while m < M:
        n, first = tiles[m, 0], m
        while m < M and tiles[m, 0] == n:
            m += 1
        for h in range(Hq):
            most, sum_ = best[first:m, h].max(), np.float32(0)
            row = out[rows[n], h]
            row[:] = 0
            for i in range(first, m):
                down = exp(best[i, h] - most)
                sum_ += total[i, h] * down
                for d in range(D):
                    row[d] += parts[i, h, d] * down
            for d in range(D):
                row[d] /= sum_


class Team:
    """Threads that help with a kernel, and that nobody waits for.

    The work comes in pieces, and whoever is free takes the next. The caller takes them
    too, and in the end waits for pieces that were taken, never for a thread: a helper
    whose core is busy with another program is late, finds nothing left, and has cost
    nothing. (OpenMP's threads meet at the end of each region, and all wait for the one
    that lost its core.) It holds for callers in several threads, and after a fork.
    """

    def __init__(self, helpers: int):
        self.helpers = helpers
        self._threads: list[Thread] = []
        self._calls: SimpleQueue = SimpleQueue()

    def run(self, work: Callable[[int], None], pieces: int) -> None:
        """Call work(0), ... work(pieces - 1), each once, and return when all are done.

        What a piece raises is raised here.
        """
        left, done = deque(range(pieces)), SimpleQueue()

        def help_out() -> None:
            while left:
                try:
                    piece = left.popleft()
                except IndexError:  # another was quicker
                    return
                try:
                    done.put(work(piece))
                except BaseException as error:  # noqa: BLE001  it is the caller's
                    done.put(error)

        if not all(thread.is_alive() for thread in self._threads) or not self._threads:
            self._start()
        for _ in range(min(self.helpers, pieces - 1)):
            self._calls.put(help_out)
        help_out()
        errors = [error for _ in range(pieces) if (error := done.get())]
        if errors:
            raise errors[0]

    def _start(self) -> None:
        """Start the threads: at the first call, and again in a process that forked."""
        self._calls = calls = SimpleQueue()

        def listen() -> None:
            while True:
                calls.get()()

        count = range(self.helpers)
        self._threads = [Thread(target=listen, daemon=True) for _ in count]
        for thread in self._threads:
            thread.start()


# As many threads as PyTorch was given when it began (OMP_NUM_THREADS, or the cores).
TEAM = Team(torch.get_num_threads() - 1)
# Less to read than this is read sooner than a second thread wakes up.
_WORTH_SHARING = 2**20  # bytes


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """PyTorch computes on the caller's thread alone inside, if that is `wanted`."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(before)


def share(work: Callable[[slice], None], rows: int, least: int = 1) -> None:
    """Call work for parts of `rows` rows, at least so many, each on one thread."""
    parts = min(rows // least, TEAM.helpers + 1)
    inference = torch.is_inference_mode_enabled()  # another thread doesn't know

    def part(i: int) -> None:
        with torch.inference_mode(inference), one_thread():
            work(slice(rows * i // parts, rows * (i + 1) // parts))

    if parts > 1:
        TEAM.run(part, parts)
    else:
        with one_thread():
            work(slice(0, rows))


class NumbaKernels:
    """Stores a step's keys and values, and attends for rows of one token each.

    Args:
        cache: the pool, on the CPU.
        slots: [T] int64, of the step's tokens.
        rows: N segments of one token each, at any places of the packed T.
    """

    def __init__(self, cache: PagedKVCache, slots: Tensor, rows: list[Segment]):
        self._pool = _plain(cache.pool)
        self._slots = slots.numpy()
        self._rows = np.array([row.first for row in rows], np.int64)
        # The tables one after the other, and each row's tiles.
        blocks = chain.from_iterable(row.blocks for row in rows)
        self._tables = np.fromiter(blocks, np.int64)
        starts = accumulate((len(row.blocks) for row in rows), initial=0)
        tiles = [
            (n, table, start, min(start + TILE, row.end))
            for n, (row, table) in enumerate(zip(rows, starts, strict=False))
            for start in range(0, row.end, TILE)
        ]
        self._tiles = np.array(tiles, np.int64).reshape(-1, 4)
        Hkv, D = self._pool.shape[2], self._pool.shape[5]
        self._items = len(tiles) * Hkv
        # Bytes of keys and values that a layer reads.
        self.size = 2 * sum(row.end for row in rows) * Hkv * D * self._pool.itemsize
        threads = 1 if self.size < _WORTH_SHARING else TEAM.helpers + 1
        # Several for each: who is slow takes fewer.
        self._pieces = min(self._items, 4 * threads if threads > 1 else 1)

    @property
    def plan(self) -> tuple[np.ndarray, ...]:
        """What the functions above are given: pool, slots, rows, tables, tiles."""
        return self._pool, self._slots, self._rows, self._tables, self._tiles

    @property
    def independent(self) -> bool:
        """Whether no row reads what another one stores in this step."""
        written = self._slots // self._pool.shape[4]
        return bool((np.bincount(self._tables)[written] == 1).all())

    def only(self, rows: slice) -> NumbaKernels:
        """The same for some of the rows, numbered anew from 0; for one thread."""
        made = copy(self)
        made._slots, made._rows = self._slots[rows], np.arange(rows.stop - rows.start)
        first, last = np.searchsorted(self._tiles[:, 0], (rows.start, rows.stop))
        made._tiles = self._tiles[first:last] - (rows.start, 0, 0, 0)
        made._items, made._pieces = len(made._tiles) * self._pool.shape[2], 1
        return made

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write k, v [T, Hkv, D] to the step's slots."""
        store_tokens(self._pool, layer, self._slots, _plain(k), _plain(v))

    def attend(self, layer: int, q: Tensor, out: Tensor) -> None:
        """Fill the rows of out [T, Hq, D] float32; q [T, Hq, D]."""
        q, to = _plain(q.float()), out.numpy()
        M, Hq, D = len(self._tiles), q.shape[1], q.shape[2]
        best, total = np.empty((2, M, Hq), np.float32)
        parts = np.empty((M, Hq, D), np.float32)
        rows, tiles = self._rows, self._tiles
        given = (q, self._pool, layer, rows, self._tables, tiles)
        items, pieces = self._items, self._pieces

        def work(piece: int) -> None:
            first, last = items * piece // pieces, items * (piece + 1) // pieces
            attend_tiles_cpu(*given, first, last, best, total, parts)

        if pieces == 1:
            work(0)
        else:
            TEAM.run(work, pieces)
        merge_tiles_cpu(rows, tiles, best, total, parts, to)


def _plain(x: Tensor) -> np.ndarray:
    """The tensor's memory as Numba takes it, in one piece; see `widen`."""
    x = x.detach().contiguous()
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.view(torch.uint16 if x.dtype == torch.bfloat16 else torch.int16)
    return x.numpy()


# ----- a GPU: Triton

tl = None  # triton.language, as soon as a kernel is wanted


def paged_decode(
    q_at, keys_at, values_at, plan_at, out_at, lse_at,
    scale, head_stride, Hq, group,
    D: tl.constexpr, S: tl.constexpr, SPLITS: tl.constexpr,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One program: a row's queries of one group, over one of SPLITS shares of its past.

    q, out [T, Hq, D]; keys, values [Hkv, B, S, D]; plan [2 + blocks, N], a column for
    each row: which of the T, the sequence's tokens, its blocks. With more than one
    share, out is [N, Hq, SPLITS, D] and lse [N, Hq, SPLITS] gets the logarithm of each
    share's sum. Tiles have powers of 2 for their sizes: GROUP holds the group's heads,
    WIDTH the D numbers of a head, and TOKENS keys are taken at a time.
    """
    n, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    N, plan = tl.num_programs(0), plan_at + n
    row, end = tl.load(plan), tl.load(plan + N)
    share = tl.cdiv(tl.cdiv(end, SPLITS), TOKENS) * TOKENS  # whole tiles
    start = split * share
    stop = tl.minimum(start + share, end)
    g, d, t = tl.arange(0, GROUP), tl.arange(0, WIDTH), tl.arange(0, TOKENS)
    real = (g < group)[:, None] & (d < D)[None, :]
    heads = head * group + g
    q = tl.load(q_at + ((row * Hq + heads) * D)[:, None] + d[None, :], real, 0.0)
    best = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, WIDTH], tl.float32)
    for first in range(start, stop, TOKENS):
        at = first + t
        there = at < stop
        block = tl.load(plan + (2 + at // S) * N, there, 0)
        place = head * head_stride + (block * S + at % S) * D  # int64, as plan is
        written = there[:, None] & (d < D)[None, :]
        k = tl.load(keys_at + place[:, None] + d[None, :], written, 0.0)
        v = tl.load(values_at + place[:, None] + d[None, :], written, 0.0)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q.to(k.dtype), tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, -float("inf"))  # [GROUP, TOKENS]
        higher = tl.maximum(best, tl.max(scores, 1))
        down = tl.exp(best - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * down + tl.sum(weights, 1)
        new = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        acc = acc * down[:, None] + new
        best = higher
    if SPLITS == 1:
        done = acc / total[:, None]
        out = out_at + ((row * Hq + heads) * D)[:, None] + d[None, :]
        tl.store(out, done.to(out_at.dtype.element_ty), real)
    else:
        empty = total == 0  # a share behind the end
        total = tl.where(empty, 1.0, total)
        part = (n * Hq + heads) * SPLITS + split
        done = acc / total[:, None]
        tl.store(out_at + (part * D)[:, None] + d[None, :], done, real)
        lse = tl.where(empty, -float("inf"), best + tl.log(total))
        tl.store(lse_at + part, lse, g < group)


def merge_splits(
    parts_at, lse_at, plan_at, out_at, Hq,
    D: tl.constexpr, SPLITS: tl.constexpr, SHARES: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One program: join the shares of one row and head, weighted as lse says."""
    n, head = tl.program_id(0), tl.program_id(1)
    s, d = tl.arange(0, SHARES), tl.arange(0, WIDTH)
    part = (n * Hq + head) * SPLITS + s
    lse = tl.load(lse_at + part, s < SPLITS, -float("inf"))
    weights = tl.exp(lse - tl.max(lse, 0))
    real = (s < SPLITS)[:, None] & (d < D)[None, :]
    parts = tl.load(parts_at + (part * D)[:, None] + d[None, :], real, 0.0)
    done = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    row = tl.load(plan_at + n)
    out = out_at + (row * Hq + head) * D + d
    tl.store(out, done.to(out_at.dtype.element_ty), d < D)


@cache
def on_gpu(kernel: Callable) -> Callable:
    """The kernel compiled by Triton, which is imported here and nowhere else.

    Raises:
        ImportError: without Triton, which PyTorch's builds for CUDA bring along.
    """
    import triton
    from triton import language

    kernel.__globals__["tl"] = language
    return triton.jit(kernel)


class TritonKernels:
    """As `NumbaKernels`, on a GPU.

    Args:
        cache: the pool, on the GPU.
        slots: [T] int64, of the step's tokens.
        rows: N segments of one token each, at any places of the packed T.
        splits: shares of a past, a power of 2; None for as many as fill the GPU.
        plan: of the rows, on the GPU already; None makes it, see `paged_decode`.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        slots: Tensor,
        rows: list[Segment],
        splits: int | None = None,
        plan: Tensor | None = None,
    ):
        self._cache, self._slots, device = cache, slots, cache.pool.device
        Hkv, D = cache.pool.shape[2], cache.pool.shape[5]
        if plan is None:
            longest = max((len(row.blocks) for row in rows), default=0)
            shape, on_gpu = (2 + longest, len(rows)), device.type == "cuda"
            plan = torch.zeros(
                shape, dtype=torch.int64, device="cpu", pin_memory=on_gpu
            )
            for line, row in zip(plan.T.numpy(), rows, strict=True):
                line[:2] = row.first, row.end
                line[2 : 2 + len(row.blocks)] = row.blocks
            plan = plan.to(device, non_blocking=True)  # one copy for all layers
        self._plan = plan
        self._width = max(16, _power_of_2(D))  # what a product of tiles takes
        self._tokens = 64 if self._width <= 64 else 32
        if splits is None:
            properties = torch.cuda.get_device_properties(device)
            empty = 2 * properties.multi_processor_count // max(1, len(rows) * Hkv)
            tiles = max((row.end for row in rows), default=1) // self._tokens
            splits = _power_of_2(max(1, min(empty, tiles, 64)))
        self._splits = splits

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write k, v [T, Hkv, D] to the step's slots."""
        self._cache.store(layer, self._slots, k, v)

    def attend(self, layer: int, q: Tensor, out: Tensor) -> None:
        """Fill the rows of out [T, Hq, D], of q's dtype; q [T, Hq, D]."""
        N, splits = self._plan.shape[1], self._splits
        keys, values = self._cache.pool[0, layer], self._cache.pool[1, layer]
        Hkv, B, S, D = keys.shape
        Hq, q = q.shape[1], q.contiguous()
        parts, lse = out, out
        if splits > 1:
            parts = q.new_empty((N, Hq, splits, D), dtype=torch.float32)
            lse = parts.new_empty((N, Hq, splits))
        on_gpu(paged_decode)[(N, Hkv, splits)](
            q, keys, values, self._plan, parts, lse,
            1 / math.sqrt(D), B * S * D, Hq, Hq // Hkv,
            D=D, S=S, SPLITS=splits, GROUP=max(16, _power_of_2(Hq // Hkv)),
            WIDTH=self._width, TOKENS=self._tokens, WIDE=not q.is_cuda,
        )  # fmt: skip
        if splits > 1:
            on_gpu(merge_splits)[(N, Hq)](
                parts, lse, self._plan, out, Hq,
                D=D, SPLITS=splits, SHARES=splits, WIDTH=self._width,
            )  # fmt: skip


def _power_of_2(number: int) -> int:
    """The smallest power of 2 that isn't below `number`."""
    return 1 << (number - 1).bit_length()


# ----- the context

# A chunk of up to so many tokens is attended for token by token. On two cores that was
# sooner than a gather and PyTorch up to 8 to 16 tokens behind 60 to 1,000, and it waits
# for no busy core.
_FEW = 8  # tokens of a chunk that, on a CPU, are as many rows


class FlashContext:
    """Attention of one step over the pool, each sequence by what reads it best.

    Rows of one token go to the kernels above, a whole prompt and a chunk behind a past
    to PyTorch's.

    Args:
        cache: the pool.
        positions: [T] int64, place of each token in its sequence.
        slots: [T] int64, where each token is stored: block * block_size + offset.
        segments: of the packed T, in order.
        kernels: NumbaKernels or TritonKernels; None for what the pool's device needs.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        positions: Tensor,
        slots: Tensor,
        segments: list[Segment],
        kernels: Callable | None = None,
    ):
        self.positions, self._cache = positions, cache
        on_cpu = cache.pool.device.type == "cpu"
        rows: list[Segment] = []
        self._chunks: list[tuple[Segment, Tensor | None]] = []
        for each in segments:
            count = each.last - each.first
            if count == 1:
                rows.append(each)
            elif on_cpu and count <= _FEW:
                past = each.end - each.last
                rows += [
                    Segment(i, i + 1, past + i + 1, each.blocks)
                    for i in range(each.first, each.last)
                ]
            else:
                blocks = None
                if count < each.end:
                    blocks = tensor_on(each.blocks, cache.pool.device)
                self._chunks.append((each, blocks))
        if kernels is None:
            kernels = NumbaKernels if on_cpu else TritonKernels
        self._kernels, self._any_rows = kernels(cache, slots, rows), bool(rows)

    @property
    def rows_alone(self) -> NumbaKernels | None:
        """The kernels, if they are Numba's and do the whole step's work."""
        whole = not self._chunks and isinstance(self._kernels, NumbaKernels)
        return self._kernels if whole else None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v in their slots, then attend; q [T, Hq, D] -> [T, Hq, D]."""
        self._kernels.store(layer, k, v)
        # Numba's kernel writes float32, whatever it reads.
        dtype = torch.float32 if q.device.type == "cpu" else q.dtype
        out = torch.empty(q.shape, dtype=dtype, device=q.device)
        if self._any_rows:
            self._kernels.attend(layer, q, out)
        for each, blocks in self._chunks:
            rows = slice(each.first, each.last)
            if blocks is None:  # nothing came before it
                ks, vs = k[rows].transpose(0, 1), v[rows].transpose(0, 1)
            else:
                ks, vs = self._cache.gather(layer, blocks, each.end)
            _attend_heads(q[rows], ks, vs, out[rows])
        return out.to(q.dtype)


def _attend_heads(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Fill out [n, Hq, D] with `_attend_chunk`; threads share long chunks by heads."""
    group, pairs = q.shape[1] // len(k), q.numel() * k.shape[1]

    def work(part: slice) -> None:
        heads = slice(part.start * group, part.stop * group)
        out[:, heads] = _attend_chunk(q[:, heads], k[part], v[part])

    if q.device.type == "cpu" and pairs >= 2**22:
        share(work, len(k))
    else:
        work(slice(0, len(k)))


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a sequence's last n tokens, q [n, Hq, D] over k, v [Hkv, S, D]."""
    n, S = len(q), k.shape[1]
    # A mask of a kind that keeps PyTorch's fast kernels on a GPU; one written out makes
    # them store all scores.
    mask = causal_lower_right(n, S) if n < S else None
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),  # [1, Hq, n, D]
        k.unsqueeze(0),
        v.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    return out.squeeze(0).transpose(0, 1)
