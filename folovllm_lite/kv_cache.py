"""A contiguous KV cache: one sequence, memory for its longest form taken up front.

It trades memory for simplicity. Every position owns a slot from the start, used or not,
and that waste is what the paged cache removes later on.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from folovllm_lite.qwen3 import Qwen3Config


class ContiguousKVCache:
    """Keys and values of one sequence, for all layers.

    Args:
        config: of the model.
        max_len: most tokens it can hold.
        dtype: of keys and values; the model's.
        device: the model's.

    `length` says how many tokens are stored. A step is: `ctx = cache.step(T)`, a
    forward pass with `ctx`, `cache.advance(T)`. A pass that fails halfway has changed
    nothing: the next one writes over what it left.
    """

    def __init__(
        self,
        config: Qwen3Config,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        if max_len < 1:
            raise ValueError(f"max_len must be positive, got {max_len}")
        # Heads before positions, as the kernel reads them: [L, Hkv, max_len, D]
        shape = (config.num_layers, config.num_kv_heads, max_len, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.max_len = max_len
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken, whatever `length` is."""
        return self.keys.nbytes + self.values.nbytes

    def step(self, tokens: int) -> "ContiguousContext":
        """The attention context of the next `tokens` tokens.

        Raises:
            ValueError: with the numbers, if they are fewer than 1 or don't fit behind
                the tokens that are stored.
        """
        if tokens < 1:
            raise ValueError(f"a step needs at least 1 token, got {tokens}")
        if self.length + tokens > self.max_len:
            raise ValueError(
                f"the cache holds {self.length} of {self.max_len} tokens, "
                f"{tokens} more don't fit"
            )
        return ContiguousContext(self, tokens)

    def advance(self, tokens: int) -> None:
        """Count `tokens` tokens, computed through `step`, as stored.

        Raises:
            ValueError: if they are fewer than 1, or more than there is room for.
        """
        if not 0 < tokens <= self.max_len - self.length:
            raise ValueError(
                f"can't advance by {tokens}: the cache holds {self.length} of "
                f"{self.max_len} tokens"
            )
        self.length += tokens

    def copy(self) -> "ContiguousKVCache":
        """A cache with the same past and its own future."""
        twin = object.__new__(ContiguousKVCache)
        twin.keys, twin.values = self.keys.clone(), self.values.clone()
        twin.max_len, twin.length = self.max_len, self.length
        return twin


class ContiguousContext:
    """Attention of T new tokens over a cache's past and themselves."""

    def __init__(self, cache: ContiguousKVCache, tokens: int):
        self._cache = cache
        self._start, self._end = cache.length, cache.length + tokens
        device = cache.keys.device
        self.positions = torch.arange(self._start, self._end, device=device)
        # A lone query sees everything stored, and a whole prompt is plain causal. Only
        # a chunk behind a past needs a mask: is_causal would align it top left, with
        # key 0.
        self._causal = self._start == 0 and tokens > 1
        self._mask = None
        if tokens > 1 and not self._causal:
            keys = torch.arange(self._end, device=device)
            self._mask = keys <= self.positions[:, None]  # [T, S]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v at the new positions, attend over [0, end)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        # [T, Hkv, D] -> [Hkv, T, D]
        keys[:, self._start : self._end] = k.transpose(0, 1)
        values[:, self._start : self._end] = v.transpose(0, 1)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),  # [T, Hq, D] -> [1, Hq, T, D]
            keys[:, : self._end].unsqueeze(0),
            values[:, : self._end].unsqueeze(0),
            attn_mask=self._mask,
            is_causal=self._causal,
            enable_gqa=True,
        )
        return out.squeeze(0).transpose(0, 1)  # [1, Hq, T, D] -> [T, Hq, D]
