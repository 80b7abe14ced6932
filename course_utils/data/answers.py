"""Questions about countries, answered as Yoda might: a small set in which the style is new, and a
program can check it. Introduced in notebook 07.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from course_utils import checks

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
    checks.a("row", row, Mapping, "a row of the data set countries")
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
