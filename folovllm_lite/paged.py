"""Keys and values in blocks, and attention over them that a reader can follow.

The pool is one tensor for keys and values of all layers. A step's context knows, for
each of its tokens, the slot that it is stored in, and for each sequence the blocks of
its past. It knows no sequences and no requests: the runner gives it numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from folovllm_lite.qwen3 import Qwen3Config
from folovllm_lite.scheduler import Move
from folovllm_lite.utils import tensor_on


class PagedKVCache:
    """The pool: `num_blocks` blocks of `block_size` tokens, for all layers.

    Args:
        config: of the model.
        num_blocks: of the pool.
        block_size: tokens a block holds.
        dtype: of keys and values; the model's.
        device: the model's.
        num_swap_blocks: blocks in CPU memory, for sequences that are swapped out.

    Slot i is token i % block_size of block i // block_size.
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
        # Heads before blocks: what one head of a sequence reads, in blocks that follow
        # each other, is one piece of memory. [2, L, Hkv, B, S, D]; the 2 are keys and
        # values.
        start, end = (2, config.num_layers, config.num_kv_heads), config.head_dim
        shape = (*start, num_blocks, block_size, end)
        self.pool = torch.empty(shape, dtype=dtype, device=device)
        shape = (*start, num_swap_blocks, block_size, end)
        self.swap = torch.empty(shape, dtype=dtype)
        # The same memory by slot, for each kind and layer: [Hkv, B * S, D].
        self.slots = [[x.flatten(1, 2) for x in kind] for kind in self.pool]

    @staticmethod
    def block_bytes(config: Qwen3Config, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block: keys and values of all layers."""
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return per_token * block_size * dtype.itemsize

    def store(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write k, v [T, Hkv, D] to slots [T]."""
        self.slots[0][layer].index_copy_(1, slots, k.transpose(0, 1))
        self.slots[1][layer].index_copy_(1, slots, v.transpose(0, 1))

    def gather(self, layer: int, blocks: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values [Hkv, end, D] of the first `end` tokens in these blocks."""
        # [Hkv, len(blocks), S, D] -> [Hkv, len(blocks) * S, D]. What lies behind `end`
        # is a former holder's, maybe NaN, and not even a weight of 0 takes a NaN away.
        keys = self.pool[0, layer][:, blocks].flatten(1, 2)[:, :end]
        values = self.pool[1, layer][:, blocks].flatten(1, 2)[:, :end]
        return keys, values

    def move(self, moves: Iterable[Move]) -> None:
        """Carry out the moves of a step, in their order."""
        pools = {
            "out": (self.pool, self.swap),
            "in": (self.swap, self.pool),
            "copy": (self.pool, self.pool),
        }
        # One copy for all neighbours of one kind. None reads what one before it writes:
        # who gets a block in a step isn't forked in it. But two may go out to one
        # place, if the first one's owner was released. Of two writes in one copy
        # PyTorch doesn't say which counts, so the first is left out.
        for kind, group in groupby(moves, key=lambda move: move[0]):
            source, target = pools[kind]
            last = {new: old for _, old, new in group}
            old, new = list(last.values()), list(last)
            taken = source[:, :, :, tensor_on(old, source.device)].to(target.device)
            target[:, :, :, tensor_on(new, target.device)] = taken


@dataclass(slots=True)
class Segment:
    """A sequence's tokens in the step: rows [first, last) of the packed T.

    Args:
        first: its first row.
        last: one past its last.
        end: how many tokens of it there are, the step's included.
        blocks: that hold them, and no more.
    """

    first: int
    last: int
    end: int
    blocks: list[int]


class PagedContext:
    """Attention of one step over the pool, sequence by sequence: gather, then attend.

    Args:
        cache: the pool.
        positions: [T] int64, place of each token in its sequence.
        slots: [T] int64, where each token is stored.
        segments: the sequences, in the order of their rows.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        positions: Tensor,
        slots: Tensor,
        segments: list[Segment],
    ):
        self.positions = positions
        self._cache, self._slots, self._segments = cache, slots, segments
        # One tensor and its parts: on a GPU it is one copy.
        blocks = list(chain.from_iterable(each.blocks for each in segments))
        lengths = [len(each.blocks) for each in segments]
        self._tables = tensor_on(blocks, cache.pool.device).split(lengths)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v in their slots, then attend; q [T, Hq, D] -> [T, Hq, D]."""
        self._cache.store(layer, self._slots, k, v)
        parts = []
        for each, table in zip(self._segments, self._tables, strict=True):
            keys, values = self._cache.gather(layer, table, each.end)
            queries = q[each.first : each.last].transpose(0, 1)  # [Hq, n, D]
            out = F.scaled_dot_product_attention(
                queries.unsqueeze(0),
                keys.unsqueeze(0),  # [1, Hkv, end, D]
                values.unsqueeze(0),
                # The last query sees all keys, the one before it one less, and so on.
                attn_mask=causal_lower_right(each.last - each.first, each.end),
                enable_gqa=True,
            )
            parts.append(out.squeeze(0).transpose(0, 1))  # [n, Hq, D]
        return torch.cat(parts)
