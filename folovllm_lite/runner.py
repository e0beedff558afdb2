"""A scheduled step as tensors: one forward pass for everything that the step holds.

The scheduler speaks of sequences and counts, the model of packed tokens and a context.
Between the two stands this module, and it keeps no state but the model and the pool.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from folovllm_lite.attention import AttentionContext
from folovllm_lite.paged import PagedContext, PagedKVCache, Segment
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.scheduler import Step, Work
from folovllm_lite.utils import tensor_on


def passes(work: Iterable[Work], limit: int) -> list[list[Work]]:
    """Cut work, in order, into lists of at most `limit` tokens.

    A sequence may be cut too: its second part finds the first in the pool.
    """
    found: list[list[Work]] = [[]]
    room = limit
    for each in work:
        start = each.start
        while start < each.end:
            if not room:
                found.append([])
                room = limit
            end = min(each.end, start + room)
            found[-1].append(Work(each.seq, start, end))
            room -= end - start
            start = end
    return found


class Runner:
    """Runs steps.

    Args:
        model: on its device.
        cache: the pool of keys and values, on the same device.
        context: makes the attention context of a pass, as `PagedContext` does.
        pass_tokens: tokens of one forward pass on a CPU. What 2,000 tokens of a model
            of 0.6 billion parameters leave between two layers fits no cache: in four
            passes they took 0.4 times as long.
    """

    def __init__(
        self,
        model: Qwen3,
        cache: PagedKVCache,
        context: Callable[..., AttentionContext] = PagedContext,
        pass_tokens: int = 512,
    ):
        self.model, self.cache, self.context = model, cache, context
        self.device = model.lm_head.weight.device
        self.pass_tokens = pass_tokens

    def run(self, step: Step) -> Tensor:
        """Move blocks and compute the step; hidden states [T, E], packed like its work.

        The order of the work stays: with prefix caching, who reads blocks that are
        written in this step stands behind the one who writes them.
        """
        with torch._C._InferenceMode(True):  # as in `LLMEngine.compute`
            self.cache.move(step.moves)
            limit = self.pass_tokens if self.device.type == "cpu" else step.num_tokens
            parts = []
            for work in passes(step.work.values(), limit):
                token_ids, context = self.prepare(work)
                parts.append(self.model(token_ids, context))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prepare(self, work: list[Work]) -> tuple[Tensor, AttentionContext]:
        """Token ids [T] and the context of one pass over the model."""
        size = self.cache.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments: list[Segment] = []
        for each in work:
            first, blocks = len(token_ids), each.seq.block_ids
            token_ids += each.seq.data.get_slice(each.start, each.end)
            for i in range(each.start, each.end):
                positions.append(i)
                slots.append(blocks[i // size] * size + i % size)
            needed = blocks[: -(-each.end // size)]
            segments.append(Segment(first, len(token_ids), each.end, needed))
        # One tensor and not three: on a GPU it is one copy.
        rows = tensor_on([token_ids, positions, slots], self.device)
        return rows[0], self.context(self.cache, rows[1], rows[2], segments)
