"""A scheduled step as tensors: one forward pass for everything that the step holds.

The scheduler speaks of sequences and counts, the model of packed tokens and a context.
Between the two stands this module, and it keeps no state but the model and the pool.
"""

import torch
from torch import Tensor

from folovllm_lite.paged import PagedContext, PagedKVCache, Segment
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.scheduler import Step, Work


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

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """Move blocks and compute the step; hidden states [T, E], packed like its work.

        The work is put in order here: rows that add one token come first.
        """
        self.cache.move(step.swap_out, step.swap_in, step.copies)
        step.work.sort(key=lambda work: work.count > 1)
        token_ids = [
            token_id
            for work in step.work
            for token_id in work.seq.data.get_slice(work.start, work.end)
        ]
        return self.model(self._tensor(token_ids), self._context(step.work))

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _context(self, work: list[Work]) -> PagedContext:
        singles = [each for each in work if each.count == 1]
        segments, first = [], len(singles)
        for each in work[first:]:
            slots = self._slots(self._tensor([each.seq.block_ids]), [each.end])[0]
            segments.append(Segment(first, first + each.count, slots))
            first += each.count
        past = self._slots(self._tables(singles), [each.end for each in singles])
        lengths = self._tensor([each.end for each in singles])
        positions = [lengths - 1]
        slots = [past.gather(1, lengths[:, None] - 1)[:, 0]] if singles else []
        for each, segment in zip(work[len(singles) :], segments, strict=True):
            positions.append(torch.arange(each.start, each.end, device=self._device))
            slots.append(segment.slots[each.start :])
        return PagedContext(
            self.cache, torch.cat(positions), torch.cat(slots), past, lengths, segments
        )

    def _tables(self, work: list[Work]) -> Tensor:
        """The block tables [N, B] of some rows, shorter ones filled up with 0."""
        longest = max((len(each.seq.block_ids) for each in work), default=0)
        return self._tensor(
            [
                each.seq.block_ids + [0] * (longest - len(each.seq.block_ids))
                for each in work
            ]
        ).view(len(work), longest)

    def _slots(self, tables: Tensor, lengths: list[int]) -> Tensor:
        """Slots [N, S] of the tokens 0 to S - 1; beyond a row's length its last one."""
        size = self.cache.block_size
        longest = max(lengths, default=0)
        columns = torch.arange(longest, device=self._device)  # [S]
        places = columns.minimum(self._tensor(lengths)[:, None] - 1)  # [N, S]
        return tables.gather(1, places // size) * size + places % size
