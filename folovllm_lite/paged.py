"""Keys and values in blocks, and attention over them.

The pool is one tensor for keys and one for values. A step's context knows, for each of
its tokens, the slot that it is stored in, and for each sequence the blocks of its past.
It knows no sequences and no requests: the runner gives it numbers.
"""

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
        # Heads before tokens, so that blocks of one head, side by side, are what the
        # attention kernel reads: [L, B, Hkv, S, D], for keys and for values.
        tail = (config.num_kv_heads, block_size, config.head_dim)
        shape = (2, config.num_layers, num_blocks, *tail)
        self.pool = torch.empty(shape, dtype=dtype, device=device)
        shape = (2, config.num_layers, num_swap_blocks, *tail)
        self.swap = torch.empty(shape, dtype=dtype)
        # The same memory per kind and layer, to write tokens, [B * Hkv * S, D], and to
        # read blocks, [B * Hkv, S * D].
        layers = [list(kind) for kind in self.pool]
        self._written = [[x.flatten(0, 2) for x in kind] for kind in layers]
        self._read = [[x.flatten(0, 1).flatten(1) for x in kind] for kind in layers]
        self._heads = torch.arange(config.num_kv_heads, device=device)
        # Where gathered blocks go, made when needed. A fresh tensor for each layer cost
        # more than the copy: pages that the system has to hand out, and to zero, first.
        self._gathered = self.pool.new_empty((2, 0, block_size * config.head_dim))

    @staticmethod
    def block_bytes(config: Qwen3Config, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block: keys and values of all layers."""
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return per_token * block_size * dtype.itemsize

    def rows(self, blocks: Tensor) -> Tensor:
        """Rows [..., Hkv, B] of `gather` for blocks [..., B]."""
        heads = self._heads[:, None]
        return torch.add(heads, blocks.unsqueeze(-2), alpha=self.num_kv_heads)

    def gather(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [..., Hkv, B * S, D] of rows [..., Hkv, B].

        They stand in memory that the next call writes over.
        """
        count = rows.numel()
        if count > self._gathered.shape[1]:
            shape = (2, 2 * count, self._gathered.shape[2])
            self._gathered = self.pool.new_empty(shape)
        D = self.pool.shape[-1]
        found = []
        for kind in (0, 1):
            out = self._gathered[kind, :count]
            torch.index_select(self._read[kind][layer], 0, rows.flatten(), out=out)
            found.append(out.view(*rows.shape[:-1], -1, D))
        return found[0], found[1]

    def store(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Write k, v [T, Hkv, D] to places [T * Hkv], counted in rows of D numbers."""
        for kind, x in enumerate((k, v)):
            rows = x.flatten(0, 1)  # [T, Hkv, D] -> [T * Hkv, D]
            self._written[kind][layer].index_copy_(0, places, rows)

    def places(self, slots: Tensor) -> Tensor:
        """Where `store` puts the heads of tokens in `slots` [T]: [T * Hkv]."""
        S, Hkv = self.block_size, self.num_kv_heads
        slots = slots[:, None]
        # (block * Hkv + head) * S + offset, where slot is block * S + offset
        past = torch.add(slots, slots // S, alpha=(Hkv - 1) * S)
        return torch.add(past, self._heads, alpha=S).flatten()

    def clear(self, block_ids: list[int]) -> None:
        """Set blocks to 0.

        The end of a sequence's last block is read like the rest and weighs 0; but what
        an earlier owner left there may be NaN, and 0 times NaN is NaN.
        """
        if block_ids:
            self.pool[:, :, block_ids] = 0

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
                target[:, :, list(new)] = source[:, :, list(old)].to(target.device)


@dataclass(slots=True)
class Segment:
    """A sequence with several tokens in the step: rows [first, last) of the packed T.

    Args:
        first: its first row.
        last: one past its last.
        end: how many tokens of it there are, the step's included.
        blocks: [B] int64, the blocks that hold them.
    """

    first: int
    last: int
    end: int
    blocks: Tensor


class PagedContext:
    """Attention of one step over the pool: first N decoding rows, then segments.

    Args:
        cache: the pool.
        positions: [T] int64, place of each token in its sequence.
        slots: [T] int64, where each token is stored: block * block_size + offset.
        tables: [N, B] int64, the blocks of the decoding rows' sequences; a row shorter
            than the longest repeats its own last block, never another's.
        longest: tokens of the longest of them, the step's included.
        segments: the other sequences.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        positions: Tensor,
        slots: Tensor,
        tables: Tensor,
        longest: int,
        segments: list[Segment],
    ):
        self.positions = positions
        self._cache, self._segments = cache, segments
        self._places = cache.places(slots)
        self._rows = cache.rows(tables)  # [N, Hkv, B]
        self._longest, self._mask = longest, None
        if len(tables) > 1:
            columns = torch.arange(
                tables.shape[1] * cache.block_size, device=positions.device
            )
            seen = columns <= positions[: len(tables), None]  # [N, S]
            self._mask = seen[:, None, None]  # [N, 1, 1, S]
        self._masks = [self._mask_of(segment) for segment in segments]

    def _mask_of(self, segment: Segment) -> Tensor | None:
        """None for a segment that begins its sequence: plain causal attention."""
        if segment.end == segment.last - segment.first:
            return None
        columns = torch.arange(segment.end, device=self.positions.device)
        rows = self.positions[segment.first : segment.last]
        return columns <= rows[:, None]  # [rows, S]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v in their slots, then attend; q [T, Hq, D] -> [T, Hq, D]."""
        self._cache.store(layer, self._places, k, v)
        N, Hkv, D = len(self._rows), *k.shape[1:]
        parts = []
        if N:
            ks, vs = self._cache.gather(layer, self._rows)  # [N, Hkv, S, D]
            if N == 1:  # nobody is longer, so the end needs no mask: it is cut off
                ks, vs = ks[:, :, : self._longest], vs[:, :, : self._longest]
            # The queries that share a key/value head take the place of positions: one
            # batch of [group, D] times [D, S], and each key is read once.
            out = F.scaled_dot_product_attention(
                q[:N].unflatten(1, (Hkv, -1)), ks, vs, attn_mask=self._mask
            )  # [N, Hkv, group, D]
            parts.append(out.reshape(N, -1, D))
        for segment, mask in zip(self._segments, self._masks, strict=True):
            rows = slice(segment.first, segment.last)
            if mask is None:
                ks, vs = k[rows].transpose(0, 1), v[rows].transpose(0, 1)
            else:
                found = self._cache.gather(layer, self._cache.rows(segment.blocks))
                ks, vs = (x[:, : segment.end] for x in found)  # [Hkv, S, D]
            out = F.scaled_dot_product_attention(
                q[rows].transpose(0, 1).unsqueeze(0),  # [1, Hq, rows, D]
                ks.unsqueeze(0),
                vs.unsqueeze(0),
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )
            parts.append(out.squeeze(0).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
