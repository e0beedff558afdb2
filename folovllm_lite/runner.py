"""A scheduled step as tensors: one forward pass for everything that the step holds.

The scheduler speaks of sequences and counts, the model of packed tokens and a context.
Between the two stands this module, and it keeps no state but the model and the pool.
"""

from itertools import takewhile

import torch
from torch import Tensor

from folovllm_lite.paged import PagedContext, PagedKVCache, Segment
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.scheduler import Step, Work

# Tokens of one forward pass on a CPU. What 2,000 tokens of a model of 0.6 billion
# parameters leave between two layers fits no cache: in four passes they took 0.4 times
# as long.
_PASS_TOKENS = 512


def decodes(work: Work) -> bool:
    """Whether this is a sequence's one token that is missing.

    Not every single token is: of a prompt that is cut, the rest of the blocks isn't
    written yet, and a row of a batch is read to the end of its table.
    """
    return work.count == 1 and work.end == work.seq.get_len()


def passes(work: list[Work], limit: int) -> list[list[Work]]:
    """Cut work, in order, into lists of at most `limit` tokens.

    A sequence may be cut too: its second part finds the first in the pool.
    """
    if sum(each.count for each in work) <= limit:
        return [work]
    found: list[list[Work]] = [[]]
    room = limit
    for each in work:
        start = each.start
        while start < each.end:
            if not room:
                found.append([])
                room = limit
            count = min(room, each.end - start)
            found[-1].append(Work(each.seq, start, count))
            start += count
            room -= count
    return found


class Runner:
    """Runs steps.

    Args:
        model: on its device.
        cache: the pool of keys and values, on the same device.
    """

    def __init__(self, model: Qwen3, cache: PagedKVCache):
        self.model = model
        self.cache = cache
        self._device = model.lm_head.weight.device
        self._no_tables = self._tensor([]).view(0, 0)

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """Move blocks and compute the step; hidden states [T, E], packed like its work.

        The order of the work stays: whoever shares blocks that are written in this step
        stands behind the one who writes them.
        """
        cache, size = self.cache, self.cache.block_size
        cache.move(step.swap_out, step.swap_in, step.copies)
        # Blocks that begin in this step and are not filled by it.
        cache.clear(
            [
                work.seq.block_ids[-1]
                for work in step.work
                if work.end % size and work.start <= work.end // size * size
            ]
        )
        limit = _PASS_TOKENS if self._device.type == "cpu" else step.num_tokens
        parts = [self._forward(work) for work in passes(step.work, limit)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _forward(self, work: list[Work]) -> Tensor:
        """Hidden states [T, E] of one pass over the model."""
        size = self.cache.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for each in work:
            blocks = each.seq.block_ids
            token_ids += each.seq.data.get_slice(each.start, each.end)
            for i in range(each.start, each.end):
                positions.append(i)
                slots.append(blocks[i // size] * size + i % size)
        # One tensor and not three: on a GPU it is one copy to wait for.
        rows = self._tensor([token_ids, positions, slots]).unbind()
        return self.model(rows[0], self._context(work, *rows[1:]))

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _context(
        self, work: list[Work], positions: Tensor, slots: Tensor
    ) -> PagedContext:
        singles = list(takewhile(decodes, work))
        if len(singles) == 1:  # a batch of one gains nothing
            singles = []
        segments, first = [], len(singles)
        for each in work[first:]:
            last = first + each.count
            segments.append(Segment(first, last, each.end, each.seq.block_ids))
            first = last
        return PagedContext(
            self.cache,
            positions,
            slots,
            self._tables(singles),
            segments,
        )

    def _tables(self, work: list[Work]) -> Tensor:
        """The block tables [N, B] of some rows, each filled up with its last block."""
        if not work:
            return self._no_tables
        tables = [each.seq.block_ids for each in work]
        longest = max(map(len, tables))
        return self._tensor(
            [blocks + blocks[-1:] * (longest - len(blocks)) for blocks in tables]
        )
