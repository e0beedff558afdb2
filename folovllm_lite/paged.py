"""Keys and values in blocks, and attention over them.

The pool is one tensor for keys and one for values. A step's context knows, for each of
its tokens, the slot that it is stored in, and for each sequence the blocks of its past.
It knows no sequences and no requests: the runner gives it numbers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from folovllm_lite.block_manager import Moves
from folovllm_lite.qwen3 import Qwen3Config


class PagedKVCache:
    """The pool: `num_blocks` blocks of `block_size` tokens, for all layers.

    Args:
        config: of the model.
        num_blocks: of the pool.
        block_size: tokens a block holds.
        dtype: of keys and values; the model's.
        device: the model's.
        num_swap_blocks: blocks in CPU memory, for sequences that are swapped out.
    """

    def __init__(
        self,
        config: Qwen3Config,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        num_swap_blocks: int = 0,
    ):
        self.block_size, self.num_kv_heads = block_size, config.num_kv_heads
        self.group = config.num_heads // config.num_kv_heads
        # Heads before blocks: blocks with consecutive numbers, of one head, are memory
        # that the attention kernel reads as it is. [2, L, Hkv, B, S, D], the 2 being
        # keys and values.
        start, end = (2, config.num_layers, config.num_kv_heads), config.head_dim
        shape = (*start, num_blocks, block_size, end)
        self.pool = torch.empty(shape, dtype=dtype, device=device)
        shape = (*start, num_swap_blocks, block_size, end)
        self.swap = torch.empty(shape, dtype=dtype)
        # The same memory per kind and layer: by token, [Hkv, B * S, D]; by token of any
        # head, [Hkv * B * S, D]; by block of any head, [Hkv * B, S * D].
        self._by_token = self.pool.flatten(3, 4).flatten(0, 1).unsqueeze(1)
        layers = [list(kind) for kind in self.pool]
        self.heads = [[x.flatten(1, 2) for x in kind] for kind in layers]
        self.tokens = [[x.flatten(0, 2) for x in kind] for kind in layers]
        self._blocks = [[x.flatten(2).flatten(0, 1) for x in kind] for kind in layers]
        # Where each head begins, counted in blocks: [Hkv, 1].
        heads = torch.arange(config.num_kv_heads, device=device)
        self._first = (heads * num_blocks)[:, None]
        # And where the head begins that a query head reads, in tokens: [Hq, 1] int32.
        starts = self._first.int() * block_size
        self._starts = starts.repeat_interleave(self.group, 0)
        # Where gathered blocks go, made when needed. A fresh tensor for each layer cost
        # more than the copy: pages that the system has to hand out, and to zero, first.
        self._gathered = self.pool.new_empty((2, 0, block_size * end))

    @staticmethod
    def block_bytes(config: Qwen3Config, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block: keys and values of all layers."""
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return per_token * block_size * dtype.itemsize

    def rows(self, blocks: Tensor) -> Tensor:
        """Rows [..., Hkv, B] of `gather` for blocks [..., B]."""
        return self._first + blocks.unsqueeze(-2)

    def places(self, slots: Tensor) -> Tensor:
        """Rows [..., Hq, T] of `tokens`, int32, for slots [..., T] that are, too."""
        return self._starts + slots.unsqueeze(-2)

    def locate(self, blocks: list[int], end: int) -> tuple | Tensor:
        """Where `read` finds the first `end` tokens of a sequence.

        Blocks that follow each other, as a lone request gets them, are one piece of
        memory: then it is the tokens themselves, a view for each kind and layer, and
        nothing has to be copied. Else the rows of `gather`.
        """
        first = blocks[0]
        if blocks == list(range(first, first + len(blocks))):
            start = first * self.block_size
            return self._by_token[:, :, :, start : start + end].unbind()
        return self.rows(torch.tensor(blocks, device=self.pool.device))

    def read(self, kind: int, layer: int, where: tuple | Tensor, end: int) -> Tensor:
        """Keys (kind 0) or values (1) [1, Hkv, end, D] of what was located."""
        if isinstance(where, tuple):
            return where[kind * len(self.heads[0]) + layer]
        return self.gather(kind, layer, where)[None, :, :end]

    def gather(self, kind: int, layer: int, rows: Tensor) -> Tensor:
        """Keys (kind 0) or values (1) [..., Hkv, B * S, D] of rows [..., Hkv, B].

        They stand in memory that the next call for this kind writes over.
        """
        count = rows.numel()
        if count > self._gathered.shape[1]:
            shape = (2, 2 * count, self._gathered.shape[2])
            self._gathered = self.pool.new_empty(shape)
        out = self._gathered[kind, :count]
        torch.index_select(self._blocks[kind][layer], 0, rows.flatten(), out=out)
        return out.view(*rows.shape[:-1], -1, self.pool.shape[-1])

    def store(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write k, v [T, Hkv, D] to slots [T]."""
        self.heads[0][layer].index_copy_(1, slots, k.transpose(0, 1))
        self.heads[1][layer].index_copy_(1, slots, v.transpose(0, 1))

    def clear(self, block_ids: list[int]) -> None:
        """Set blocks to 0.

        The end of a sequence's last block is read like the rest and weighs 0; but what
        an earlier owner left there may be NaN, and 0 times NaN is NaN.
        """
        for block_id in block_ids:  # mostly none or one: an index costs more
            self.pool.select(3, block_id).zero_()

    def move(self, swap_out: Moves, swap_in: Moves, copies: Moves) -> None:
        """Carry out the moves of a step, in this order.

        First out, because what comes in, or is copied, may get the blocks that go.
        """
        for moves, source, target in (
            (swap_out, self.pool, self.swap),
            (swap_in, self.swap, self.pool),
            (copies, self.pool, self.pool),
        ):
            if moves:
                old, new = zip(*moves, strict=True)
                target[:, :, :, list(new)] = source[:, :, :, list(old)].to(
                    target.device
                )


@dataclass(slots=True)
class Segment:
    """A sequence's tokens in the step: rows [first, last) of the packed T.

    Args:
        first: its first row.
        last: one past its last.
        end: how many tokens of it there are, the step's included.
        blocks: that hold them.
    """

    first: int
    last: int
    end: int
    blocks: list[int]


class PagedContext:
    """Attention of one step over the pool: first N decoding rows, then segments.

    Args:
        cache: the pool.
        positions: [T] int64, place of each token in its sequence.
        slots: [T] int64, where each token is stored: block * block_size + offset.
        tables: [N, B] int64, the blocks of the decoding rows' sequences; a row shorter
            than the longest repeats its own last block, never another's.
        segments: the other sequences, one by one.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        positions: Tensor,
        slots: Tensor,
        tables: Tensor,
        segments: list[Segment],
    ):
        self.positions = positions
        self._cache, self._slots, self._segments = cache, slots, segments
        self._where = [cache.locate(each.blocks, each.end) for each in segments]
        self._masks = [self._mask_of(segment) for segment in segments]
        self._num_rows = len(tables)
        if len(tables):
            self._prepare(tables)

    def _prepare(self, tables: Tensor) -> None:
        """What all layers need for the decoding rows."""
        cache, size = self._cache, self._cache.block_size
        self._rows = cache.rows(tables)  # [N, Hkv, B]
        columns = torch.arange(tables.shape[1] * size, device=tables.device)
        seen = columns <= self.positions[: len(tables), None]  # [N, S]
        self._values = None
        if cache.pool.device.type != "cpu":
            self._mask = seen[:, None, None]  # [N, 1, 1, S]
        else:
            offsets = torch.arange(size, dtype=torch.int32)
            slots = (tables.int()[:, :, None] * size + offsets).flatten(1)  # [N, S]
            self._values = cache.places(slots).flatten(0, 1)  # [N * Hq, S]
            bias = torch.where(seen, *cache.pool.new_tensor([0, -math.inf]))
            self._bias = bias.repeat_interleave(cache.num_kv_heads, 0)[:, None]

    def _mask_of(self, segment: Segment) -> Tensor | None:
        """None for a segment that begins its sequence, and for a lone token."""
        if segment.last - segment.first in (1, segment.end):
            return None
        columns = torch.arange(segment.end, device=self.positions.device)
        rows = self.positions[segment.first : segment.last]
        return columns <= rows[:, None]  # [rows, S]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v in their slots, then attend; q [T, Hq, D] -> [T, Hq, D]."""
        self._cache.store(layer, self._slots, k, v)
        parts = []
        if self._num_rows:
            parts.append(self._attend_rows(layer, q[: self._num_rows]))
        for segment, where, mask in zip(
            self._segments, self._where, self._masks, strict=True
        ):
            rows = slice(segment.first, segment.last)
            if segment.end == segment.last - segment.first:  # nothing came before it
                ks, vs = (x[rows].transpose(0, 1).unsqueeze(0) for x in (k, v))
            else:
                ks = self._cache.read(0, layer, where, segment.end)
                vs = self._cache.read(1, layer, where, segment.end)
            parts.append(self._attend_segment(q[rows], ks, vs, mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_rows(self, layer: int, q: Tensor) -> Tensor:
        """Attention of rows with one token each, q [N, Hq, D].

        The queries that share a key/value head take the place of positions: one batch
        of [group, D] times [D, S], and each key is read once.
        """
        (N, Hq, D), cache = q.shape, self._cache
        keys = cache.gather(0, layer, self._rows)  # [N, Hkv, S, D]
        q = q.unflatten(1, (cache.num_kv_heads, -1))  # [N, Hkv, group, D]
        if self._values is None:
            values = cache.gather(1, layer, self._rows)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask)
            return out.reshape(N, Hq, D)
        # A weighted sum of value rows is what an embedding bag computes, and that reads
        # them where they are: no copy of the values, and twice as fast as the kernel.
        scores = torch.baddbmm(
            self._bias,
            q.flatten(0, 1),
            keys.flatten(0, 1).transpose(1, 2),
            alpha=1 / math.sqrt(D),
        )  # [N * Hkv, group, S]
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        return F.embedding_bag(
            self._values,
            cache.tokens[1][layer],
            mode="sum",
            per_sample_weights=weights.view(N * Hq, -1),
        ).view(N, Hq, D)

    @staticmethod
    def _attend_segment(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one sequence's tokens, q [n, Hq, D] over k, v [1, Hkv, S, D]."""
        if len(q) == 1:  # as above
            q = q.view(1, k.shape[1], -1, q.shape[-1])  # [1, Hkv, group, D]
            return F.scaled_dot_product_attention(q, k, v).flatten(1, 2)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),  # [1, Hq, n, D]
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        return out.squeeze(0).transpose(0, 1)
