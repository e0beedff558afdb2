"""The KV cache as numbered blocks: who holds which, who shares one, which are free.

A block holds the keys and values of `block_size` tokens. Sequences hold blocks through
a table (`Sequence.block_ids`, in order of position), several may hold one block, and a
block that nobody holds is in the free list. This module counts and hands out numbers.
It refuses to know where the numbers point: no tensors, no model, and no opinion on who
deserves memory, which is the scheduler's.
"""

from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush

from folovllm_lite.request import Sequence
from folovllm_lite.scheduler import Move


class FreeBlocks:
    """The blocks that nobody holds.

    The lowest number goes first, so that a sequence's blocks follow each other where
    they can, and are one piece of memory.

    Args:
        num_blocks: of the pool; all are free.
    """

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self.clear()

    def __len__(self) -> int:
        return len(self.numbers)

    def clear(self) -> None:
        """All are free."""
        self.numbers = list(range(self.num_blocks))  # a heap

    def take(self) -> int:
        """Hand one out."""
        return heappop(self.numbers)

    def put(self, block_id: int) -> None:
        """Take one back."""
        heappush(self.numbers, block_id)

    # What a free list that remembers its blocks' contents does here, this one doesn't.

    def find(self, seq: Sequence) -> list[int]:
        """The blocks that hold the beginning of `seq` already."""
        return []

    def claim(self, block_id: int) -> None:
        """A block of `find` that was free isn't any more."""

    def offer(self, seq: Sequence, end: int) -> None:
        """Let the first `end` tokens of `seq` be found from now on."""

    def withdraw(self, block_ids: Iterable[int]) -> None:
        """Let these be found no more."""

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless these blocks and the `held` ones make a pool."""
        everywhere = sorted([*self.numbers, *held])
        assert everywhere == list(range(self.num_blocks)), (
            f"free {sorted(self.numbers)} and held {sorted(held)} blocks are not "
            f"{self.num_blocks} in all"
        )


class BlockManager:
    """A pool of blocks with reference counts and copy-on-write: the scheduler's Memory.

    Args:
        num_blocks: of the pool.
        block_size: tokens a block holds.
        free: where blocks are that nobody holds; None is `FreeBlocks(num_blocks)`.
        num_swap_blocks: blocks of CPU memory for sequences that are swapped out.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        free: FreeBlocks | None = None,
        num_swap_blocks: int = 0,
    ):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"a pool needs blocks: num_blocks is {num_blocks}, "
                f"block_size is {block_size}"
            )
        free = FreeBlocks(num_blocks) if free is None else free
        if len(free) != num_blocks:
            raise ValueError(f"{len(free)} of {num_blocks} blocks are free")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_swap_blocks = num_swap_blocks
        self.free = free
        self.tokens_asked = 0  # of all sequences that began
        self.tokens_found = 0  # and how many of them were there already
        self.clear()

    @property
    def capacity(self) -> int:
        """Tokens that a sequence can have if it is alone."""
        return self.num_blocks * self.block_size

    def clear(self) -> None:
        """Forget everybody: all blocks are free, and nothing is in CPU memory."""
        self.free.clear()
        self.refs = [0] * self.num_blocks  # how many sequences hold each block
        self.moves: list[Move] = []
        self.holders: dict[str, Sequence] = {}  # by seq_id
        self.free_swap = list(reversed(range(self.num_swap_blocks)))
        self.swapped: dict[str, list[int]] = {}  # seq_id -> its blocks in CPU memory

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    # ----- holding

    def found(self, seq: Sequence) -> int:
        """How many tokens of a waiting sequence are there already."""
        if seq.seq_id in self.swapped:
            return seq.num_computed
        return len(self._hits(seq)) * self.block_size

    def place(self, seq: Sequence, end: int) -> bool:
        """Let `seq` begin, or come back, with room for its first `end` tokens.

        Returns:
            False if there are too few blocks; nothing has changed then.

        Raises:
            ValueError: if it holds blocks already.
        """
        if seq.block_ids:
            raise ValueError(f"{seq.seq_id} holds blocks already: {seq.block_ids}")
        hits = self._hits(seq)
        idle = [block_id for block_id in hits if not self.refs[block_id]]
        if self.blocks_for(end) - len(hits) > len(self.free) - len(idle):
            return False
        for block_id in idle:
            self.free.claim(block_id)
        for block_id in hits:
            self.refs[block_id] += 1
        seq.block_ids = list(hits)
        self.holders[seq.seq_id] = seq
        self._fill(seq, end)
        if seq.seq_id in self.swapped:
            self._swap_in(seq)
        else:
            seq.num_computed = len(hits) * self.block_size
            self.tokens_asked += seq.get_len()
            self.tokens_found += seq.num_computed
        return True

    def grow(self, seq: Sequence, end: int) -> bool:
        """Give `seq` room for its first `end` tokens.

        The block that its next token goes to may be shared with a fork: who writes gets
        a copy of its own (copy-on-write), the others keep the original. No block behind
        it is shared: `fork` shares what is computed.

        Returns:
            False if there are too few blocks; nothing has changed then.

        Raises:
            ValueError: if it holds no blocks: `place` comes first.
        """
        if not seq.block_ids:
            raise ValueError(f"{seq.seq_id} holds no blocks: place it first")
        at = seq.num_computed // self.block_size
        shared = at < len(seq.block_ids) and self.refs[seq.block_ids[at]] > 1
        missing = max(0, self.blocks_for(end) - len(seq.block_ids)) + shared
        if missing > len(self.free):
            return False
        if shared:
            old, new = seq.block_ids[at], self._take()
            self.refs[old] -= 1  # the others hold it still: never 0 here
            seq.block_ids[at] = new
            self.moves.append(("copy", old, new))
        self._fill(seq, end)
        return True

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` hold the blocks in which `parent` has computed tokens.

        Raises:
            ValueError: if there are none, or the child is known already.
        """
        # What the parent holds beyond them stays its own: both would write there.
        shared = parent.block_ids[: self.blocks_for(parent.num_computed)]
        if child.seq_id in self.holders or not shared:
            raise ValueError(
                f"{child.seq_id} can't fork {parent.seq_id}, which has computed "
                f"{parent.num_computed} tokens in blocks {parent.block_ids}, while "
                f"these hold some: {sorted(self.holders)}"
            )
        child.block_ids = shared
        for block_id in shared:
            self.refs[block_id] += 1
        self.holders[child.seq_id] = child

    def release(self, seq: Sequence) -> None:
        """Take everything back from `seq`; one that holds nothing is fine."""
        # From the end: a list that caches prefixes gives out first what it got first.
        for block_id in reversed(seq.block_ids):
            self.refs[block_id] -= 1
            if not self.refs[block_id]:
                self.free.put(block_id)
        seq.block_ids = []
        self.holders.pop(seq.seq_id, None)
        self.free_swap += self.swapped.pop(seq.seq_id, [])
        # Nobody would read what comes into a free block ("out" goes to none).
        if self.moves:
            self.moves = [m for m in self.moves if m[0] == "out" or self.refs[m[2]]]

    def offer(self, seq: Sequence, end: int) -> None:
        """Let the first `end` tokens of `seq` be found by others from now on.

        Called when the tokens are scheduled: who finds them in the same step reads them
        after they are written. If that step fails, `withdraw` takes the offer back.
        """
        self.free.offer(seq, end)

    def withdraw(self, seq: Sequence) -> None:
        """Offer the blocks of `seq` to nobody any more: their numbers are no good."""
        self.free.withdraw(seq.block_ids)

    def _hits(self, seq: Sequence) -> list[int]:
        # What is swapped out has its own, and whose prompt is scored computes it all.
        own = seq.seq_id in self.swapped or seq.scores_prompt
        return [] if own else self.free.find(seq)

    def _take(self) -> int:
        block_id = self.free.take()
        self.refs[block_id] = 1
        return block_id

    def _fill(self, seq: Sequence, end: int) -> None:
        while len(seq.block_ids) < self.blocks_for(end):
            seq.block_ids.append(self._take())

    # ----- swapping

    def swap_out(self, seq: Sequence) -> bool:
        """Move `seq` to CPU memory.

        Returns:
            False, with nothing changed: no room, or a move has yet to fill its blocks.

        Raises:
            ValueError: if it holds no blocks.
        """
        if not seq.block_ids:
            raise ValueError(f"{seq.seq_id} holds no blocks to be swapped out")
        filled = {to for kind, _, to in self.moves if kind != "out"}  # not yet
        if len(seq.block_ids) > len(self.free_swap) or filled & set(seq.block_ids):
            return False
        host = [self.free_swap.pop() for _ in seq.block_ids]
        pairs = zip(seq.block_ids, host, strict=True)
        self.moves += [("out", block_id, to) for block_id, to in pairs]
        self.release(seq)
        self.swapped[seq.seq_id] = host
        return True

    def _swap_in(self, seq: Sequence) -> None:
        host = self.swapped.pop(seq.seq_id)
        # It may have been given more blocks than it had: the first are its old ones.
        pairs = zip(host, seq.block_ids, strict=False)
        self.moves += [("in", place, block_id) for place, block_id in pairs]
        self.free_swap += host

    # ----- the books

    def tokens_held(self) -> int:
        """Tokens in held blocks, shared ones once; what is left of them is waste."""
        stored: dict[int, int] = {}
        for seq in self.holders.values():
            for i, block_id in enumerate(seq.block_ids):
                count = min(seq.num_computed - i * self.block_size, self.block_size)
                stored[block_id] = max(stored.get(block_id, 0), count)
        return sum(stored.values())

    def stats(self) -> dict[str, float]:
        """Blocks, how many are held, tokens in them, and the share that was found."""
        asked = self.tokens_asked
        return {
            "blocks": self.num_blocks,
            "blocks_held": self.num_blocks - len(self.free),
            "tokens_held": self.tokens_held(),
            "prefix_hit_rate": self.tokens_found / asked if asked else 0.0,
        }

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is where exactly one list says.

        Free and held blocks make up the pool, the counts are those of the tables, and
        the free list's own books are right.
        """
        held = Counter(i for seq in self.holders.values() for i in seq.block_ids)
        counts = {i: count for i, count in enumerate(self.refs) if count}
        assert counts == held, (
            f"reference counts {counts} are not those of the tables {dict(held)}"
        )
        for seq in self.holders.values():
            assert len(set(seq.block_ids)) == len(seq.block_ids), (
                f"{seq.seq_id} holds a block twice: {seq.block_ids}"
            )
        self.free.check_integrity(held.keys())
        host = [*self.free_swap, *(i for ids in self.swapped.values() for i in ids)]
        assert sorted(host) == list(range(self.num_swap_blocks)), (
            f"CPU blocks {sorted(host)} are not {self.num_swap_blocks} in all"
        )
