"""The checks of notebook 03.1."""

from __future__ import annotations

import math
from collections.abc import Callable

from course_utils.exercises._check import Wrong, call, exercise, number, plain


@exercise(
    "03.1.1",
    "How many batches make one pass? A last batch that is not full counts, too.",
    "With accumulation, several batches make one step. Count the steps of one pass first, and then "
    "the passes.",
)
def _steps(function: Callable[[int, int, int, int], int]) -> None:
    cases = (
        (1, 3000, 4, 1, "one pass in batches"),
        (3, 800, 8, 1, "several passes"),
        (1, 10, 4, 1, "a last batch that is not full"),
        (2, 640, 8, 4, "several batches to a step"),
        (3, 10, 4, 1, "several passes, each with a last batch that is not full"),
        (2, 10, 2, 4, "several passes, each with a last step of fewer batches"),
    )
    for passes, examples, batch, accumulation, what in cases:
        given = number(call(function, passes, examples, batch, accumulation))
        if not math.isfinite(given) or given != int(given):
            raise Wrong(f"{given:g} steps? There are no half steps ({what}).")
        wanted = passes * math.ceil(math.ceil(examples / batch) / accumulation)
        if given != wanted:
            raise Wrong(
                f"{what.capitalize()}: {passes} × {examples} examples in batches of {batch}, "
                f"accumulation {accumulation}, are {'more' if given < wanted else 'fewer'} than "
                f"{given:g} steps."
            )


@exercise(
    "03.1.2",
    "The rate follows two straight lines. Which steps lie on the first, and which on the second?",
    "On the first line, which share of the warm-up is over? On the second, which share of the "
    "steps after the warm-up is still to come? Multiply the peak by this share.",
    "The warm-up may have 0 steps. Then no step lies on the first line.",
)
def _rate(function: Callable[[int, float, int, int], float]) -> None:
    for peak, warm_up, total in ((1e-3, 10, 110), (2e-4, 0, 50), (1.0, 5, 5)):
        steps = {0, warm_up // 2, warm_up, (warm_up + total) // 2, total - 1}
        for step in sorted(steps - {total}):  # there is no step `total`
            given = number(call(function, step, peak, warm_up, total))
            if step < warm_up:
                wanted = peak * step / warm_up
            else:
                wanted = peak * (total - step) / (total - warm_up)
            if not math.isclose(given, wanted, rel_tol=1e-6, abs_tol=1e-12):
                where = "rising" if step < warm_up else "at its peak" if step == warm_up else ""
                raise Wrong(
                    f"At step {step} of {total}, with a peak of {peak:g} after {warm_up} steps, "
                    f"you gave {given:g}; there the rate should be {where or 'falling'}, and "
                    f"{'larger' if given < wanted else 'smaller'} than that."
                )


def _expected(losses: list[float], patience: int, least: float) -> tuple[int, int]:
    """Do as transformers' EarlyStoppingCallback: any lower loss is the new best one."""
    best = waited = 0
    for index in range(1, len(losses)):
        waited = 0 if losses[best] - losses[index] > least else waited + 1
        if losses[index] < losses[best]:
            best = index
        if waited == patience:
            return index, best
    return len(losses) - 1, best


@exercise(
    "03.1.3",
    "Go through the list once, and remember the index of the best loss so far.",
    "Count the validations in a row that were not better than the best so far by more than "
    "`least`. When the count reaches `patience`, the training ends.",
    "An equal loss is not better. A loss that is lower by less than `least` does become the best "
    "so far, and later losses are compared with it. But the count goes on.",
)
def _stop(function: Callable[..., tuple[int, int]]) -> None:
    cases = (
        ([3.0, 2.0, 1.0], 2, 0.0, "it improves all the time"),
        ([3.0, 2.0, 2.5, 2.6, 2.7, 1.0], 2, 0.0, "it turns, and gets good again too late"),
        ([3.0, 2.0, 2.5, 1.5, 1.6, 1.7], 2, 0.0, "it has one bad validation in between"),
        ([3.0, 3.0, 3.0, 3.0], 2, 0.0, "nothing happens"),
        ([3.0, 2.9, 2.8, 2.7, 2.6, 2.5], 3, 0.25, "it improves by little each time"),
        ([3.0, 2.5, 2.0, 1.5], 2, 0.5, "it improves by `least`, and not by more, each time"),
        ([3.0, 2.75, 3.0, 3.0, 3.0], 3, 0.5, "the best is better by less than `least`"),
        ([3.0, 2.0, 2.5, 1.75, 1.5, 1.0], 2, 0.5, "it improves by too little after a bad one"),
        ([2.0], 3, 0.0, "there is only one validation"),
    )
    for losses, patience, least, what in cases:
        pair = "A pair of indices is expected"
        given = plain(call(function, list(losses), patience, least))
        if not isinstance(given, list) or len(given) != 2:
            raise Wrong(f"{pair}; this is {given!r}.")
        given = [number(index, pair, whole=True) for index in given]
        wanted = _expected(losses, patience, least)
        shown = f"For {losses}, patience {patience}, least {least:g}, where {what}: "
        if given[1] != wanted[1]:
            raise Wrong(f"{shown}the best is not the one at index {given[1]}.")
        if given[0] != wanted[0]:
            early = "too early" if given[0] < wanted[0] else "too late"
            raise Wrong(f"{shown}to end after index {given[0]} is {early}.")
