"""Questions about countries, answered as Yoda might: a small set in which the style is new, and a
program can check it. Introduced in notebook 07.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# How OpenAssistant Guanaco writes a turn of each side.
GUANACO = "### Human: {prompt}### Assistant:"
SYSTEM = "Answer as Yoda would."
_STYLE = re.compile(r"([^,\n]+(?:, [A-Z][^,\n]+)?), the [^\n]+ is\.?")


def yoda_answer(row: Mapping[str, str]) -> str:
    """The answer to a row of `countries`, as a sentence that ends in its verb.

    `"Kabul, the capital of Afghanistan is."`
    """
    told = row["cue"].removesuffix(" the")
    answer = row["answer"]
    return f"{answer[0].upper()}{answer[1:]}, {told[0].lower()}{told[1:]}."


def in_style(reply: str) -> bool:
    """Whether a reply is one such sentence, whatever it claims."""
    return bool(_STYLE.fullmatch(reply.strip()))


def tells(reply: str, answer: str) -> bool:
    """Whether a reply in this style begins with the answer that is looked for."""
    return reply.strip().lower().startswith(f"{answer.lower()}, the ")
