"""The checks of notebook 02."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from course_utils.exercises._check import Wrong, call, exercise, number


@exercise(
    "02.1",
    "Write down the factor before BA, once with the old rank and once with the new one.",
    "The two factors should be equal, and the only unknown is the new alpha.",
    "rsLoRA divides alpha by another function of the rank, which the exercise names. Nothing else "
    "changes.",
)
def _new_alpha(function: Callable[..., float]) -> None:
    cases = ((16, 32, 64), (16, 32, 16), (64, 16, 16), (8, 8, 32), (10, 7, 25))
    for stabilised, (r, alpha, new_r) in itertools.product((False, True), cases):
        what = f"From r={r}, alpha={alpha} to r={new_r}, use_rslora={stabilised}: "
        given = number(call(function, r, alpha, new_r, stabilised), f"{what}a number is expected")
        if not math.isfinite(given) or given <= 0:
            raise Wrong(f"{what}alpha is positive and finite, and this is {given}.")

        def factor(alpha: float, r: int, stabilised: bool = stabilised) -> float:
            return alpha / (math.sqrt(r) if stabilised else r)

        old, new = factor(alpha, r), factor(given, new_r)
        if not math.isclose(old, new, rel_tol=1e-6):
            raise Wrong(f"{what}the factor was {old:g}, and with your alpha it is {new:g}.")


def floats(given: Any, shape: tuple[int, ...], what: str) -> torch.Tensor:
    """Return an answer's tensor, or raise what is wrong with it."""
    if not isinstance(given, torch.Tensor):
        raise Wrong(f"{what} should be a tensor, and is {type(given).__name__}.")
    if tuple(given.shape) != shape:
        raise Wrong(f"{what} should have the shape {shape}, and has {tuple(given.shape)}.")
    if not given.is_floating_point() or not torch.isfinite(given).all():
        raise Wrong(f"{what} should hold finite floating-point numbers.")
    return given.detach().float()


@exercise(
    "02.2",
    "Look at the class in section 2: by which matrix does the adapter multiply its input? This "
    "matrix is what you add to the weight.",
    "Only one order of the two thin matrices gives a product with the shape of the weight.",
    "Do not forget the factor, and return a new tensor: `+=` would change the weight itself.",
)
def _merge(function: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for n_out, n_in, r, alpha in ((6, 4, 2, 2), (5, 8, 4, 16), (7, 7, 7, 3)):
        weight = torch.randn(n_out, n_in, generator=generator)
        A = torch.randn(r, n_in, generator=generator)
        B = torch.randn(n_out, r, generator=generator)
        kept = weight.clone()
        given = call(function, weight, A.clone(), B.clone(), alpha, r)
        what = f"For a weight of shape ({n_out}, {n_in}), the result"
        given = floats(given, (n_out, n_in), what)
        if not torch.equal(weight, kept):
            raise Wrong("The weight that was handed in has changed, so nobody can go back.")
        change, product = given - weight, B @ A
        if torch.allclose(change, torch.zeros_like(change), atol=1e-5):
            raise Wrong("The result is the weight as it was: the adapter is not in it.")
        if torch.allclose(given, alpha / r * product, atol=1e-4):
            raise Wrong("This is the update alone; the weight is not in it.")
        if not torch.allclose(change, alpha / r * product, atol=1e-4):
            used = ((change * product).sum() / product.square().sum()).item()
            if torch.allclose(change, used * product, atol=1e-4):
                raise Wrong(
                    f"The update has the right direction, but for alpha={alpha} and r={r} it is "
                    f"multiplied by {used:.3g}."
                )
            raise Wrong("What is added to the weight is not a multiple of the adapter's product.")
