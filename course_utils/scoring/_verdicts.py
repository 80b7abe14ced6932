"""A judge's verdicts, and how they are parsed from its replies. Introduced in notebook 08."""

from __future__ import annotations

import re
from dataclasses import dataclass

from course_utils._core import checks
from course_utils.scoring._instructions import find_json

# Small models often leave out the last bracket.
_BRACKETS = re.compile(r"\[\[ ?([ABC]) ?\]", re.IGNORECASE)
_WINNERS = {"A": "first", "B": "second", "C": "tie"}


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on two answers.

    Attributes:
        winner: "first", "second", "tie", or None if no verdict could be parsed.
        reply: the judge's reply.
    """

    winner: str | None
    reply: str


def parse_verdict(text: str) -> str | None:
    """Parse which answer a judge's reply prefers.

    A verdict is a letter in double brackets, as in `[[A]]`; or else a letter alone; or else JSON
    with the letter under "verdict" or "winner". The letter is A, B, or C for a tie, in upper or
    lower case. Text between `<think>` and `</think>` is ignored.

    Returns:
        "first" for A, "second" for B, "tie" for C; None if there is no verdict, or if there are
        several that differ.

    Raises:
        BadValue: not a string.
    """
    text = checks.a("text", text, str, "a text")
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    letters = _BRACKETS.findall(text) or [text.strip(" \n\t.*`\"'()[]")]
    if len(letters[0]) > 1 and isinstance(found := find_json(text), dict):
        letters = [str(found.get("verdict", found.get("winner"))).strip("[] ")]
    said = {letter.upper() for letter in letters}
    return _WINNERS.get(said.pop()) if len(said) == 1 else None
