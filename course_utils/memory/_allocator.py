"""A simulation of PyTorch's CUDA caching allocator: where each request gets its memory from.

For a sequence of allocations and releases, it gives the two figures that `torch.cuda` reports,
allocated and reserved, on a machine without a GPU. The rules and constants are those of
`c10/cuda/CUDACachingAllocator.cpp` in PyTorch 2.13 with its default settings: no `max_split_size`,
no `expandable_segments`, no rounding to powers of two. Introduced in notebook 04.

CUDA chooses a segment's address, and of free blocks of equal size the allocator takes the lowest.
That later segments lie lower was found by experiment: it reproduces sixteen measured training runs
with 16-bit weights within 0.3%; with the opposite order, those with eager attention are off by up
to 9% (`benchmarks/results/replay.csv`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, field

MIB = 2**20
MIN_BLOCK = 512  # kMinBlockSize: every request is rounded up to a multiple of it
SMALL = MIB  # kSmallSize: the largest request served from the pool of small blocks
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer: segment size for small requests
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer: segment size for requests below MIN_LARGE
MIN_LARGE = 10 * MIB  # kMinLargeAlloc: from here on, a request gets a segment of its own size
ROUND_LARGE = 2 * MIB  # kRoundLarge: rounded up to a multiple of this


class OutOfMemory(Exception):
    """The simulated GPU is full; the attributes say what was requested and what was in use.

    Attributes:
        asked: size in bytes of the segment that did not fit.
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
    """A piece of a segment, in use or free, linked to its neighbours in the segment.

    Attributes:
        address, size: in bytes. Addresses are negative: a new segment lies below earlier ones.
        small: whether it belongs to the pool of small blocks.
        used: whether it is allocated.
        stream: the CUDA stream it belongs to; a free block serves its own stream only.
    """

    address: int
    size: int
    small: bool
    used: bool = False
    stream: int = 0
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)


def rounded(size: int) -> int:
    """Round up a request of `size` bytes to a multiple of 512, at least 512."""
    return max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)


def segment_size(size: int) -> int:
    """Return the size of the new segment for a rounded request that no free block can serve."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return LARGE_SEGMENT
    return -(-size // ROUND_LARGE) * ROUND_LARGE


class Allocator:
    """The state of the simulated GPU.

    Args:
        capacity: the most bytes that may be reserved; None for no limit.

    Attributes:
        allocated, reserved: current bytes, as in `torch.cuda.memory_allocated` and
            `memory_reserved`: an allocated block counts as a whole, including any remainder that
            was too small to split off.
        peak_allocated, peak_reserved: their largest values since the last `reset_peaks`.
    """

    def __init__(self, capacity: int | None = None):
        self.capacity = capacity
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._lowest = 0
        # Free blocks by pool and stream, sorted as the allocator searches them: by size, then by
        # address.
        self._free: defaultdict[tuple[bool, int], list[tuple[int, int]]] = defaultdict(list)
        self._blocks: dict[int, Block] = {}  # the free ones, by address

    def malloc(self, size: int, stream: int = 0) -> Block:
        """Allocate `size` bytes from the smallest free block that fits, or else from a new segment.

        Args:
            size: in bytes.
            stream: the CUDA stream that is current; 0 is the default one.

        Raises:
            ValueError: the size is negative.
            OutOfMemory: no segment is available, even after free ones have been given back.
        """
        if size < 0:
            raise ValueError(f"A size of {size} bytes cannot be allocated.")
        if size == 0:  # a tensor without elements takes no memory
            return Block(-1, 0, small=True, used=True)
        wanted = rounded(size)
        small = wanted <= SMALL
        block = self._take(wanted, small, stream) or self._new_segment(wanted, small, stream)
        rest = block.size - wanted
        if rest >= MIN_BLOCK if small else rest > SMALL:
            left_over = Block(
                block.address + wanted, rest, small, False, stream, before=block, after=block.after
            )
            if block.after is not None:
                block.after.before = left_over
            block.size, block.after = wanted, left_over
            self._give(left_over)
        block.used = True
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Release a block and merge it with free neighbours. The memory stays reserved.

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
        """Return unused segments to the device."""
        for block in list(self._blocks.values()):
            if block.before is None and block.after is None:
                self._remove(block)
                self.reserved -= block.size

    def reset_peaks(self) -> None:
        """Reset the peaks to what is allocated and reserved now."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _take(self, wanted: int, small: bool, stream: int) -> Block | None:
        free = self._free[small, stream]
        place = bisect_left(free, (wanted, -math.inf))
        if place == len(free):
            return None
        _, address = free.pop(place)
        return self._blocks.pop(address)

    def _new_segment(self, wanted: int, small: bool, stream: int) -> Block:
        size = segment_size(wanted)
        if self.capacity is not None and self.reserved + size > self.capacity:
            self.empty_cache()
            if self.reserved + size > self.capacity:
                raise OutOfMemory(size, self.allocated, self.reserved, self.capacity)
        # CUDA places a new segment below earlier ones, and of several free blocks of one size
        # PyTorch takes the lowest: the latest segment's. With many attention matrices of one size,
        # this determines the gaps.
        self._lowest -= size
        block = Block(self._lowest, size, small, stream=stream)
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _give(self, block: Block) -> None:
        insort(self._free[block.small, block.stream], (block.size, block.address))
        self._blocks[block.address] = block

    def _remove(self, block: Block) -> None:
        free = self._free[block.small, block.stream]
        free.pop(bisect_left(free, (block.size, block.address)))
        del self._blocks[block.address]
