"""Yoda-style answers to questions about countries: a small dataset in a new style that a program
can check. Introduced in notebook 07.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from course_utils._core import checks

# The format of each side's turn in OpenAssistant Guanaco.
GUANACO = "### Human: {prompt}### Assistant:"
SYSTEM = "Answer as Yoda would."
_STYLE = re.compile(r"([^,\n]+(?:, [A-Z][^,\n]+)?), the [^\n]+ is\.?")


def yoda_answer(row: Mapping[str, str]) -> str:
    """Answer a row of `countries` in a sentence that ends with its verb.

    Example: `"Kabul, the capital of Afghanistan is."`

    Raises:
        BadValue: not a row, or one without the strings `cue` and `answer`.
    """
    checks.a("row", row, Mapping, "a row of the dataset countries")
    cue, answer = (
        checks.text(f'row["{name}"]', row.get(name), empty=False) for name in ("cue", "answer")
    )
    told = cue.removesuffix(" the")
    return f"{answer[0].upper()}{answer[1:]}, {told[0].lower()}{told[1:]}."


def in_style(reply: str) -> bool:
    """Whether a reply is a single sentence in this style, whether or not it is right.

    Raises:
        BadValue: not a string.
    """
    return bool(_STYLE.fullmatch(checks.a("reply", reply, str, "a text").strip()))


def tells(reply: str, answer: str) -> bool:
    """Whether a reply in this style begins with the expected answer.

    Raises:
        BadValue: an argument is not a string.
    """
    checks.a("reply", reply, str, "a text")
    checks.a("answer", answer, str, "a text")
    return reply.strip().lower().startswith(f"{answer.lower()}, the ")


def short_answer(reply: str) -> str:
    """Return the beginning of a reply, up to the end of its first line or sentence."""
    line = checks.text("reply", reply).strip().split("\n")[0]
    # `St. John's` and `H. G. Wells` contain full stops; the end of a sentence is followed by a
    # space and preceded by a longer word.
    words: list[str] = []
    for word in line.split():
        words.append(word)
        if word.endswith((".", "?", "!")) and len(word) > 3:
            break
    return " ".join(words).rstrip(".!? ")


def right(replies: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Check for each reply whether its short answer is the expected one.

    Raises:
        ValueError: not lists of strings, or they differ in length.
    """
    replies, answers = checks.texts("replies", replies), checks.texts("answers", answers)
    if len(replies) != len(answers):
        raise ValueError(
            f"There are {len(replies)} replies and {len(answers)} answers; it takes one answer for "
            "each reply."
        )
    return [short_answer(reply) == answer for reply, answer in zip(replies, answers, strict=True)]
