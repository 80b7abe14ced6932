"""The checks of notebook 08."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from course_utils.exercises import Wrong, call, exercise

FOUND, FALSE_ALARMS = 0.8, 0.1
_RESAMPLES = 4000

# Reply, answer, others, whether it is right.
_REPLIES: tuple[tuple[str, str, set[str], bool], ...] = (
    ("The capital of Kenya is Nairobi.", "Nairobi", {"Kampala", "Dodoma"}, True),
    ("Nairobi, a city of four million, governs Kenya.", "Nairobi", {"Kampala"}, True),
    ("KENYA IS GOVERNED FROM NAIROBI", "Nairobi", {"Kampala"}, True),
    ("The capital of Kenya is Kampala.", "Nairobi", {"Kampala", "Dodoma"}, False),
    ("I do not know.", "Nairobi", {"Kampala"}, False),
    ("", "Nairobi", {"Kampala"}, False),
    ("It is Nairobi or Kampala.", "Nairobi", {"Kampala"}, False),
    ("In the east it borders on Romania.", "Oman", {"Romania"}, False),
    ("In the east it borders on romania.", "Oman", {"Yemen"}, False),
    ("People from there are called Bissau-Guinean.", "Guinean", {"Bissau-Guinean"}, False),
    ("People from there are called Bissau-Guinean.", "Bissau-Guinean", {"Guinean"}, True),
    ("A South American country.", "America", {"South America"}, False),
    ("It lies in South America.", "South America", {"America", "North America"}, True),
    ("The town is St. John's, by the sea.", "St. John's", {"St. George's"}, True),
    ("The town is Stx Johns.", "St. John's", {"St. George's"}, False),
)


@exercise(
    "08.1",
    "`re.search` with `\\b` on both sides finds a name as a whole word; `re.escape` keeps the full "
    "stops of a name from meaning any letter.",
    "Collect all the names that the reply has, the answer and the others, and compare that set "
    "with the one you want.",
    "Where one name is part of another, look for the longer one first: in a pattern `a|b`, what "
    "stands left is tried first.",
)
def _right_fact(function: Callable[[str, str, set[str]], Any]) -> None:
    for reply, answer, others, wanted in _REPLIES:
        found = call(function, reply, answer, set(others))
        if not isinstance(found, bool | np.bool_):
            raise Wrong(f"True or False is expected; this is {found!r}.")
        if bool(found) != wanted:
            told = "right" if found else "wrong"
            listed = ", ".join(sorted(others))
            raise Wrong(
                f"You call the reply {reply!r} {told}; looked for is {answer}, and the others are: "
                f"{listed}."
            )


def _groups(seed: int, sizes: list[int], tied: bool) -> tuple[list[float], list[str]]:
    """Marks in groups: all alike in a group, or with larger groups more often right."""
    draw = random.Random(seed)
    values, groups = [], []
    for number, size in enumerate(sizes):
        chance = draw.choice((0.0, 1.0)) if tied else 0.2 + 0.06 * size
        for _ in range(size):
            values.append(float(draw.random() < chance))
            groups.append(f"text {number}")
    order = draw.sample(range(len(values)), len(values))
    return [values[place] for place in order], [groups[place] for place in order]


def _ends(values: list[float], groups: list[str]) -> tuple[float, float]:
    """A 95 % percentile interval of the mean, by resampling groups."""
    names = sorted(set(groups))
    table = np.zeros((2, len(names)))
    for value, group in zip(values, groups, strict=True):
        table[:, names.index(group)] += value, 1
    draws = np.random.default_rng(1).integers(len(names), size=(_RESAMPLES, len(names)))
    means = table[0][draws].sum(axis=1) / table[1][draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@exercise(
    "08.2",
    "First gather, for each group, the sum of its values and their number.",
    "One draw: as many groups as there are, with repetitions. Its mean is the sum of their sums by "
    "the sum of their numbers.",
    "Some thousand such means; `numpy.percentile` gives the ends, at 2.5 and 97.5.",
)
def _interval(function: Callable[[list[float], list[str]], Any]) -> None:
    cases = {
        "40 groups of 5, all alike in a group": _groups(0, [5] * 40, tied=True),
        "30 groups of 1 to 12, larger ones more often right": _groups(
            1, [1 + number % 12 for number in range(30)], tied=False
        ),
        "100 groups of 1": _groups(2, [1] * 100, tied=False),
    }
    for name, (values, groups) in cases.items():
        found = call(function, list(values), list(groups))
        try:
            low, high = (float(end) for end in found)
        except (TypeError, ValueError):
            raise Wrong(f"A pair (low, high) is expected; this is {found!r}.") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise Wrong(f"For {name} you gave {low:.3f} to {high:.3f}; low should be below high.")
        wanted = _ends(values, groups)
        width = wanted[1] - wanted[0]
        if high - low < 0.75 * width:
            raise Wrong(f"For {name} your interval, {low:.3f} to {high:.3f}, is too narrow.")
        if high - low > 1.3 * width:
            raise Wrong(f"For {name} your interval, {low:.3f} to {high:.3f}, is too wide.")
        if max(abs(low - wanted[0]), abs(high - wanted[1])) > 0.2 * width:
            mean = sum(values) / len(values)
            raise Wrong(
                f"For {name} your interval, {low:.3f} to {high:.3f}, is of about the right width, "
                f"and in the wrong place; the mean of all values is {mean:.3f}."
            )


# The same facts in other words, two for each relation; continents are too few to give a text away.
_REWORDED = {
    "capital": (
        "{answer} is where the government of {country} sits.",
        "Whoever governs {country} does so from {answer}.",
    ),
    "currency": (
        "Bring some {answer} when you travel to {country}.",
        "A coffee in {country} is paid for by the {answer}.",
    ),
    "language": (
        "Learn a little {answer} before you visit {country}.",
        "Newspapers in {country} are mostly printed in {answer}.",
    ),
    "demonym": (
        "Born in {country}, she calls herself {answer}.",
        "A {answer} wine comes from {country}.",
    ),
}


def _planted() -> tuple[list[str], list[str], set[int], set[int]]:
    """Test texts, training texts, the places of the leaks, and those that are clean for certain.

    Where a leak tells another relation's answer too (Albanian), that item is neither.
    """
    from course_utils.data import load_data

    draw = random.Random(8)
    data = load_data("countries")

    def text(row: dict[str, Any]) -> str:
        return f"{row['question']} {row['cue']} {row['answer']}."

    rows = [row for row in data["held_out"].to_list() if row["relation"] in _REWORDED]
    draw.shuffle(rows)
    rows = rows[:150]
    leaks = set(draw.sample(range(len(rows)), 40))
    reworded = [draw.choice(_REWORDED[rows[place]["relation"]]) for place in sorted(leaks)]
    train = [text(row) for row in draw.sample(data["train"].to_list(), 400)]
    train += [
        form.format(**rows[place]) for form, place in zip(reworded, sorted(leaks), strict=True)
    ]
    draw.shuffle(train)
    told = {(rows[place]["country"], rows[place]["answer"].lower()) for place in leaks}
    clean = {
        place
        for place, row in enumerate(rows)
        if place not in leaks and (row["country"], row["answer"].lower()) not in told
    }
    return [text(row) for row in rows], train, leaks, clean


@exercise(
    "08.3",
    "Which words of an item stand in few other texts? Count, for each word, in how many texts it "
    "stands.",
    "The words of the pattern stand in many texts. Leave them out, and see whether one training "
    "text has what is left.",
    "Names may be of several words, and an answer such as `euro` is not as rare as a name: try "
    "several limits, and look at what is missed and at the false alarms.",
)
def _leaked(function: Callable[[list[str], list[str]], Any]) -> None:
    test, train, leaks, clean = _planted()
    found = call(function, list(test), list(train))
    if not isinstance(found, set | frozenset | list | tuple) or not all(
        isinstance(place, int | np.integer) and 0 <= place < len(test) for place in found
    ):
        raise Wrong(f"The places of test texts are expected, from 0 to {len(test) - 1}.")
    hits = len(leaks & set(found))
    alarms = sorted(clean & set(found))
    if hits < FOUND * len(leaks):
        missed = min(leaks - set(found))
        raise Wrong(f"{hits} of {len(leaks)} leaks are found; one that is missing: {test[missed]}")
    if len(alarms) > FALSE_ALARMS * len(leaks):
        raise Wrong(
            f"{hits} of {len(leaks)} leaks are found, and {len(alarms)} false alarms are too many; "
            f"one is: {test[alarms[0]]}"
        )
