"""What has to be true of whoever turns a step into tensors (notebook 11)."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from folovllm_lite import runner as package
from folovllm_lite.checks.harness import Suite, expect
from folovllm_lite.paged import PagedKVCache
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Step, Work

_SUITE = runner = Suite(
    package,
    """Judge Runner and passes of `folovllm_lite.runner`.

    `checks.runner(Runner=Mine)` judges a class, `checks.runner(module)` all of a
    module. The model is a stand-in: what it answers for a token is the token and its
    position.
    """,
)


def _seq(name: str, tokens: list[int], blocks: list[int]) -> Sequence:
    return Sequence(
        name, name, SequenceData(tokens), SamplingParams(), block_ids=blocks
    )


def _pairs() -> tuple[Sequence, Sequence]:
    """Two sequences; the second holds a block more than its tokens need.

    The last two tokens of the first were generated.
    """
    one = _seq("a", [10, 11, 12], [4, 1])
    one.add_token_id(13)
    one.add_token_id(14)
    return one, _seq("b", [20, 21, 22], [0, 3])


class _Model:
    """Answers with (token, position), and notes its passes."""

    def __init__(self) -> None:
        self.lm_head = SimpleNamespace(weight=torch.zeros(1))
        self.passes: list[list[int]] = []
        self.before: Any = None  # called before it answers

    def __call__(self, token_ids: Tensor, context: Any) -> Tensor:
        if self.before:
            self.before()
        self.passes.append(token_ids.tolist())
        return torch.stack([token_ids, context.positions], 1).float()


class _Noted(SimpleNamespace):
    """A context that keeps what it is given."""

    def __init__(self, cache: Any, positions: Tensor, slots: Tensor, segments: list):
        super().__init__(
            cache=cache, positions=positions, slots=slots, segments=segments
        )


def _made(p: SimpleNamespace, size: int = 3, **more: Any) -> Any:
    """A runner over 6 blocks of `size` tokens."""
    shape = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 1}
    cache = PagedKVCache(SimpleNamespace(**shape), 6, size)
    cache.pool.zero_()
    return p.Runner(_Model(), cache, _Noted, **more)


def _works(size: int = 3) -> list[tuple[str, list[Work]]]:
    """What is to be computed, from small to large, and its words."""
    found = []
    for parts in (
        [(0, 0, 1)],
        [(0, 2, 3)],
        [(0, 3, 4)],
        [(0, 0, 5)],
        [(0, 1, 4)],
        [(1, 0, 3)],
        [(0, 4, 5), (1, 2, 3)],
        [(1, 1, 3), (0, 4, 5)],
    ):
        work = [Work(_pairs()[i], start, end) for i, start, end in parts]
        said = ", ".join(f"{w.seq.seq_id} [{w.start}, {w.end})" for w in work)
        tables = f"a in blocks [4, 1], b in [0, 3], of {size} tokens"
        found.append((f"{tables}; prepare {said}", work))
    return found


@_SUITE.property("passes", hint="how much room is left when the next one comes?")
def _cuts(p: SimpleNamespace) -> None:
    """Work is cut, in order, into lists of at most `limit` tokens."""
    a, b = _pairs()
    for counts, limit, wanted in (
        ((3,), 3, [[("a", 0, 3)]]),
        ((3,), 2, [[("a", 0, 2)], [("a", 2, 3)]]),
        ((2, 1), 3, [[("a", 0, 2), ("b", 0, 1)]]),
        ((2, 2), 2, [[("a", 0, 2)], [("b", 0, 2)]]),
        ((2, 3), 3, [[("a", 0, 2), ("b", 0, 1)], [("b", 1, 3)]]),
        ((5, 1), 2, [[("a", 0, 2)], [("a", 2, 4)], [("a", 4, 5), ("b", 0, 1)]]),
    ):
        work = [Work(s, 0, n) for s, n in zip((a, b), counts, strict=False)]
        got = [
            [(w.seq.seq_id, w.start, w.end) for w in each]
            for each in p.passes(iter(work), limit)
        ]
        expect(f"passes of {counts} tokens, limit {limit}", got, wanted)
    got = [(w.start, w.end) for each in p.passes([Work(a, 3, 5)], 4) for w in each]
    expect("passes of tokens [3, 5), limit 4", got, [(3, 5)])


@_SUITE.property("Runner", hint="packed: one sequence's tokens behind the other's")
def _token_ids(p: SimpleNamespace) -> None:
    """The token ids of the work are packed, with the place of each in its text."""
    for given, work in _works():
        token_ids, context = _made(p).prepare(work)
        ids = [w.seq.get_token_ids()[i] for w in work for i in range(w.start, w.end)]
        expect(f"{given}: token ids", token_ids, ids)
        places = [i for w in work for i in range(w.start, w.end)]
        expect(f"{given}: positions", context.positions, places)
        expect(f"{given}: dtype of the ids", str(token_ids.dtype), "torch.int64")
        dtype = str(context.positions.dtype)
        expect(f"{given}: dtype of the positions", dtype, "torch.int64")


@_SUITE.property("Runner", hint="which block of the table, and which place in it?")
def _slots(p: SimpleNamespace) -> None:
    """Each token's slot is its place in the block that the table names."""
    for size in (3, 4):
        for given, work in _works(size):
            _, context = _made(p, size).prepare(work)
            slots = [
                w.seq.block_ids[i // size] * size + i % size
                for w in work
                for i in range(w.start, w.end)
            ]
            expect(f"{given}: slots", context.slots, slots)
            dtype = str(context.slots.dtype)
            expect(f"{given}: dtype of the slots", dtype, "torch.int64")


@_SUITE.property("Runner", hint="rows of the packed tokens, and blocks that hold some")
def _segments(p: SimpleNamespace) -> None:
    """A segment tells the rows of a sequence, its tokens so far, and their blocks."""
    for given, work in _works():
        made = _made(p)
        _, context = made.prepare(work)
        wanted, first = [], 0
        for w in work:
            last = first + w.end - w.start
            wanted.append((first, last, w.end, w.seq.block_ids[: (w.end + 2) // 3]))
            first = last
        got = [(s.first, s.last, s.end, list(s.blocks)) for s in context.segments]
        expect(f"{given}: segments (first, last, end, blocks)", got, wanted)
        expect(f"{given}: it is the runner's cache", context.cache is made.cache, True)
        state = [(w.seq.num_computed, w.seq.block_ids) for w in work]
        were = [(0, {"a": [4, 1], "b": [0, 3]}[w.seq.seq_id]) for w in work]
        expect(f"{given}: num_computed and block_ids afterwards", state, were)


@_SUITE.property("Runner", hint="what does the model read, if a block comes too late?")
def _moves_first(p: SimpleNamespace) -> None:
    """The moves of the step are made before the model computes."""
    a, _ = _pairs()
    made, seen = _made(p), []
    made.cache.pool[:, :, :, 2] = 7
    made.model.before = lambda: seen.append(float(made.cache.pool[0, 0, 0, 4, 0, 0]))
    made.run(Step({"a": Work(a, 3, 4)}, [("copy", 2, 4)]))
    expect("block 2 is full of 7, moves [('copy', 2, 4)]: block 4", seen, [7.0])


@_SUITE.property("Runner", hint="in whose order are the rows, and in how many passes?")
def _rows(p: SimpleNamespace) -> None:
    """There is a row for each token, in the order of the work, however it is cut."""
    for limit, wanted in (
        (512, [[21, 22, 13, 14]]),
        (3, [[21, 22, 13], [14]]),
        (1, [[21], [22], [13], [14]]),
    ):
        a, b = _pairs()
        made = _made(p, pass_tokens=limit)
        got = made.run(Step({"b": Work(b, 1, 3), "a": Work(a, 3, 5)}))
        given = f"b [1, 3) before a [3, 5), pass_tokens={limit}"
        rows = [[21, 1], [22, 2], [13, 3], [14, 4]]
        expect(f"{given}: rows (token, position)", got, rows)
        expect(f"{given}: tokens of the model's passes", made.model.passes, wanted)
