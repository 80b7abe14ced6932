"""The checks of notebook 04."""

from __future__ import annotations

from collections.abc import Callable

from course_utils.exercises._check import Wrong, call, exercise, number
from course_utils.memory import Setup, predict

_GIB = 2**30


@exercise(
    "04.1",
    "A byte has eight bits. How many bytes do the frozen weights take?",
    "For each number of the adapter: the weight itself, its gradient, and what AdamW keeps. How "
    "many numbers are these, with 4 bytes each?",
    "A GB is 10⁹ bytes here.",
)
def _held_gb(function: Callable[[int, int, int], float]) -> None:
    for parameters, bits, adapter in (
        (1_000_000_000, 32, 0),
        (1_700_000_000, 16, 20_000_000),
        (7_000_000_000, 4, 40_000_000),
        (125_000_000, 8, 125_000_000),
    ):
        found = number(call(function, parameters, bits, adapter), "A number of GB is expected")
        frozen, trained = parameters * bits / 8, adapter * 16
        wanted = (frozen + trained) / 1e9
        if abs(found - wanted) <= 1e-6 * max(wanted, 1):
            continue
        what = (
            f"For {parameters / 1e6:,.0f} million weights of {bits} bits and an adapter of "
            f"{adapter / 1e6:,.0f} million, "
        )
        if abs(found - (frozen + trained) / _GIB) <= 1e-6:
            raise Wrong(f"{what}you divided by 2³⁰. A GB is 10⁹ bytes here.")
        if adapter and parameters and abs(found - parameters * bits / 8 / 1e9) <= 1e-6:
            raise Wrong(f"{what}the adapter is missing.")
        if not found <= wanted:
            raise Wrong(f"{what}you find {found:.4g} GB; it is less.")
        raise Wrong(f"{what}you find {found:.4g} GB; it is more.")


@exercise(
    "04.2",
    "`setup.replace(micro_batches=1)` is the same setup with one micro-batch.",
    "With accumulation, one micro-batch is not yet a step.",
    "`predict(...).peak_allocated_mb` is one peak. You need the difference of two.",
)
def _second_step_costs(function: Callable[[Setup], float]) -> None:
    base = Setup("course/pythia-3m", seq_len=256, batch_size=8, optimizer="adamw_torch_fused")
    for setup in (base, base.replace(optimizer="sgd"), base.replace(accumulation=3)):
        found = number(call(function, setup), "A number of MB is expected")
        short, long = (
            predict(setup.replace(micro_batches=steps * setup.accumulation)) for steps in (1, 2)
        )
        one, two = short.peak_allocated_mb, long.peak_allocated_mb
        what = f"For {setup.optimizer} with accumulation over {setup.accumulation}"
        if two - one > 1 and abs(found - (one - two)) < 0.5:
            raise Wrong(f"{what} it is {found:.1f} MB: the right way round?")
        if not abs(found - (two - one)) <= 0.5:
            if abs(found - (long.peak_reserved_mb - short.peak_reserved_mb)) < 0.5:
                raise Wrong(f"{what} {found:.1f} MB is the rise of *reserved* memory.")
            raise Wrong(f"{what} you find {found:.1f} MB; predictions say otherwise.")
