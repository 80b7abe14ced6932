"""The checks of notebook 04.1."""

from __future__ import annotations

from collections.abc import Callable

import torch

from course_utils.exercises._check import Wrong, call, exercise, number


@exercise(
    "04.1.1",
    "All weights of a block share one scale. How many of the scale's bits is that for each weight?",
    "With double quantization, a scale takes 8 bits and its share of one more float32.",
)
def _bits(function: Callable[[int, int, bool], float]) -> None:
    for bits, block, double in ((4, 64, False), (8, 32, False), (4, 64, True), (4, 128, True)):
        found = number(call(function, bits, block, double), "A number of bits is expected")
        wanted = bits + ((8 + 32 / 256) if double else 32) / block
        if not abs(found - wanted) <= 1e-6:  # NaN is wrong too
            how = "with" if double else "without"
            raise Wrong(
                f"For codes of {bits} bits and blocks of {block}, {how} double quantization, you "
                f"find {found:.4f}; it is {'more' if found < wanted else 'less'}."
            )


@exercise(
    "04.1.2",
    "Begin as the notebook's `quantize` does: turn each block into a row.",
    "Between two levels there is one step. How many steps are there between four levels?",
    "How many steps is a number above the smallest one? Round this count, and turn it back into a "
    "number.",
    "If a block holds the same number in all its places, how large is its step, and where do you "
    "divide by the step?",
)
def _affine(function: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, bits, block in (((4, 32), 4, 32), ((6, 16), 2, 8), ((2, 128), 3, 64)):
        weight = 5 + torch.randn(*shape, generator=generator)  # all values positive
        rows = weight.reshape(-1, block)
        what = f"With {bits} bits and blocks of {block}, "
        kept = weight.clone()
        found = _numbers(call(function, weight, bits, block), shape, what).reshape(-1, block)
        if not torch.equal(weight, kept):
            raise Wrong("The weight that was handed in has changed.")
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        for name, end, place in (
            ("smallest", low, rows.argmin(1)),
            ("largest", high, rows.argmax(1)),
        ):
            given = found.gather(1, place[:, None])
            worst = (given - end).abs().argmax()
            was, made = end[worst].item(), given[worst].item()
            if abs(was - made) > 1e-4:
                raise Wrong(
                    f"{what}the {name} number of a block is {was:.3f}, and comes back as "
                    f"{made:.3f}. Both ends are levels."
                )
        step = (high - low) / (2**bits - 1)
        counts = (found - low) / step
        different = max(len(row.unique()) for row in counts.mul(1000).round())
        if different > 2**bits:
            raise Wrong(
                f"{what}a block holds {different} different numbers, not {2**bits} at most."
            )
        if not torch.allclose(counts, counts.round(), atol=0.01):
            raise Wrong(
                f"{what}some numbers lie between two of the {2**bits} evenly spaced levels."
            )
        if ((found - rows).abs() > 0.51 * step).any():
            raise Wrong(f"{what}some numbers have a nearer level than the one they were given.")
    constant = torch.cat([torch.full((1, 8), 3.0), torch.arange(8.0)[None]])
    found = _numbers(
        call(function, constant.clone(), 3, 8), (2, 8), "With a block of eight threes, "
    )
    if not torch.allclose(found, constant, atol=1e-5):
        raise Wrong("A block of eight threes does not come back as eight threes.")


def _numbers(given: object, shape: tuple[int, ...], what: str) -> torch.Tensor:
    """Return an answer as a tensor, or raise what is wrong with it."""
    if not isinstance(given, torch.Tensor):
        raise Wrong(f"{what}a tensor is expected, and this is {type(given).__name__}.")
    if tuple(given.shape) != shape:
        raise Wrong(f"{what}the shape is {tuple(given.shape)}, and the weight's was {shape}.")
    if not given.is_floating_point():
        raise Wrong(f"{what}these are {given.dtype}: codes? The numbers they stand for are wanted.")
    if not torch.isfinite(given).all():
        raise Wrong(f"{what}not all numbers are finite: was something divided by zero?")
    return given.detach().float()
