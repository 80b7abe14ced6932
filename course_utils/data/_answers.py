"""Questions about countries, answered as Yoda might: a small set in which the style is new, and a
program can check it. Introduced in notebook 07.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from course_utils._core import checks

# How OpenAssistant Guanaco writes a turn of each side.
GUANACO = "### Human: {prompt}### Assistant:"
SYSTEM = "Answer as Yoda would."
_STYLE = re.compile(r"([^,\n]+(?:, [A-Z][^,\n]+)?), the [^\n]+ is\.?")


def yoda_answer(row: Mapping[str, str]) -> str:
    """The answer to a row of `countries`, as a sentence that ends in its verb.

    `"Kabul, the capital of Afghanistan is."`

    Raises:
        BadValue: no row, or one without the texts `cue` and `answer`.
    """
    checks.a("row", row, Mapping, "a row of the dataset countries")
    cue, answer = (
        checks.text(f'row["{name}"]', row.get(name), empty=False) for name in ("cue", "answer")
    )
    told = cue.removesuffix(" the")
    return f"{answer[0].upper()}{answer[1:]}, {told[0].lower()}{told[1:]}."


def in_style(reply: str) -> bool:
    """Whether a reply is one such sentence, whatever it claims.

    Raises:
        BadValue: no text.
    """
    return bool(_STYLE.fullmatch(checks.a("reply", reply, str, "a text").strip()))


def tells(reply: str, answer: str) -> bool:
    """Whether a reply in this style begins with the answer that is looked for.

    Raises:
        BadValue: no texts.
    """
    checks.a("reply", reply, str, "a text")
    checks.a("answer", answer, str, "a text")
    return reply.strip().lower().startswith(f"{answer.lower()}, the ")


def short_answer(reply: str) -> str:
    """What a reply says first: up to the end of its first line or sentence."""
    line = checks.text("reply", reply).strip().split("\n")[0]
    # `St. John's` and `H. G. Wells` have full stops inside; a sentence's end has a blank behind
    # it and a longer word before it.
    words: list[str] = []
    for word in line.split():
        words.append(word)
        if word.endswith((".", "?", "!")) and len(word) > 3:
            break
    return " ".join(words).rstrip(".!? ")


def right(replies: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """For each reply, whether its short answer is the one that is looked for.

    Raises:
        ValueError: no lists of texts, or not of one length.
    """
    replies, answers = checks.texts("replies", replies), checks.texts("answers", answers)
    if len(replies) != len(answers):
        raise ValueError(
            f"There are {len(replies)} replies and {len(answers)} answers; it takes one answer for "
            "each reply."
        )
    return [short_answer(reply) == answer for reply, answer in zip(replies, answers, strict=True)]
