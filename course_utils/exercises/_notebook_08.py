"""The checks of notebook 08."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from course_utils.exercises._check import Wrong, call, exercise, number, plain

RANKED = 0.9


@exercise(
    "08.1",
    "By which factor does the width change when `times` goes from 1 to 4? And from 4 to 16?",
    "The width is proportional to 1 divided by a root of the number of questions. Which root?",
    "Solve this for the number of questions. Then turn the result into a whole number.",
)
def _questions_for(function: Callable[[float, int, float], Any]) -> None:
    for width, n, wanted in ((0.2, 80, 0.2), (0.2, 80, 0.1), (0.3, 50, 0.1), (0.1, 400, 0.25)):
        found = call(function, width, n, wanted)
        told = f"{n} questions make the interval {width:g} wide; for {wanted:g} you say {found!r}"
        found = number(found, f"For an interval of {wanted:g}, a number is expected")
        needed = n * (width / wanted) ** 2
        if not math.isfinite(found) or found < 0:
            raise Wrong(f"{told}.")
        if abs(found - needed) > 1.01:
            linear = n * width / wanted
            how = "too few" if found < needed else "too many"
            if abs(found - linear) < 1.01:
                how += "; set `times` so that there are as many, and look at the width"
            raise Wrong(f"{told}. That is {how}.")
        if found != int(found):
            raise Wrong(f"{told}. It is a whole number of questions.")


# Reply, answer, other answers, whether the reply is right.
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
    ("The town is Stx John's.", "St. John's", {"St. George's"}, False),
)


@exercise(
    "08.2",
    "`re.search` with `\\b` on both sides finds a name as a whole word. With `re.escape`, a full "
    "stop in a name matches only a full stop.",
    "Collect all names that occur in the reply, be it the answer or one of the others. Compare "
    "this set with the set that you want.",
    "If one name is part of another, look for the longer one first: in a pattern `a|b`, the left "
    "side is tried first.",
)
def _right_fact(function: Callable[[str, str, set[str]], Any]) -> None:
    for reply, answer, others, wanted in _REPLIES:
        found = plain(call(function, reply, answer, set(others)))
        if not isinstance(found, bool):
            raise Wrong(f"True or False is expected; this is {found!r}.")
        if found != wanted:
            told = "right" if found else "wrong"
            listed = ", ".join(sorted(others))
            raise Wrong(
                f"You call the reply {reply!r} {told}; looked for is {answer}, and the others are: "
                f"{listed}."
            )


# Paraphrases of the same facts, two per relation; continents are too few to identify a text.
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
    """Create test texts, training texts, the indices of leaked items and of surely clean ones.

    An item is neither if a leak also gives away another relation's answer (Albanian).
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
    "Count for each word in how many texts it occurs. Which words of a test text occur in few "
    "other texts?",
    "Give each word a weight that falls with its count, such as 1 divided by the count. Compare a "
    "test text with each training text by the weights of the words that both have.",
    "The score of a test text is its best match: which share of its own weight does one training "
    "text have? Return one number for each test text.",
)
def _leak_scores(function: Callable[[list[str], list[str]], Any]) -> None:
    test, train, leaks, clean = _planted()
    found = plain(call(function, list(test), list(train)))
    told = f"A list with a score for each of the {len(test)} test texts is expected"
    if not isinstance(found, list) or len(found) != len(test):
        raise Wrong(f"{told}.")
    scores = [number(score, told) for score in found]
    if any(map(math.isnan, scores)):
        raise Wrong(f"{told}; there is a NaN among them.")
    pairs = [(leak, other) for leak in sorted(leaks) for other in sorted(clean)]
    above = sum(
        (scores[leak] > scores[other]) + (scores[leak] == scores[other]) / 2
        for leak, other in pairs
    )
    if above < RANKED * len(pairs):
        leak, other = min(pairs, key=lambda pair: scores[pair[0]] - scores[pair[1]])
        raise Wrong(
            f"In {above / len(pairs):.0%} of all pairs, the leaked text scores higher than the "
            f"clean one; {RANKED:.0%} are wanted. This leaked text gets {scores[leak]:.3g}: "
            f"{test[leak]} This clean one gets {scores[other]:.3g}: {test[other]}"
        )
