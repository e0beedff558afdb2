"""The KV cache as numbered blocks: who holds which, who shares one, what is kept.

A block holds the keys and values of `block_size` tokens. Sequences hold blocks through
a table (`Sequence.block_ids`, in order of position), several may hold one block, and a
block that nobody holds is free, or kept for a prompt that begins alike. This module
counts and hands out numbers. It refuses to know where the numbers point: no tensors, no
model, and no opinion on who deserves memory, which is the scheduler's.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass
from heapq import heappop, heappush

from folovllm_lite.request import Sequence

Moves = list[tuple[int, int]]  # (from block, to block)


@dataclass(slots=True)
class Block:
    """One block of the pool.

    Args:
        ref_count: how many sequences hold it.
        digest: names its tokens and all before them; None until a step is planned
            that fills it.
        parent: digest of the block before it.
        token_ids: its tokens, to compare on a hit: a digest is evidence, not proof.
    """

    ref_count: int = 0
    digest: bytes | None = None
    parent: bytes = b""
    token_ids: tuple[int, ...] = ()


def chain(parent: bytes, token_ids: tuple[int, ...]) -> bytes:
    """Digest of a block that follows the block called `parent`.

    sha256 and not `hash()`, which is easy to collide on purpose: a collision would show
    one user's text to another.
    """
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


class BlockManager:
    """A pool of blocks with reference counts, copy-on-write and prefix reuse.

    Args:
        num_blocks: of the pool.
        block_size: tokens a block holds.
        enable_prefix_caching: keep computed blocks for sequences that begin alike.
        num_swap_blocks: blocks of CPU memory for sequences that are swapped out.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = False,
        num_swap_blocks: int = 0,
    ):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"a pool needs blocks: num_blocks is {num_blocks}, "
                f"block_size is {block_size}"
            )
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.enable_prefix_caching = enable_prefix_caching
        self.blocks = [Block() for _ in range(num_blocks)]
        # A heap: the lowest number goes first, so that a sequence's blocks follow each
        # other where they can, and are one piece of memory.
        self._free = list(range(num_blocks))
        # Blocks that nobody holds and a prompt may still ask for, the oldest first.
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._found: dict[bytes, int] = {}  # digest -> the block that a hit gets
        self._holders: dict[str, Sequence] = {}
        self.num_swap_blocks = num_swap_blocks
        self._free_swap = list(range(num_swap_blocks - 1, -1, -1))
        self._swapped: dict[str, list[int]] = {}  # seq_id -> its blocks in CPU memory
        self.tokens_asked = 0  # of all sequences that began
        self.tokens_found = 0  # and how many of them were there already

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now; kept ones are given up when needed."""
        return len(self._free) + len(self._kept)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    # ----- holding

    def can_grow(self, seq: Sequence, num_tokens: int, hits: list[int] = ()) -> bool:
        """Whether `grow` to `num_tokens` would succeed, after `adopt` of `hits`."""
        missing = self.blocks_for(num_tokens) - len(seq.block_ids) - len(hits)
        missing = max(0, missing)  # a table that is too long is no free block
        missing += self._shared(seq) is not None
        if not missing and not hits:  # as in nearly every step of a decoding sequence
            return True
        idle = sum(self.blocks[i].ref_count == 0 for i in hits)
        return missing <= self.num_free - idle

    def grow(self, seq: Sequence, num_tokens: int) -> Moves:
        """Give `seq` room for its first `num_tokens` tokens.

        Returns:
            The copies to make before anything is written. The block that the next token
            goes to may be shared with a fork: the writer gets a copy of its own
            (copy-on-write), the others keep the original.

        Raises:
            ValueError: if the pool has too few blocks; nothing has changed then.
        """
        if not self.can_grow(seq, num_tokens):
            raise ValueError(
                f"{seq.seq_id} needs {self.blocks_for(num_tokens)} blocks and has "
                f"{len(seq.block_ids)}, but only {self.num_free} are free"
            )
        self._holders[seq.seq_id] = seq
        copies: Moves = []
        at = self._shared(seq)
        if at is not None:
            old, new = seq.block_ids[at], self._take()
            self.blocks[old].ref_count -= 1  # the others hold it still: never 0 here
            seq.block_ids[at] = new
            copies.append((old, new))
        while len(seq.block_ids) < self.blocks_for(num_tokens):
            seq.block_ids.append(self._take())
        return copies

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, a fork of `parent`, hold the same blocks."""
        child.block_ids = list(parent.block_ids)
        for block_id in child.block_ids:
            self.blocks[block_id].ref_count += 1
        self._holders[child.seq_id] = child

    def release(self, seq: Sequence) -> None:
        """Take everything back from `seq`; one that holds nothing is fine."""
        # From the end: the beginning of a prompt is what others are likeliest to share,
        # so it should be the last to be given up.
        for block_id in reversed(seq.block_ids):
            self._drop(block_id)
        seq.block_ids = []
        self._free_swap += self._swapped.pop(seq.seq_id, [])
        self._holders.pop(seq.seq_id, None)

    def tokens_held(self) -> int:
        """Tokens in held blocks, shared ones once; what is left of them is waste."""
        stored: dict[int, int] = {}
        for seq in self._holders.values():
            for i, block_id in enumerate(seq.block_ids):
                count = min(seq.num_computed - i * self.block_size, self.block_size)
                stored[block_id] = max(stored.get(block_id, 0), count)
        return sum(stored.values())

    def _shared(self, seq: Sequence) -> int | None:
        """Index in the table of the block to be written next, if others hold it too."""
        at = seq.num_computed // self.block_size
        if at < len(seq.block_ids) and self.blocks[seq.block_ids[at]].ref_count > 1:
            return at
        return None

    def _take(self) -> int:
        if self._free:
            block_id = heappop(self._free)
        else:
            block_id, _ = self._kept.popitem(last=False)
            self._forget(block_id)
        self.blocks[block_id] = Block(ref_count=1)
        return block_id

    def _drop(self, block_id: int) -> None:
        block = self.blocks[block_id]
        block.ref_count -= 1
        if block.ref_count == 0:
            if self._found.get(block.digest) == block_id:
                self._kept[block_id] = None
            else:
                heappush(self._free, block_id)

    def _forget(self, block_id: int) -> None:
        # Only the block's own entry: a duplicate of it may have taken the place.
        if self._found.get(self.blocks[block_id].digest) == block_id:
            del self._found[self.blocks[block_id].digest]

    # ----- prefix caching

    def match(self, seq: Sequence) -> list[int]:
        """The blocks that hold the beginning of `seq` already, as far as they reach.

        At least one token is left to compute, even if every block is there: without it
        there would be no logits to draw the next token from.
        """
        hits: list[int] = []
        if not self.enable_prefix_caching:
            return hits
        token_ids, parent = seq.get_token_ids(), seq.cache_salt
        for start in range(0, len(token_ids) - self.block_size, self.block_size):
            tokens = tuple(token_ids[start : start + self.block_size])
            digest = chain(parent, tokens)
            block_id = self._found.get(digest)
            if block_id is None:
                break
            block = self.blocks[block_id]
            if (block.token_ids, block.parent) != (tokens, parent):
                break  # a collision: no hit, whatever the digest says
            hits.append(block_id)
            parent = digest
        return hits

    def adopt(self, seq: Sequence, hits: list[int]) -> None:
        """Let `seq`, which holds nothing yet, begin with the blocks of `match`."""
        for block_id in hits:
            if self.blocks[block_id].ref_count == 0:
                del self._kept[block_id]
            self.blocks[block_id].ref_count += 1
        self.tokens_asked += seq.get_len()
        self.tokens_found += len(hits) * self.block_size
        seq.block_ids = list(hits)
        seq.num_computed = len(hits) * self.block_size
        self._holders[seq.seq_id] = seq

    def commit(self, seq: Sequence, start: int, end: int) -> None:
        """Offer the blocks that the tokens [start, end) fill to others.

        Called when the tokens are scheduled: who finds them in the same step reads them
        after they are written. If that step fails, `withdraw` takes the offer back.
        """
        first, last = start // self.block_size, end // self.block_size
        if not self.enable_prefix_caching or first == last:
            return
        parent = seq.cache_salt
        if first > 0:
            parent = self.blocks[seq.block_ids[first - 1]].digest
        for i in range(first, last):
            begin = i * self.block_size
            tokens = tuple(seq.data.get_slice(begin, begin + self.block_size))
            block = self.blocks[seq.block_ids[i]]
            block.token_ids, block.parent = tokens, parent
            block.digest = parent = chain(parent, tokens)
            # Another may have computed the same, without asking: the first stays.
            self._found.setdefault(block.digest, seq.block_ids[i])

    def withdraw(self, seq: Sequence) -> None:
        """Offer the blocks of `seq` to nobody any more: their numbers are no good."""
        for block_id in seq.block_ids:
            self._forget(block_id)

    # ----- swapping

    def can_swap_out(self, seq: Sequence) -> bool:
        """Whether CPU memory has room for the blocks of `seq`."""
        return len(seq.block_ids) <= len(self._free_swap)

    def swap_out(self, seq: Sequence) -> Moves:
        """Move `seq` to CPU memory; returns the copies (block, CPU block) to make.

        Raises:
            ValueError: if CPU memory has no room; nothing has changed then.
        """
        if not self.can_swap_out(seq):
            raise ValueError(
                f"{seq.seq_id} has {len(seq.block_ids)} blocks, but only "
                f"{len(self._free_swap)} are free in CPU memory"
            )
        host = [self._free_swap.pop() for _ in seq.block_ids]
        copies = list(zip(seq.block_ids, host, strict=True))
        self.release(seq)
        self._holders[seq.seq_id] = seq
        self._swapped[seq.seq_id] = host
        return copies

    def can_swap_in(self, seq: Sequence, num_tokens: int) -> bool:
        """Whether `seq` could come back and grow to `num_tokens`."""
        return self.blocks_for(num_tokens) <= self.num_free

    def swap_in(self, seq: Sequence) -> Moves:
        """Move `seq` back; returns the copies (CPU block, block) to make.

        Raises:
            ValueError: if the pool has too few blocks; nothing has changed then.
        """
        host = self._swapped[seq.seq_id]
        if len(host) > self.num_free:
            raise ValueError(
                f"{seq.seq_id} needs {len(host)} blocks, but only {self.num_free} are "
                "free"
            )
        del self._swapped[seq.seq_id]
        seq.block_ids = [self._take() for _ in host]
        self._free_swap += host
        return list(zip(host, seq.block_ids, strict=True))

    # ----- invariants

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is where exactly one list says.

        Free, kept and held blocks make up the pool; the counts are those of the tables;
        whatever a hit can find is a block that says so itself.
        """
        held = Counter(i for seq in self._holders.values() for i in seq.block_ids)
        counts = {i: block.ref_count for i, block in enumerate(self.blocks)}
        assert {i: n for i, n in counts.items() if n} == held, (
            f"reference counts {counts} are not those of the tables {dict(held)}"
        )
        everywhere = [*self._free, *self._kept, *held]
        assert sorted(everywhere) == list(range(self.num_blocks)), (
            f"free {self._free}, kept {list(self._kept)} and held {sorted(held)} "
            f"blocks are not {self.num_blocks} in all"
        )
        for digest, i in self._found.items():
            assert self.blocks[i].digest == digest, f"a hit would get block {i}: wrong"
            assert i in held or i in self._kept, f"a hit would get free block {i}"
        for i in self._kept:
            assert self._found.get(self.blocks[i].digest) == i, (
                f"block {i} is kept, but nothing can find it"
            )
        for seq in self._holders.values():
            assert len(set(seq.block_ids)) == len(seq.block_ids), (
                f"{seq.seq_id} holds a block twice: {seq.block_ids}"
            )
        host = [*self._free_swap, *(i for ids in self._swapped.values() for i in ids)]
        assert sorted(host) == list(range(self.num_swap_blocks)), (
            f"CPU blocks {sorted(host)} are not {self.num_swap_blocks} in all"
        )
