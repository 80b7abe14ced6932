"""PyTorch's CUDA caching allocator, simulated: which requests get how much memory from where.

It gives the two figures that `torch.cuda` reports, allocated and reserved, for a sequence of
allocations and releases, on a machine without a GPU. The rules and constants are those of
`c10/cuda/CUDACachingAllocator.cpp` of PyTorch 2.13 with its default settings: one stream, no
`max_split_size`, no `expandable_segments`, no rounding to powers of two. Introduced in notebook 04.

Where a segment lies is CUDA's choice, and of free blocks of one size the lowest is taken. That
later segments lie lower was found by trying: so, sixteen measured trainings with 16-bit weights are
met within 0.3%; the other way round, those with eager attention are off by up to 9%
(`benchmarks/results/replay.csv`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 2**20
MIN_BLOCK = 512  # kMinBlockSize: every request is rounded up to a multiple of it
SMALL = MIB  # kSmallSize: the largest request that the pool of small blocks serves
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer: what is fetched for small requests
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer: what is fetched for requests below MIN_LARGE
MIN_LARGE = 10 * MIB  # kMinLargeAlloc: from here on, a request gets a segment of its own size
ROUND_LARGE = 2 * MIB  # kRoundLarge: rounded up to a multiple of this


class OutOfMemory(Exception):
    """The simulated GPU is full; the attributes say what was asked for, and what there was.

    Attributes:
        asked: bytes of the segment that did not fit.
        allocated, reserved, capacity: bytes at that moment.
    """

    def __init__(self, asked: int, allocated: int, reserved: int, capacity: int):
        super().__init__(
            f"{asked / MIB:,.0f} MiB more do not fit: {reserved / MIB:,.0f} MiB of "
            f"{capacity / MIB:,.0f} MiB are reserved, {allocated / MIB:,.0f} MiB of them in use."
        )
        self.asked, self.allocated = asked, allocated
        self.reserved, self.capacity = reserved, capacity


@dataclass(eq=False)
class Block:
    """A piece of a segment, in use or free; its neighbours in the segment are linked.

    Attributes:
        address, size: bytes. Addresses are negative: a new segment lies below those before it.
        small: whether it belongs to the pool of small blocks.
        used: whether it is allocated.
    """

    address: int
    size: int
    small: bool
    used: bool = False
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)


def rounded(size: int) -> int:
    """What a request of `size` bytes takes: a multiple of 512 bytes, 512 at least."""
    return max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)


def segment_size(size: int) -> int:
    """How many bytes are fetched from the device for a rounded request that finds no free block."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return LARGE_SEGMENT
    return -(-size // ROUND_LARGE) * ROUND_LARGE


class Allocator:
    """The state of the simulated GPU.

    Args:
        capacity: bytes that may be reserved; None for any number.

    Attributes:
        allocated, reserved: bytes now, as `torch.cuda.memory_allocated` and `memory_reserved` give
            them: an allocated block counts whole, with what was not worth splitting off.
        peak_allocated, peak_reserved: their largest values since the last `reset_peaks`.
    """

    def __init__(self, capacity: int | None = None):
        self.capacity = capacity
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._lowest = 0
        # Free blocks by pool, sorted as the allocator looks for them: by size, then by address.
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._blocks: dict[int, Block] = {}  # the free ones, by address

    def malloc(self, size: int) -> Block:
        """Allocate `size` bytes: the smallest free block that fits, else a new segment.

        Raises:
            ValueError: the size is negative.
            OutOfMemory: no segment can be had, not even after the free ones were given back.
        """
        if size < 0:
            raise ValueError(f"A size of {size} bytes cannot be allocated.")
        if size == 0:  # a tensor without elements has no memory
            return Block(-1, 0, small=True, used=True)
        wanted = rounded(size)
        small = wanted <= SMALL
        block = self._take(wanted, small) or self._new_segment(wanted, small)
        rest = block.size - wanted
        if rest >= MIN_BLOCK if small else rest > SMALL:
            left_over = Block(block.address + wanted, rest, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = left_over
            block.size, block.after = wanted, left_over
            self._give(left_over)
        block.used = True
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Release a block; free neighbours become one. The memory stays reserved.

        Raises:
            ValueError: the block is not in use.
        """
        if not block.used:
            raise ValueError(f"The block at {block.address} is not in use.")
        block.used = False
        if not block.size:
            return
        self.allocated -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is None or neighbour.used:
                continue
            self._remove(neighbour)
            block.size += neighbour.size
            if neighbour is block.before:
                block.address, block.before = neighbour.address, neighbour.before
                if block.before is not None:
                    block.before.after = block
            else:
                block.after = neighbour.after
                if block.after is not None:
                    block.after.before = block
        self._give(block)

    def empty_cache(self) -> None:
        """Give segments without any block in use back to the device."""
        for block in list(self._blocks.values()):
            if block.before is None and block.after is None:
                self._remove(block)
                self.reserved -= block.size

    def reset_peaks(self) -> None:
        """Let the peaks begin anew at what is allocated and reserved now."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _take(self, wanted: int, small: bool) -> Block | None:
        free = self._free[small]
        place = bisect_left(free, (wanted, -math.inf))
        if place == len(free):
            return None
        _, address = free.pop(place)
        return self._blocks.pop(address)

    def _new_segment(self, wanted: int, small: bool) -> Block:
        size = segment_size(wanted)
        if self.capacity is not None and self.reserved + size > self.capacity:
            self.empty_cache()
            if self.reserved + size > self.capacity:
                raise OutOfMemory(size, self.allocated, self.reserved, self.capacity)
        # CUDA places a new segment below the ones before it, and of several free blocks of one size
        # PyTorch takes the lowest: the latest segment's. Where attention matrices are many and of
        # one size, this decides about the gaps.
        self._lowest -= size
        block = Block(self._lowest, size, small)
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _give(self, block: Block) -> None:
        insort(self._free[block.small], (block.size, block.address))
        self._blocks[block.address] = block

    def _remove(self, block: Block) -> None:
        free = self._free[block.small]
        free.pop(bisect_left(free, (block.size, block.address)))
        del self._blocks[block.address]
