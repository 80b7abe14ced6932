"""The check of notebook 04a."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from course_utils.exercises._check import Wrong, call, exercise


@exercise(
    "04a.1",
    "`inputs` has a row for each token and a column for each feature. Along which dimension do you "
    "look?",
    "An outlier may be negative.",
    "One such number in a column is enough. `any` and `nonzero` help.",
)
def _outlier_features(function: Callable[[torch.Tensor, float], Iterable[int]]) -> None:
    inputs = torch.tensor(
        [
            [0.5, -1.0, 2.0, 0.0, 7.0],
            [0.1, 9.0, -6.0, 0.3, -0.2],
            [-0.4, 0.2, 1.0, -6.5, 0.0],
        ]
    )
    for rows, threshold, wanted in (
        (inputs, 6.0, [1, 3, 4]),
        (inputs, 8.0, [1]),
        (inputs, 100.0, []),
        (inputs[:1], 0.75, [1, 2, 4]),
        (-inputs, 6.25, [1, 3, 4]),
    ):
        kept = rows.clone()
        given = _indices(call(function, rows, threshold))
        if not torch.equal(rows, kept):
            raise Wrong("The inputs that were handed in have changed.")
        what = f"With a threshold of {threshold:g} and {len(rows)} tokens, "
        if any(index >= rows.shape[1] or index < 0 for index in given):
            raise Wrong(f"{what}you name feature {max(given)}: there are 0 to {rows.shape[1] - 1}.")
        if missing := sorted(set(wanted) - set(given)):
            raise Wrong(
                f"{what}feature {missing[0]} is missing: it holds "
                f"{rows[:, missing[0]].tolist()}, to one decimal."
            )
        if more := sorted(set(given) - set(wanted)):
            raise Wrong(
                f"{what}feature {more[0]} is named, and holds {rows[:, more[0]].tolist()}: no "
                "number that is further from zero than the threshold."
            )
        if len(given) != len(wanted):
            raise Wrong(f"{what}a feature is named more than once.")


def _indices(given: object) -> list[int]:
    """Return an answer as a list of whole numbers, or raise what is wrong with it."""
    if isinstance(given, torch.Tensor):
        if given.dtype == torch.bool:
            raise Wrong("These are truth values. The numbers of the features are wanted.")
        given = given.flatten().tolist()
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise Wrong(f"A list of numbers is expected, and this is {type(given).__name__}.")
    found = list(given)
    try:
        whole = [int(index) for index in found]
    except (TypeError, ValueError):
        raise Wrong("A list of whole numbers is expected: those of the features.") from None
    if any(
        isinstance(index, bool) or index != number
        for index, number in zip(found, whole, strict=True)
    ):
        raise Wrong("A list of whole numbers is expected: those of the features.")
    return whole
