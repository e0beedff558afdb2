"""Attention as the model sees it, and the plain version that everything is tested on.

The model hands query, key and value to an `AttentionContext` and gets the attended
values back. Where keys and values are kept, and which kernel reads them, is the
context's business alone: the model knows neither. A context is made for one step and
thrown away after it.
"""

import math
from typing import Protocol

import torch
from torch import Tensor


class AttentionContext(Protocol):
    """What a model needs to attend: positions for RoPE, and `attend` per layer."""

    positions: Tensor  # [T] int64, the place of each token in its own sequence

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v of `layer`, then attend causally.

        q [T, Hq, D]; k, v [T, Hkv, D]  ->  [T, Hq, D]
        """
        ...


def attention(q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor) -> Tensor:
    """Causal grouped-query attention, written out: softmax(q k^T / sqrt(D)) v.

    Query t sees key s when s <= q_positions[t]; key s stands at position s. Each group
    of Hq / Hkv query heads shares one key/value head (GQA, Ainslie et al. 2023).

    Args:
        q: [T, Hq, D].
        k: [S, Hkv, D], from position 0 on.
        v: [S, Hkv, D], likewise.
        q_positions: [T] int64.

    Returns:
        [T, Hq, D], in q's dtype; scores and softmax are computed in float32.
    """
    T, Hq, D = q.shape
    S, Hkv, _ = k.shape
    group = Hq // Hkv
    # Query heads [0 .. group) read key/value head 0, and so on: heads of a group are
    # neighbours. [T, Hq, D] -> [Hkv, group, T, D]
    q = q.view(T, Hkv, group, D).permute(1, 2, 0, 3)
    k = k.permute(1, 2, 0).unsqueeze(1)  # [Hkv, 1, D, S]
    v = v.permute(1, 0, 2).unsqueeze(1)  # [Hkv, 1, S, D]
    # In float16 a product of long vectors goes beyond 65504, and inf - inf is NaN.
    scores = (q.float() @ k.float()) / math.sqrt(D)  # [Hkv, group, T, S]
    hidden = torch.arange(S, device=q.device) > q_positions[:, None]  # [T, S]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1).to(v.dtype)
    return (weights @ v).permute(2, 0, 1, 3).reshape(T, Hq, D)


class PlainContext:
    """One sequence without a cache: the tokens given are all there is.

    Args:
        positions: [T] int64, 0 .. T - 1.
    """

    def __init__(self, positions: Tensor):
        self.positions = positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend over the T tokens themselves; nothing is stored."""
        return attention(q, k, v, self.positions)
