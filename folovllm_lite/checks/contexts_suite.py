"""What has to be true of attention over blocks, whoever reads them (11 and 12)."""

import math
import random
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from folovllm_lite.attention import attention
from folovllm_lite.checks.attention_suite import expect_close
from folovllm_lite.checks.harness import Suite, expect, fail
from folovllm_lite.paged import PagedContext, PagedKVCache, Segment

_SUITE = contexts = Suite(
    SimpleNamespace(context=PagedContext),
    """Judge a class of attention contexts over the pool, as PagedContext is one.

    The contract: `context(cache, positions, slots, segments)` is made for one step, and
    `attend(layer, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D])` stores k and v in the
    step's slots of the pool, then attends and returns [T, Hq, D]. What was never
    written is NaN here.
    """,
    inside=torch.no_grad,
)


class Step:
    """One step over a pool that holds NaN wherever nothing was written.

    Args:
        sequences: (tokens that are stored, tokens of the step) of each.
        Hq, Hkv, D: heads, and their size.
        block_size: of the pool, whose blocks are dealt out in a mixed order.
        dtype: of all tensors.
        layer: that attends, of two.
        seed: of the numbers, and of the order.
    """

    def __init__(
        self,
        *sequences: tuple[int, int],
        Hq: int = 2,
        Hkv: int = 1,
        D: int = 16,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        layer: int = 0,
        seed: int = 0,
    ):
        self.sequences, self.dtype, self.layer = sequences, dtype, layer
        self.given = (
            ", ".join(f"{past} stored + {new} new" for past, new in sequences)
            + f" tokens; Hq={Hq} Hkv={Hkv} D={D} block_size={block_size}"
            + ("" if dtype == torch.float32 else f" {dtype}".replace("torch.", ""))
        )
        random_ = torch.Generator().manual_seed(seed)
        lengths = [past + new for past, new in sequences]
        counts = [-(-length // block_size) for length in lengths]
        ids = random.Random(seed).sample(range(sum(counts) + 2), sum(counts))
        shape = {"num_heads": Hq, "num_kv_heads": Hkv, "head_dim": D, "num_layers": 2}
        config = SimpleNamespace(**shape)
        self.cache = PagedKVCache(config, sum(counts) + 2, block_size, dtype)
        self.cache.pool.fill_(math.nan)
        T = sum(new for _, new in sequences)
        self.q = torch.randn(T, Hq, D, generator=random_).to(dtype)
        self.keys, self.values, self.segments = [], [], []
        positions, slots = [], []
        for (past, new), length, count in zip(sequences, lengths, counts, strict=True):
            blocks, ids = ids[:count], ids[count:]
            first = len(positions)
            self.segments.append(Segment(first, first + new, length, blocks))
            k, v = torch.randn(2, length, Hkv, D, generator=random_).to(dtype)
            self.keys.append(k)
            self.values.append(v)
            places = [
                blocks[i // block_size] * block_size + i % block_size
                for i in range(length)
            ]
            self.put(places[:past], k[:past], v[:past])
            positions += range(past, length)
            slots += places[past:]
        self.positions, self.slots = torch.tensor(positions), torch.tensor(slots)

    def put(self, places: list[int], k: Tensor, v: Tensor) -> None:
        """Store what earlier steps have stored."""
        pool = self.cache.pool.flatten(3, 4)[:, self.layer]  # [2, Hkv, B * S, D]
        pool[0][:, places], pool[1][:, places] = k.transpose(0, 1), v.transpose(0, 1)

    def new(self) -> tuple[Tensor, Tensor]:
        """K and v [T, Hkv, D] of the step's tokens."""
        pasts = [past for past, _ in self.sequences]
        k, v = (
            torch.cat([x[past:] for x, past in zip(kind, pasts, strict=True)])
            for kind in (self.keys, self.values)
        )
        return k, v

    def attend(self, make: Callable) -> Tensor:
        """What the judged context answers."""
        context = make(self.cache, self.positions, self.slots, self.segments)
        return context.attend(self.layer, self.q, *self.new())

    def wanted(self) -> Tensor:
        """The same, written out, sequence by sequence."""
        out = []
        for each, k, v in zip(self.segments, self.keys, self.values, strict=True):
            rows = slice(each.first, each.last)
            q, k, v = self.q[rows].float(), k.float(), v.float()
            out.append(attention(q, k, v, self.positions[rows]))
        return torch.cat(out)

    def judge(self, make: Callable, within: float = 1e-4) -> None:
        """Fail unless both are the same."""
        got = self.attend(make)
        if isinstance(got, Tensor) and got.isnan().any():
            row = int(got.isnan().flatten(1).any(1).nonzero()[0])
            fail(self.given, f"NaN in row {row}", "no slot read that isn't written")
        expect_close(self.given, got, self.wanted(), within)
        expect(f"{self.given}: dtype", got.dtype, self.dtype)


@_SUITE.property("context", hint="the model reads ctx.positions for its rotation")
def _positions(p: SimpleNamespace) -> None:
    """A context has the positions that it was given."""
    for sequences in (((0, 3),), ((5, 1), (2, 2))):
        step = Step(*sequences)
        context = p.context(step.cache, step.positions, step.slots, step.segments)
        expect(f"{step.given}: positions", context.positions, step.positions)


@_SUITE.property(
    "context", hint="slot i is token i % block_size of block i // block_size"
)
def _stored(p: SimpleNamespace) -> None:
    """Keys and values are in their slots afterwards, of that layer alone, and nothing
    else in the pool has changed.
    """
    for sequences, layer in ((((0, 1),), 0), (((3, 1), (0, 6), (4, 2)), 1)):
        step = Step(*sequences, Hkv=2, layer=layer)
        wanted = step.cache.pool.clone().flatten(3, 4)  # [2, L, Hkv, B * S, D]
        for kind, new in enumerate(step.new()):
            wanted[kind, layer][:, step.slots] = new.transpose(0, 1)
        step.attend(p.context)
        got = step.cache.pool.flatten(3, 4)
        same = (got == wanted) | (got.isnan() & wanted.isnan())
        if not same.all():
            kind, at, head, slot, _ = (~same).nonzero()[0].tolist()
            name = f"{('keys', 'values')[kind]} of layer {at}, head {head}, slot {slot}"
            values = (x[kind, at, head, slot, :4] for x in (got, wanted))
            expect(
                f"{step.given}, layer {layer}: {name}", *(x.tolist() for x in values)
            )


@_SUITE.property("context", hint="a token sees its own key: store first, then attend")
def _alone(p: SimpleNamespace) -> None:
    """A token without a past gets its own value back."""
    for heads, kv_heads in ((1, 1), (4, 2)):
        Step((0, 1), Hq=heads, Hkv=kv_heads).judge(p.context)


@_SUITE.property(
    "context",
    hint="token t of a sequence is in its block t // block_size; how many tokens of "
    "the last block are written?",
)
def _decoding(p: SimpleNamespace) -> None:
    """One new token sees all of its past, through the table of blocks, and not a slot
    of the last block that isn't written.
    """
    for block_size in (4, 1, 3, 16):
        for past in (1, 2, 3, 4, 7, 8, 15, 16, 17):
            Step((past, 1), block_size=block_size, seed=past).judge(p.context)


@_SUITE.property(
    "context",
    hint="which key/value head does query head h read when group heads share?",
)
def _groups(p: SimpleNamespace) -> None:
    """Query heads that are neighbours share a key/value head."""
    for heads, kv_heads in ((2, 2), (4, 2), (6, 2), (3, 1), (8, 1), (16, 2), (16, 1)):
        Step((6, 1), Hq=heads, Hkv=kv_heads).judge(p.context)


@_SUITE.property("context", hint="what depends on D, and is D always a power of 2?")
def _head_sizes(p: SimpleNamespace) -> None:
    """Scores are divided by sqrt(D), for any size of head."""
    for D in (16, 20, 24, 32, 64, 80, 128):
        Step((5, 1), Hq=4, Hkv=2, D=D).judge(p.context)


@_SUITE.property("context", hint="each row has its own table, and its own length")
def _rows(p: SimpleNamespace) -> None:
    """Rows of one token each see their own past, whatever their lengths."""
    for pasts in ((3, 9), (12, 1, 5), (0, 4, 20, 7, 8)):
        Step(*((past, 1) for past in pasts), Hq=4, Hkv=2).judge(p.context)


@_SUITE.property("context", hint="query i of n sees all keys but the last n - 1 - i")
def _prompts_and_chunks(p: SimpleNamespace) -> None:
    """A whole prompt is causal; a chunk sees its past, and of itself no later token."""
    for past, new in (
        (0, 2),
        (0, 9),
        (1, 2),
        (4, 3),
        (5, 6),
        (13, 20),
        (7, 2),
        (1, 12),
    ):
        Step((past, new), Hq=4, Hkv=2).judge(p.context)


@_SUITE.property("context", hint="which rows of the packed T are whose?")
def _mixed(p: SimpleNamespace) -> None:
    """Prompts, chunks and single tokens in one step, in any order."""
    for sequences in (
        ((6, 1), (0, 5)),
        ((0, 5), (6, 1)),
        ((3, 1), (0, 7), (9, 4), (2, 1), (0, 1), (5, 6), (8, 1)),
    ):
        Step(*sequences, Hq=4, Hkv=2).judge(p.context)


@_SUITE.property(
    "context", hint="everything of the step is stored before anybody attends"
)
def _shared(p: SimpleNamespace) -> None:
    """A sequence may see blocks that another one writes in the same step."""
    for new in (1, 5):
        step = Step((0, 8), (8, new), block_size=4)
        writer, reader = step.segments
        reader.blocks[:2] = writer.blocks
        step.keys[1][:8], step.values[1][:8] = step.keys[0], step.values[0]
        step.slots[8:] = torch.tensor(
            [reader.blocks[i // 4] * 4 + i % 4 for i in range(8, 8 + new)]
        )
        step.given += ", whose first 8 are the first one's"
        step.judge(p.context)


@_SUITE.property(
    "context",
    hint="exp of a large score has no finite value: what is subtracted first?",
)
def _large_scores(p: SimpleNamespace) -> None:
    """Large scores don't overflow, wherever the largest stands."""
    for past in (5, 700):
        for liked in (0, past // 2, past - 1):
            step = Step((past, 1), block_size=16)
            step.q *= 20
            block, offset = divmod(liked, 16)
            slot = step.segments[0].blocks[block] * 16 + offset
            key = 30 * step.q[0, :1] / step.q[0, :1].norm()
            step.keys[0][liked] = key
            step.put([slot], key[None], step.values[0][liked][None])
            step.given += f", key {liked} liked best by far"
            step.judge(p.context, 1e-3)
    step = Step((9, 1), block_size=16)
    step.q[:] = step.q[:, :1]
    # Along -q: all scores are far below 0, from about -200 on down.
    sizes = 200 + torch.arange(10.0)[:, None, None] * 0.3
    length = step.q[0, :1].norm()
    step.keys[0][:] = -step.q[0, :1] / length * sizes * math.sqrt(16) / length
    slot = step.segments[0].blocks[0] * 16
    step.put(list(range(slot, slot + 9)), step.keys[0][:9], step.values[0][:9])
    step.given += ", all scores below -199"
    step.judge(p.context, 1e-3)


@_SUITE.property(
    "context",
    hint="where several parts are joined: is what was summed before brought down to "
    "the new largest score, the weights and the sum alike?",
)
def _long(p: SimpleNamespace) -> None:
    """Thousands of tokens are attended like a few."""
    for past, heads, kv_heads, D, block_size in (
        (255, 1, 1, 16, 16),
        (256, 2, 1, 16, 16),
        (600, 4, 2, 16, 256),
        (530, 2, 1, 16, 7),
        (2100, 2, 1, 64, 64),  # more than 1 MiB
    ):
        step = Step((past, 1), Hq=heads, Hkv=kv_heads, D=D, block_size=block_size)
        step.q *= 4  # some keys far above the rest, in any part
        step.judge(p.context)
    Step((1000, 70), Hq=4, Hkv=2, block_size=16).judge(p.context)
    Step((300, 1), (10, 1), (700, 1), Hq=4, Hkv=2, block_size=16).judge(p.context)


@_SUITE.property("context", hint="in which dtype do you sum, and what do you return?")
def _dtypes(p: SimpleNamespace) -> None:
    """bfloat16 and float16 give the same up to their rounding, and their own dtype."""
    for dtype in (torch.bfloat16, torch.float16):
        for sequences in (((6, 1),), ((40, 1), (0, 5), (9, 6))):
            Step(*sequences, Hq=4, Hkv=2, dtype=dtype).judge(p.context, 0.03)
    step = Step((0, 3), D=128, dtype=torch.float16)
    step.q[:], step.keys[0][:] = 30, 30
    given = f"{step.given}, all of q and k 30: q·k is beyond 65504, float16's largest"
    expect_close(given, step.attend(p.context), step.wanted(), 0.03)


@_SUITE.property("context", hint="which of your operations writes into its input?")
def _inputs_stay(p: SimpleNamespace) -> None:
    """q, k, v, positions, slots and segments stay as they were, also when q, k and v
    are slices of one tensor.
    """
    step = Step((6, 1), (0, 3), (5, 2), Hq=4, Hkv=2)
    k, v = step.new()
    q, k, v = torch.cat((step.q, k, v), 1).tensor_split([4, 6], 1)
    given = {"q": q, "k": k, "v": v, "positions": step.positions, "slots": step.slots}
    before = {name: x.clone() for name, x in given.items()}
    segments = repr(step.segments)
    context = p.context(step.cache, step.positions, step.slots, step.segments)
    got = context.attend(0, q, k, v)
    expect_close(f"{step.given}, q, k, v slices of one tensor", got, step.wanted())
    for name, x in given.items():
        expect_close(f"{name}, afterwards", x, before[name])
    expect("the segments, afterwards", repr(step.segments), segments)


@_SUITE.property("context", hint="the lines before this one say what is still missing")
def _any_step(p: SimpleNamespace) -> None:
    """On random steps it is attention, written out."""
    dice = random.Random(0)
    for seed in range(40):
        sequences = []
        for _ in range(dice.randint(1, 5)):
            past, new = dice.choice((0, dice.randint(1, 60))), dice.randint(1, 12)
            sequences.append((past, dice.choice((1, 1, new))))
        kv_heads = dice.choice((1, 2))
        step = Step(
            *sequences,
            Hq=kv_heads * dice.choice((1, 2, 3, 4, 8)),
            Hkv=kv_heads,
            D=dice.choice((16, 24, 64, 128)),
            block_size=dice.choice((1, 2, 5, 16, 256)),
            layer=seed % 2,
            seed=seed,
        )
        step.judge(p.context)
