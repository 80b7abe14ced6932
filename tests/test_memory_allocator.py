"""The simulated allocator: sequences worked out by hand, and what holds for any sequence."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.memory._allocator import MIB, Allocator, OutOfMemory, rounded, segment_size


@pytest.mark.parametrize(
    ("size", "taken", "fetched"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (25 * MIB, 25 * MIB, 26 * MIB),
    ],
)
def test_sizes(size: int, taken: int, fetched: int) -> None:
    """Rounding to 512 bytes; segments of 2 MiB, 20 MiB, or a multiple of 2 MiB."""
    assert rounded(size) == taken
    assert segment_size(taken) == fetched


def test_small_blocks_share_a_segment() -> None:
    """A small block is split wherever 512 bytes remain."""
    gpu = Allocator()
    first, second = gpu.malloc(1000), gpu.malloc(100_000)
    assert (gpu.allocated, gpu.reserved) == (1024 + 100_352, 2 * MIB)
    assert second.address == first.address + 1024
    gpu.malloc(MIB)
    assert gpu.reserved == 2 * MIB
    gpu.malloc(MIB)  # no room left in the first segment
    assert gpu.reserved == 4 * MIB


def test_a_large_block_is_not_split_for_a_small_rest() -> None:
    """Up to 1 MiB of rest stays with the block, and counts as allocated."""
    gpu = Allocator()
    gpu.malloc(11 * MIB)  # from a segment of 12 MiB, 1 MiB over
    assert gpu.allocated == gpu.reserved == 12 * MIB
    gpu = Allocator()
    gpu.malloc(11 * MIB - 512)  # 512 bytes more over: worth splitting off
    assert (gpu.allocated, gpu.reserved) == (11 * MIB - 512, 12 * MIB)


def test_the_smallest_block_that_fits_is_taken() -> None:
    """Best fit, not first fit."""
    gpu = Allocator()
    sizes = (40, 16, 30)
    blocks = [gpu.malloc(size * MIB) for size in sizes]
    for block in blocks:
        gpu.free(block)
    places = [block.address for block in blocks]
    assert gpu.malloc(16 * MIB).address == places[1]
    assert gpu.malloc(20 * MIB).address == places[2]
    assert gpu.reserved == 86 * MIB


def test_of_equal_blocks_the_latest_segments_is_taken() -> None:
    """New segments lie below the ones before, and the lowest of equal blocks is taken."""
    gpu = Allocator()
    early, late = gpu.malloc(16 * MIB), gpu.malloc(16 * MIB)
    places = early.address, late.address
    assert places[1] < places[0]
    gpu.free(late)
    gpu.free(early)
    assert gpu.malloc(16 * MIB).address == places[1]
    assert gpu.malloc(16 * MIB).address == places[0]


def test_free_neighbours_become_one() -> None:
    """In whichever order they are freed, the segment is whole again."""
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        gpu = Allocator()
        blocks = [gpu.malloc(4 * MIB) for _ in range(3)]
        assert gpu.reserved == 20 * MIB
        for place in order:
            gpu.free(blocks[place])
        assert gpu.allocated == 0
        gpu.malloc(20 * MIB)
        assert gpu.reserved == 20 * MIB


def test_fragmentation_is_seen() -> None:
    """Enough free memory in all, and none in one piece: another segment is fetched."""
    gpu = Allocator()
    blocks = [gpu.malloc(5 * MIB) for _ in range(4)]
    assert gpu.reserved == 20 * MIB
    gpu.free(blocks[0])
    gpu.free(blocks[2])
    gpu.malloc(10 * MIB)
    assert gpu.reserved == 30 * MIB


def test_pools_do_not_help_each_other() -> None:
    """A small request does not take from a large segment, however empty."""
    gpu = Allocator()
    gpu.free(gpu.malloc(20 * MIB))
    gpu.malloc(512)
    assert gpu.reserved == 22 * MIB


def test_peaks() -> None:
    """The largest since the last reset."""
    gpu = Allocator()
    block = gpu.malloc(30 * MIB)
    gpu.free(block)
    assert (gpu.allocated, gpu.peak_allocated) == (0, 30 * MIB)
    gpu.reset_peaks()
    assert (gpu.peak_allocated, gpu.peak_reserved) == (0, 30 * MIB)
    gpu.empty_cache()
    assert gpu.reserved == 0


def test_a_full_gpu() -> None:
    """What is free is given back first; then the error says what was asked for."""
    gpu = Allocator(capacity=100 * MIB)
    gpu.free(gpu.malloc(60 * MIB))
    kept = gpu.malloc(70 * MIB)  # only after the 60 MiB were given back
    assert gpu.reserved == 70 * MIB
    with pytest.raises(OutOfMemory, match="40 MiB more do not fit: 70 MiB of 100 MiB") as error:
        gpu.malloc(40 * MIB)
    assert error.value.asked == 40 * MIB
    assert kept.used


def test_bad_input() -> None:
    """A negative size and a second release are refused; nothing at all takes nothing."""
    gpu = Allocator()
    with pytest.raises(ValueError, match="-1 bytes"):
        gpu.malloc(-1)
    nothing = gpu.malloc(0)
    assert (gpu.allocated, gpu.reserved) == (0, 0)
    gpu.free(nothing)
    block = gpu.malloc(1)
    gpu.free(block)
    with pytest.raises(ValueError, match="not in use"):
        gpu.free(block)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 40 * MIB) | st.integers(1, 2 * MIB)), max_size=120
    )
)
def test_any_sequence(steps: list[tuple[bool, int]]) -> None:
    """Blocks never overlap, the sums are right, and in the end every segment is whole."""
    gpu = Allocator()
    used = []
    for release, number in steps:
        if release and used:
            gpu.free(used.pop(number % len(used)))
        else:
            used.append(gpu.malloc(number))
            assert used[-1].size >= number
        assert gpu.allocated == sum(block.size for block in used)
        assert gpu.allocated <= gpu.reserved <= gpu.peak_reserved
        spans = sorted((block.address, block.address + block.size) for block in used)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    for block in used:
        gpu.free(block)
    gpu.empty_cache()
    assert (gpu.allocated, gpu.reserved) == (0, 0)
