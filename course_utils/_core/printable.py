"""Texts as they can be printed: nothing in them that a terminal obeys, or that nobody sees."""

from __future__ import annotations

import re

from course_utils._core import checks

# What a terminal obeys or nobody sees: control characters but for line break and tab, marks that
# turn the direction of writing, characters without width, halves of characters. The two joiners
# between letters that are not ASCII stay: emoji and Persian are written with them.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]|(?<![^\x00-\x9f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x9f])"
)


def _sign(match: re.Match) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def visible(text: str) -> str:
    """A text as it can be printed: what a terminal would obey, or nobody would see, is a sign.

    `"\\x1b[2J"`, which empties a terminal, becomes `"␛[2J"`, and the override of the direction of
    writing becomes the six characters `"\\u202e"`. Line breaks and tabs stay what they are.

    Args:
        text: what a model, a dataset or a server has said.

    Raises:
        BadValue: no text.
    """
    text = checks.a("text", text, str, "a text")
    return _UNSEEN.sub(_sign, text.replace("\r\n", "\n"))
