"""What tests/gpu does on a GPU, done here on the CPU: it can be executed, and is right.

A test that only a GPU runs may be broken for months. So each is a function of the
device, and all of them run here as well. Where a GPU's host would wait is counted by
the pretended one of tests/pretended_gpu.
"""

import pytest
import torch

from folovllm_lite import flash, kv_cache
from folovllm_lite.paged import Segment
from tests.gpu import test_generation_cuda as gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_generate_under_teacher_forcing(dtype, monkeypatch):
    gpu.forced_generation("cpu", dtype, monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_engine_under_teacher_forcing(dtype, monkeypatch):
    gpu.forced_engine("cpu", dtype, monkeypatch)


def position_off_by_one(patch):
    right = kv_cache.ContiguousContext.__init__

    def wrong(self, cache, tokens):
        right(self, cache, tokens)
        if self._start:
            self.positions = self.positions - 1

    patch.setattr(kv_cache.ContiguousContext, "__init__", wrong)


def other_ends(patch, end_of):
    """Each row sees the tokens of its sequence up to `end_of(row, the next row)`."""
    begin = flash.NumbaKernels.__init__

    def wrong(self, cache, slots, rows):
        following = [*rows[1:], None]
        changed = [
            Segment(row.first, row.last, end_of(row, after), row.blocks)
            for row, after in zip(rows, following, strict=True)
        ]
        begin(self, cache, slots, changed)

    patch.setattr(flash.NumbaKernels, "__init__", wrong)


def a_row_misses_its_own_key(patch):
    other_ends(patch, lambda row, after: max(1, row.end - 1))


def a_row_of_a_chunk_sees_the_next(patch):
    def end_of(row, after):
        return row.end + (after is not None and after.blocks is row.blocks)

    other_ends(patch, end_of)


@pytest.mark.parametrize(
    "body, mistake",
    [
        (gpu.forced_generation, position_off_by_one),
        (gpu.forced_engine, a_row_misses_its_own_key),
        (gpu.forced_engine, a_row_of_a_chunk_sees_the_next),
    ],
)
def test_the_tolerances_reject(body, mistake, monkeypatch):
    """A tolerance is worth what it refuses, and bfloat16's is the widest."""
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        body("cpu", torch.bfloat16, monkeypatch)


def test_greedy_tokens():
    gpu.greedy_tokens("cpu")


def test_swapping():
    gpu.swapped("cpu")


def test_forward_passes():
    gpu.forward_passes("cpu")


@pytest.mark.parametrize("kind", gpu.SAMPLED)
def test_sampling(kind):
    gpu.sampled("cpu", kind)


def test_rows_that_cant_be_sampled():
    gpu.refused("cpu")
