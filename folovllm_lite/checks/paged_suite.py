"""What has to be true of the pool of keys and values (notebook 11)."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from folovllm_lite import paged as package
from folovllm_lite.checks.harness import Suite, expect

_SUITE = paged = Suite(
    package,
    """Judge PagedKVCache of `folovllm_lite.paged`.

    `checks.paged(PagedKVCache=Mine)` judges a class. Contexts over the pool are judged
    by `checks.contexts`.
    """,
    inside=torch.no_grad,
)
_L, _HKV, _D = 2, 2, 4
_CONFIG = SimpleNamespace(num_layers=_L, num_kv_heads=_HKV, head_dim=_D)


def _made(p: SimpleNamespace, blocks: int, size: int, **more: Any) -> Any:
    """A pool in which nothing was written: all of it is NaN."""
    made = p.PagedKVCache(_CONFIG, blocks, size, **more)
    made.pool.fill_(math.nan)
    return made


def _numbered(*shape: int) -> Tensor:
    """Numbers that are all different."""
    return torch.arange(math.prod(shape)).float().reshape(shape)


def _written(pool: Tensor) -> list:
    """(keys or values, layer, block, place) of every token that isn't NaN."""
    there = ~pool.isnan().all(-1).all(2)  # [2, L, B, S]
    return [tuple(each) for each in there.nonzero().tolist()]


@_SUITE.property("PagedKVCache", hint="which axis is which, and of which dtype?")
def _shapes(p: SimpleNamespace) -> None:
    """The pool is [2, L, Hkv, B, S, D] and the swap alike, both of the dtype asked."""
    for dtype in (torch.float32, torch.bfloat16):
        made = p.PagedKVCache(_CONFIG, 3, 5, dtype, num_swap_blocks=1)
        name = str(dtype).removeprefix("torch.")
        given = f"L=2 Hkv=2 D=4, 3 blocks of 5, 1 of CPU memory, {name}"
        for what, blocks in (("pool", 3), ("swap", 1)):
            got = getattr(made, what)
            shape = [2, _L, _HKV, blocks, 5, _D]
            expect(f"{given}: shape of {what}", list(got.shape), shape)
            expect(f"{given}: dtype of {what}", str(got.dtype), str(dtype))


@_SUITE.property("PagedKVCache", hint="keys and values of how many layers and heads?")
def _bytes(p: SimpleNamespace) -> None:
    """block_bytes counts the keys and values of all layers of one block."""
    for size, dtype, wanted in (
        (1, torch.float32, 128), (5, torch.float32, 640), (5, torch.bfloat16, 320),
    ):  # fmt: skip
        name = str(dtype).removeprefix("torch.")
        got = p.PagedKVCache.block_bytes(_CONFIG, size, dtype)
        expect(f"L=2 Hkv=2 D=4, a block of {size}, {name}: bytes", got, wanted)


@_SUITE.property(
    "PagedKVCache", hint="slot i is place i % block_size of block i // block_size"
)
def _stored(p: SimpleNamespace) -> None:
    """What is stored stands in each token's slot, of that layer alone."""
    for size, slots, layer in ((2, [0], 0), (2, [5, 0, 3], 1), (3, [8, 2, 3], 1)):
        made, T = _made(p, 3, size), len(slots)
        k, v = _numbered(2, T, _HKV, _D)
        made.store(layer, torch.tensor(slots), k, v)
        given = f"3 blocks of {size}, {T} tokens to slots {slots} of layer {layer}"
        places = sorted(
            (kind, layer, *divmod(slot, size)) for kind in (0, 1) for slot in slots
        )
        got = _written(made.pool)
        expect(f"{given}: written (keys or values, layer, block, place)", got, places)
        for kind, (name, new) in enumerate((("key", k), ("value", v))):
            for token, slot in enumerate(slots):
                held = made.pool[kind, layer, :, slot // size, slot % size]
                expect(f"{given}: {name} of token {token}", held, new[token])


@_SUITE.property("PagedKVCache", hint="in whose order, and where does it end?")
def _gathered(p: SimpleNamespace) -> None:
    """What is gathered are the first `end` tokens, in the order of the table."""
    for size, blocks, end in ((2, [1], 1), (2, [2, 0], 4), (2, [2, 0], 3), (3, [1], 3)):
        made = p.PagedKVCache(_CONFIG, 3, size)
        made.pool.copy_(_numbered(*made.pool.shape))
        keys, values = made.gather(1, torch.tensor(blocks), end)
        given = f"3 blocks of {size}, layer 1, blocks {blocks}, end {end}"
        for kind, (name, got) in enumerate((("keys", keys), ("values", values))):
            expect(f"{given}: shape of {name}", list(got.shape), [_HKV, end, _D])
            for i in range(end):
                wanted = made.pool[kind, 1, :, blocks[i // size], i % size]
                expect(f"{given}: {name} of token {i}", got[:, i], wanted)


@_SUITE.property(
    "PagedKVCache", hint="a block is all layers, keys and values; and when?"
)
def _moved(p: SimpleNamespace) -> None:
    """Moves copy whole blocks, between the pools, in their order."""
    for moves, pool, swap in (
        ([], [0, 1, 2], [3, 4]),
        ([("copy", 0, 2)], [0, 1, 0], [3, 4]),
        ([("out", 2, 0)], [0, 1, 2], [2, 4]),
        ([("in", 1, 0)], [4, 1, 2], [3, 4]),
        ([("out", 0, 1), ("out", 2, 0)], [0, 1, 2], [2, 0]),
        ([("out", 2, 1), ("out", 1, 0), ("out", 0, 1)], [0, 1, 2], [1, 0]),
        ([("out", 1, 0), ("copy", 0, 1), ("in", 0, 2)], [0, 0, 1], [1, 4]),
        ([("copy", 0, 1), ("out", 1, 0), ("in", 1, 0)], [4, 0, 2], [0, 4]),
    ):
        made = p.PagedKVCache(_CONFIG, 3, 2, num_swap_blocks=2)
        noise = _numbered(2, _L, _HKV, 1, 2, _D) / 1000  # no two numbers are the same
        marks = torch.arange(5).float().reshape(5, 1, 1)
        made.pool.copy_(marks[:3] + noise)
        made.swap.copy_(marks[3:] + noise)
        made.move(moves)
        given = f"blocks 0, 1, 2 here, 3, 4 in CPU memory, moves {moves}"
        for name, held, wanted in (
            ("here", made.pool, pool),
            ("there", made.swap, swap),
        ):
            got = [
                next((j for j in range(5) if torch.equal(block, marks[j] + each)), "?")
                for block, each in (
                    (held[:, :, :, i], noise[:, :, :, 0]) for i in range(len(wanted))
                )
            ]
            expect(f"{given}: {name} afterwards", got, wanted)
