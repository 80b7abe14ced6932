"""The checks of notebook 02a."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from course_utils.exercises._check import Wrong, call, exercise, number
from course_utils.exercises._notebook_02 import floats


@exercise(
    "02a.1",
    "How many numbers does the adapter of one layer have, if the rank is 1? Add up all layers.",
    "A number in float32 takes 4 bytes, and a MB is a million bytes.",
    "The rank is a whole number, and the file may not become larger than allowed: round down.",
)
def _largest_rank(function: Callable[..., int]) -> None:
    three = [(1536, 576), (1536, 576), (576, 1536)]
    cases = (([(1536, 576)], 0.1), (three, 0.5), (three * 30, 20.0), ([(64, 32)], 0.0001))
    for shapes, megabytes in cases:
        layers = "one layer" if len(shapes) == 1 else f"{len(shapes)} layers"
        what = f"With {layers}, the first of shape {shapes[0]}, and {megabytes:g} MB: "
        given = number(call(function, list(shapes), megabytes), f"{what}a whole number is expected")
        if not 0 <= given < math.inf or given != int(given):
            raise Wrong(f"{what}the rank is a whole number, 0 or more, and this is {given}.")
        each = 4 * sum(n_out + n_in for n_out, n_in in shapes)
        if given * each > megabytes * 1e6:
            raise Wrong(f"{what}at rank {int(given)} the file has {given * each / 1e6:.4g} MB.")
        if (given + 1) * each <= megabytes * 1e6:
            raise Wrong(
                f"{what}rank {int(given)} fits, but so does a higher one: at rank "
                f"{int(given) + 1} the file has {(given + 1) * each / 1e6:.4g} MB."
            )


@exercise(
    "02a.2",
    "An adapter holds a change of the weights. Which change was made here?",
    "LoftQ (section 5) also looks for the best approximation of a given rank, for another matrix.",
    "Multiply the singular values into one of the two matrices, or their square roots into both.",
)
def _extract(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    generator = torch.Generator().manual_seed(0)
    for n_out, n_in, r in ((12, 8, 3), (9, 15, 1), (6, 6, 6)):
        before = torch.randn(n_out, n_in, generator=generator)
        # Nearly of rank r, so that methods which approximate the SVD find it too.
        thin = torch.randn(n_out, r, generator=generator), torch.randn(r, n_in, generator=generator)
        after = before + 0.1 * thin[0] @ thin[1]
        after += 0.01 * torch.randn(n_out, n_in, generator=generator)
        given = call(function, before.clone(), after.clone(), r)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise Wrong(f"Two tensors are expected, A and B, and this is {type(given).__name__}.")
        if any(part is None or part is ... for part in given):
            raise Wrong("One of A and B is still missing.")
        A = floats(given[0], (r, n_in), "A")
        B = floats(given[1], (n_out, r), "B")
        change = after - before
        nothing = change.norm().item()
        best = torch.linalg.svdvals(change)[r:].norm().item()
        left = (change - B @ A).norm().item()
        if left > best * 1.01 + 1e-4:
            better = "nearer than" if left < nothing else "no nearer than"
            raise Wrong(
                f"At rank {r}, before + B @ A misses after by {left:.3f}: {better} no adapter at "
                f"all ({nothing:.3f}), but the best possible is {best:.3f}; 1% more is accepted."
            )
