"""A free list that remembers what its blocks hold, for prompts that begin alike.

A block whose last holder has gone still holds its keys and values until somebody writes
over them. So it is kept, the longest unused is the first to be given up, and a prompt
that begins with the same tokens gets it back as it is.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

from folovllm_lite.request import Sequence


@dataclass(slots=True, frozen=True)
class BlockName:
    """What a full block holds.

    Args:
        digest: names its tokens and all before them.
        parent: digest of the block before it; a sequence's salt for the first.
        token_ids: its tokens, to compare on a hit: a digest is evidence, not proof.
    """

    digest: bytes
    parent: bytes
    token_ids: tuple[int, ...]


def name_block(parent: bytes, token_ids: Iterable[int]) -> BlockName:
    """The name of a block that follows the block with the digest `parent`.

    sha256 and not `hash()`, which is easy to collide on purpose: a collision would show
    one user's text to another.
    """
    token_ids = tuple(token_ids)
    text = parent + array("q", token_ids).tobytes()
    return BlockName(hashlib.sha256(text).digest(), parent, token_ids)


class PrefixCache:
    """Free blocks, of which some can be found: a `FreeBlocks` that remembers.

    Args:
        num_blocks: of the pool; all are free.
        block_size: tokens a block holds.
    """

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.clear()

    def __len__(self) -> int:
        return len(self.numbers) + len(self.kept)

    def clear(self) -> None:
        """All are free, and nothing is found."""
        self.numbers = list(range(self.num_blocks))  # a heap, as in FreeBlocks
        self.kept: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self.names: dict[int, BlockName] = {}
        self.found: dict[bytes, int] = {}  # digest -> the block that a hit gets

    def take(self) -> int:
        """Hand one out; a kept one, the longest unused, only if there is no other."""
        if self.numbers:
            block_id = heappop(self.numbers)
        else:
            block_id, _ = self.kept.popitem(last=False)
        self.withdraw([block_id])
        self.names.pop(block_id, None)
        return block_id

    def put(self, block_id: int) -> None:
        """Take one back, and keep it if it can be found."""
        if self._can_be_found(block_id):
            self.kept[block_id] = None
        else:
            heappush(self.numbers, block_id)

    def find(self, seq: Sequence) -> list[int]:
        """The blocks that hold the beginning of `seq` already, as far as they reach.

        At least one token is left to compute, even if every block is there: without it
        there would be no logits to draw the next token from.
        """
        hits: list[int] = []
        parent, token_ids, size = seq.cache_salt, seq.get_token_ids(), self.block_size
        for start in range(0, len(token_ids) - size, size):
            wanted = name_block(parent, token_ids[start : start + size])
            block_id = self.found.get(wanted.digest)
            if block_id is None or self.names[block_id] != wanted:
                break  # unknown, or a collision: no hit, whatever the digest says
            hits.append(block_id)
            parent = wanted.digest
        return hits

    def claim(self, block_id: int) -> None:
        """A block of `find` that was free isn't any more."""
        del self.kept[block_id]

    def offer(self, seq: Sequence, end: int) -> None:
        """Name the blocks that the first `end` tokens of `seq` fill."""
        last = end // self.block_size
        first = last  # back to the last block that has a name: mostly the one before
        while first and seq.block_ids[first - 1] not in self.names:
            first -= 1
        parent = seq.cache_salt
        if first:
            parent = self.names[seq.block_ids[first - 1]].digest
        for i in range(first, last):
            begin, block_id = i * self.block_size, seq.block_ids[i]
            tokens = seq.data.get_slice(begin, begin + self.block_size)
            self.names[block_id] = name_block(parent, tokens)
            parent = self.names[block_id].digest
            # Another may have computed the same, without asking: the first stays.
            self.found.setdefault(parent, block_id)

    def withdraw(self, block_ids: Iterable[int]) -> None:
        """Let these be found no more."""
        for block_id in block_ids:
            if self._can_be_found(block_id):
                del self.found[self.names[block_id].digest]

    def _can_be_found(self, block_id: int) -> bool:
        # A duplicate has the same name, and is not what a hit gets.
        name = self.names.get(block_id)
        return name is not None and self.found.get(name.digest) == block_id

    def check_integrity(self, held: Collection[int]) -> None:
        """Raise AssertionError unless every block is free, kept or one of `held`, and
        whatever a hit can find is a block that says so itself, and that is not free.
        """
        everywhere = sorted([*self.numbers, *self.kept, *held])
        assert everywhere == list(range(self.num_blocks)), (
            f"free {sorted(self.numbers)}, kept {list(self.kept)} and held "
            f"{sorted(held)} blocks are not {self.num_blocks} in all"
        )
        for digest, i in self.found.items():
            name = self.names.get(i)
            assert name and name == name_block(name.parent, name.token_ids), (
                f"a hit would get block {i}, whose name is {name}"
            )
            assert name.digest == digest, f"a hit would get block {i}: wrong"
            assert i in held or i in self.kept, f"a hit would get free block {i}"
        for i in self.kept:
            assert self._can_be_found(i), f"block {i} is kept, but nothing can find it"
