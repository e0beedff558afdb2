"""What only a GPU needs: room for the largest step, decoding steps as CUDA graphs.

**Room.** The pool of keys and values takes what is left of the memory. What a step
needs for a moment, its activations and its logits, has to be known before: `step_bytes`
runs the largest step once and asks how much it took.

**Graphs.** A decoding step is some hundred small kernels, and to launch one from Python
takes longer than it runs. A CUDA graph records the launches of a step and repeats them
all with one call. It repeats them to the letter: the same shapes, at the same
addresses. So there is a graph for each of some numbers of rows, a step is padded to the
next of them, and what differs between two steps is written to where the graph reads it.

The engine's other parts know nothing of it: a `GraphRunner` runs steps as a `Runner`
does, and gives those that aren't all decodes to one. vLLM does the same in
v1/worker/gpu_model_runner.py and compilation/cuda_graph.py.
"""

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from folovllm_lite.flash import FlashContext, TritonKernels
from folovllm_lite.paged import PagedKVCache, Segment
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.runner import Runner
from folovllm_lite.sampler import SamplingRow, sample
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Step, Work

# What makes the sampler keep most of a step's logits at a time.
_ALL_AT_ONCE = SamplingParams(
    top_k=10, top_p=0.9, min_p=0.01, repetition_penalty=1.1, logprobs=5
)

# Steps of more rows are long enough to hide their launches.
_MOST_ROWS = 512


def avoid_cudnn() -> None:
    """Let PyTorch's attention be anything but cuDNN's, for the whole process.

    On Hopper PyTorch prefers it, and it builds a plan for each shape: one for each step
    of a prompt that is cut into chunks. vLLM switches it off too.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


@torch.inference_mode()
def step_bytes(model: Qwen3, tokens: int, rows: int, longest: int) -> int:
    """Bytes that the largest step needs for a moment, beside weights and pool.

    Two passes are tried: prompts, and the last chunk of the longest sequence, whose
    past is gathered. Then all rows are sampled with every filter.

    Args:
        model: on a GPU, prepared.
        tokens: most tokens of a step.
        rows: most sequences of a step.
        longest: most tokens of a sequence.
    """
    device = model.lm_head.weight.device
    dtype = model.lm_head.weight.dtype
    # All tokens are stored in one block, one over the other. What the numbers are is
    # all the same, as long as they are numbers.
    cache = PagedKVCache(model.config, 1, 16, dtype, device)
    cache.pool.zero_()
    used = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    prompts = [
        Segment(first, min(first + longest, tokens), min(longest, tokens - first), [0])
        for first in range(0, max(1, tokens - 1), longest)  # each of two or more
    ]
    part = min(tokens, longest - 1)  # a past of one token at least
    chunk = [Segment(0, part, longest, [0] * -(-longest // 16))]
    for segments in (prompts, chunk):
        count = segments[-1].last
        if not count:  # sequences of one token have no past
            continue
        ids = torch.zeros(count, dtype=torch.int64, device=device)
        slots = torch.zeros_like(ids)
        hidden = model(ids, FlashContext(cache, ids, slots, segments))
    logits = model.logits(hidden[:1].expand(rows, -1))
    sample(logits, [SamplingRow(_ALL_AT_ONCE, [0], [0]) for _ in range(rows)])
    needed = torch.cuda.max_memory_allocated(device) - used
    del cache, hidden, logits, ids, slots
    torch.cuda.empty_cache()
    return needed


def can_record() -> bool:
    """Whether Triton, whose kernels a graph needs, is here; on Windows it isn't."""
    return find_spec("triton") is not None


def graph_sizes(most: int) -> list[int]:
    """Numbers of rows that get a graph: few sizes, and few rows that are padded."""
    most = min(most, _MOST_ROWS)
    return sorted({n for n in (1, 2, 4, 8, *range(16, most, 16)) if n < most} | {most})


class DecodeGraph:
    """One graph: the forward pass of `size` rows, each with one new token.

    Args:
        runner: its model and its pool.
        size: rows.
        longest: most tokens of a sequence.
        spare: a block of the pool that no sequence owns; rows that only pad write it.
        memory: of all graphs together, see `torch.cuda.graph_pool_handle`.
    """

    def __init__(
        self, runner: Runner, size: int, longest: int, spare: int, memory: tuple
    ):
        self.runner, self.size, self.spare = runner, size, spare
        self.block_size = runner.cache.block_size
        width = -(-longest // self.block_size)
        # A column for each row: token id, position, slot, and what the kernels read:
        # row, tokens of the sequence, blocks. The lines that a step needs are the first
        # ones, so that they lie together and are one copy, out of pinned memory.
        self._host = torch.zeros(
            5 + width, size, dtype=torch.int64, pin_memory=runner.device.type == "cuda"
        )
        self._lines = self._host.numpy()
        self._lines[3] = range(size)
        self._blocks: list[list[int]] = [[] for _ in range(size)]  # as they stand there
        self._pad(0)
        self.inputs = self._host.to(runner.device)
        token_ids, positions, slots = self.inputs[:3]
        # How far a past is split can't change any more: as for the longest.
        rows = [Segment(i, i + 1, longest, []) for i in range(size)]
        kernels = partial(TritonKernels, plan=self.inputs[3:])
        context = FlashContext(runner.cache, positions, slots, rows, kernels)

        def forward() -> Tensor:
            return runner.model(token_ids, context)

        forward()  # compiles kernels and makes tables: no graph can record that
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory):
            self.hidden = forward()  # [size, E], written anew by each replay

    def _pad(self, first: int) -> None:
        """Rows from `first` on are of no sequence: one token in the spare block."""
        lines = self._lines[:, first:]
        lines[:2] = 0
        lines[2] = self.spare * self.block_size
        lines[4] = 1
        lines[5] = self.spare
        self._blocks[first:] = [[] for _ in range(self.size - first)]

    def run(self, work: list[Work]) -> Tensor:
        """Hidden states [N, E] of N <= size new tokens; the next run overwrites them.

        The copy is over before the host can be back here: the step's tokens were read.
        """
        N, size, lines = len(work), self.block_size, self._lines
        for n, each in enumerate(work):
            blocks = each.seq.block_ids
            if blocks != self._blocks[n]:  # about every block_size steps
                lines[5 : 5 + len(blocks), n] = blocks
                self._blocks[n] = list(blocks)
        lines[0, :N] = [
            each.seq.data.get_slice(each.start, each.end)[0] for each in work
        ]
        lines[1, :N] = [each.start for each in work]
        lines[2, :N] = [
            each.seq.block_ids[each.start // size] * size + each.start % size
            for each in work
        ]
        lines[4, :N] = [each.end for each in work]
        self._pad(N)
        used = 5 + max(len(blocks) for blocks in self._blocks[:N])
        self.inputs[:used].copy_(self._host[:used], non_blocking=True)
        self._graph.replay()
        return self.hidden[:N]


class GraphRunner:
    """Runs steps as `Runner` does; those of decodes alone replay a graph.

    Args:
        runner: for all other steps.
        most_rows: sequences of a step.
        longest: most tokens of a sequence.
        spare: a block of the pool that no sequence owns.
    """

    def __init__(self, runner: Runner, most_rows: int, longest: int, spare: int):
        self.runner, self.cache, self.model = runner, runner.cache, runner.model
        memory = torch.cuda.graph_pool_handle()
        with torch.inference_mode():
            self.graphs = {
                size: DecodeGraph(runner, size, longest, spare, memory)
                # The largest first: the others find room in what it leaves.
                for size in reversed(graph_sizes(most_rows))
            }

    def run(self, step: Step) -> Tensor:
        """As `Runner.run`; the hidden states hold until the next step."""
        work = list(step.work.values())
        if any(each.count > 1 for each in work) or len(work) > max(self.graphs):
            return self.runner.run(step)
        size = min(size for size in self.graphs if size >= len(work))
        with torch._C._InferenceMode(True):  # as in `LLMEngine.compute`
            self.cache.move(step.moves)
            return self.graphs[size].run(work)
