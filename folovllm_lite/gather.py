"""Attention over blocks as fast as PyTorch's own operations make it on a CPU.

The same as `paged.PagedContext`, with the decoding rows of a step in one batch.
"""

import math
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from folovllm_lite.paged import PagedKVCache, Segment


class GatherContext:
    """A `PagedContext` whose leading decoding rows are one batch.

    Args:
        cache, positions, slots, segments: as there.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        positions: Tensor,
        slots: Tensor,
        segments: list[Segment],
    ):
        self.positions = positions
        self._cache, self._slots = cache, slots
        self._clear(segments)
        singles = list(takewhile(lambda each: each.last - each.first == 1, segments))
        self._num_rows = len(singles) if len(singles) > 1 else 0
        self._segments = segments[self._num_rows :]
        self._where = [self._locate(each.blocks, each.end) for each in self._segments]
        self._masks = [self._mask_of(segment) for segment in self._segments]
        if self._num_rows:
            self._prepare([each.blocks for each in singles])

    def _clear(self, segments: list[Segment]) -> None:
        # The end of a sequence's last block is read like the rest and weighs 0; but
        # what an earlier owner left there may be NaN, and 0 times NaN is NaN.
        size = self._cache.block_size
        for each in segments:
            begun = each.end - (each.last - each.first) <= each.end // size * size
            if each.end % size and begun:
                self._cache.pool.select(3, each.blocks[-1]).zero_()

    def _locate(self, blocks: list[int], end: int) -> tuple[int, int] | Tensor:
        """Slots [from, to) if the blocks follow each other, else the blocks."""
        first, size = blocks[0], self._cache.block_size
        if blocks == list(range(first, first + len(blocks))):
            return first * size, first * size + end
        return torch.tensor(blocks, device=self._cache.pool.device)

    def _prepare(self, tables: list[list[int]]) -> None:
        """What all layers need for the decoding rows."""
        pool, size = self._cache.pool, self._cache.block_size
        _, _, Hkv, B, _, _ = pool.shape
        longest = max(map(len, tables))
        blocks = torch.tensor(
            [table + table[-1:] * (longest - len(table)) for table in tables],
            device=pool.device,
        )  # [N, longest]; a short one repeats its own last block, never another's
        starts = torch.arange(Hkv, device=pool.device)[:, None] * B
        self._rows = starts + blocks.unsqueeze(1)  # [N, Hkv, longest]
        columns = torch.arange(longest * size, device=pool.device)
        seen = columns <= self.positions[: len(tables), None]  # [N, S]
        if pool.device.type != "cpu":
            self._mask = seen[:, None, None]  # [N, 1, 1, S]
            return
        offsets = torch.arange(size, dtype=torch.int32)
        slots = (blocks.int()[:, :, None] * size + offsets).flatten(1)  # [N, S]
        self._slots_of = slots.unsqueeze(1) + (starts * size).int()  # [N, Hkv, S]
        bias = torch.where(seen, *pool.new_tensor([0, -math.inf]))
        self._bias = bias.repeat_interleave(Hkv, 0)[:, None]

    def _mask_of(self, segment: Segment) -> Tensor | None:
        """None for a segment that begins its sequence, and for a lone token."""
        if segment.last - segment.first in (1, segment.end):
            return None
        columns = torch.arange(segment.end, device=self.positions.device)
        rows = self.positions[segment.first : segment.last]
        return columns <= rows[:, None]  # [rows, S]

    def _read(self, layer: int, where: tuple | Tensor, end: int) -> tuple:
        """Keys and values [Hkv, end, D] of what was located."""
        if isinstance(where, tuple):
            start, stop = where
            return tuple(kind[layer][:, start:stop] for kind in self._cache.slots)
        return self._cache.gather(layer, where, end)

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
                ks, vs = k[rows].transpose(0, 1), v[rows].transpose(0, 1)
            else:
                ks, vs = self._read(layer, where, segment.end)
            parts.append(_attend(q[rows], ks.unsqueeze(0), vs.unsqueeze(0), mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_rows(self, layer: int, q: Tensor) -> Tensor:
        """Attention of rows with one token each, q [N, Hq, D].

        The queries that share a key/value head take the place of positions: one batch
        of [group, D] times [D, S], and each key is read once.
        """
        (N, Hq, D), pool = q.shape, self._cache.pool
        Hkv = pool.shape[2]
        blocks = pool[:, layer].flatten(3).flatten(1, 2)  # [2, Hkv * B, S * D]
        shape = (N, Hkv, -1, D)
        keys = blocks[0][self._rows.flatten()].view(shape)
        q = q.unflatten(1, (Hkv, -1))  # [N, Hkv, group, D]
        if pool.device.type != "cpu":
            values = blocks[1][self._rows.flatten()].view(shape)
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
        places = self._slots_of.repeat_interleave(Hq // Hkv, 1)  # [N, Hq, S]
        return F.embedding_bag(
            places.view(N * Hq, -1),
            self._cache.slots[1][layer].flatten(0, 1),
            mode="sum",
            per_sample_weights=weights.view(N * Hq, -1),
        ).view(N, Hq, D)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one sequence's tokens, q [n, Hq, D] over k, v [1, Hkv, S, D]."""
    if len(q) == 1:  # the queries of a group take the place of positions
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
