"""Printable text, without terminal control sequences and invisible characters."""

from __future__ import annotations

import re

from course_utils._core import checks

# Control characters except line break and tab, bidirectional marks, zero-width characters and
# lone surrogates. The two joiners between non-ASCII letters are kept: emoji and Persian need them.
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
    """Replace control characters and invisible characters of a text by visible symbols.

    `"\\x1b[2J"`, which clears a terminal, becomes `"␛[2J"`, and the right-to-left override becomes
    the six characters `"\\u202e"`. Line breaks and tabs are kept.

    Args:
        text: the text from a model, a dataset or a server.

    Raises:
        BadValue: not a string.
    """
    text = checks.a("text", text, str, "a text")
    return _UNSEEN.sub(_sign, text.replace("\r\n", "\n"))
