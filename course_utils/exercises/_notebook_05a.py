"""The checks of notebook 05a."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from course_utils.exercises._check import Wrong, call, exercise

_TRIALS = {"one step": 3537.0, "8-bit": 2222.0, "paged": 2199.0, "no step": 2199.4, "two": 4189.0}
# Published MB, tolerance, and the names wanted, in their order.
_CASES = (
    (3537.0, 0.01, ["one step"]),
    (2200.0, 0.001, ["no step", "paged"]),
    (2222.0, 0.02, ["8-bit", "no step", "paged"]),
    (1667.0, 0.01, []),
    (4000.0, 0.04725, ["two"]),  # 189 of 4000; as a share of the prediction it is 4.5%
    (3900.0, 0.0735, []),  # 289 of 3900 is 7.4%; of the prediction 6.9%
)


@exercise(
    "05a.1",
    "How far off is one candidate? Take the difference, without its sign.",
    "Divide the difference by `published`, not by the prediction.",
    "`sorted(names, key=...)` puts the names in order. The key is how far off each one is.",
)
def _explains(function: Callable[..., Any]) -> None:
    for published, tolerance, wanted in _CASES:
        given = call(function, published, dict(_TRIALS), tolerance)
        what = f"For {published:,.0f} MB and a tolerance of {tolerance:.2%} of"
        what += f" {', '.join(f'{name}: {mb:,.0f}' for name, mb in _TRIALS.items())}: "
        if isinstance(given, str) or not isinstance(given, list | tuple):
            raise Wrong(f"{what}a list of names is expected; this is {given!r:.60}.")
        found = list(given)
        if strange := [name for name in found if name not in _TRIALS]:
            raise Wrong(f"{what}{strange[0]!r:.60} is not the name of a candidate.")
        if sorted(found) != sorted(wanted):
            raise Wrong(f"{what}{wanted or 'none'} is within the tolerance; you found {found}.")
        if found != wanted:
            raise Wrong(f"{what}the nearest comes first, so {wanted}; you gave {found}.")
