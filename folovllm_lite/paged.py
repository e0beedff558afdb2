"""Keys and values in blocks, and attention over them.

The pool is one tensor for keys and one for values. A step's context knows, for each of
its tokens, the slot that it is stored in, and for each sequence the slots of its past.
It
knows no sequences, requests or block tables as objects: the runner gives it numbers.
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
        self.block_size = block_size
        tail = (block_size, config.num_kv_heads, config.head_dim)
        # keys and values as one tensor, so that a block is moved with one operation:
        # [2, L, B, S, Hkv, D]
        self.pool = torch.empty(
            (2, config.num_layers, num_blocks, *tail), dtype=dtype, device=device
        )
        self.swap = torch.empty(
            (2, config.num_layers, num_swap_blocks, *tail), dtype=dtype
        )
        # Per layer and slot, without the blocks: [L][B * S, Hkv, D]
        self.keys = [layer.flatten(0, 1) for layer in self.pool[0]]
        self.values = [layer.flatten(0, 1) for layer in self.pool[1]]

    @staticmethod
    def block_bytes(config: Qwen3Config, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block: keys and values of all layers."""
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return per_token * block_size * dtype.itemsize

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
        first, last: its rows.
        slots: [S] int64, of its tokens from position 0 to the last of these rows.
    """

    first: int
    last: int
    slots: Tensor


class PagedContext:
    """Attention of one step over the pool: first N decoding rows, then segments.

    Args:
        cache: the pool.
        positions: [T] int64, place of each token in its sequence.
        slots: [T] int64, where each token is stored.
        past: [N, S] int64, the slots of the N decoding rows' sequences. A row shorter
            than the longest repeats its own last slot, and never names another's: a
            masked weight of 0 times a stranger's NaN would be NaN.
        lengths: [N] int64, how many of them are real.
        segments: the other sequences.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        positions: Tensor,
        slots: Tensor,
        past: Tensor,
        lengths: Tensor,
        segments: list[Segment],
    ):
        self.positions = positions
        self._cache, self._slots = cache, slots
        self._past, self._segments = past, segments
        N, S = past.shape
        columns = torch.arange(S, device=past.device)
        keep = columns < lengths[:, None]  # [N, S]
        self._mask = None if N == 1 else keep[:, None, None]  # [N, 1, 1, S]
        self._masks = [self._mask_of(segment) for segment in segments]

    def _mask_of(self, segment: Segment) -> Tensor | None:
        """None for a segment that begins its sequence: plain causal attention."""
        if len(segment.slots) == segment.last - segment.first:
            return None
        columns = torch.arange(len(segment.slots), device=self.positions.device)
        rows = self.positions[segment.first : segment.last]
        return columns <= rows[:, None]  # [rows, S]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v in their slots, then attend; q [T, Hq, D] -> [T, Hq, D]."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(0, self._slots, k)
        values.index_copy_(0, self._slots, v)
        N, S = self._past.shape
        parts = []
        if N:
            Hkv, D = k.shape[1:]
            # The queries that share a key/value head take the place of positions: one
            # batch of [group, D] times [D, S], and each key is read once.
            past = self._past.flatten()
            out = F.scaled_dot_product_attention(
                q[:N].view(N, Hkv, -1, D),
                keys.index_select(0, past).view(N, S, Hkv, D).transpose(1, 2),
                values.index_select(0, past).view(N, S, Hkv, D).transpose(1, 2),
                attn_mask=self._mask,
            )  # [N, Hkv, group, D]
            parts.append(out.reshape(N, -1, D))
        for segment, mask in zip(self._segments, self._masks, strict=True):
            rows = slice(segment.first, segment.last)
            if mask is None:
                ks, vs = k[rows], v[rows]
            else:
                ks, vs = keys[segment.slots], values[segment.slots]
            out = F.scaled_dot_product_attention(
                q[rows]
                .transpose(0, 1)
                .unsqueeze(0),  # [rows, Hq, D] -> [1, Hq, rows, D]
                ks.transpose(0, 1).unsqueeze(0),
                vs.transpose(0, 1).unsqueeze(0),
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )
            parts.append(out.squeeze(0).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
