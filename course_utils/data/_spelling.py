"""Spell words letter by letter, and back: a format that shows a model what its tokens hide.

A language model sees tokens, not letters: "smile" is one number to it. `spell` separates the
letters, so that each becomes a token of its own. Introduced in notebook 03.1.
"""

from __future__ import annotations

from course_utils._core import checks

SEPARATOR = "_"


def spell(text: str) -> str:
    """Convert `"My smile."` to `"M y _ s m i l e ."`; white space becomes the separator.

    Raises:
        BadValue: not a string, or one that contains the separator, which could not be undone.
    """
    if SEPARATOR in checks.a("text", text, str, "a text"):
        possible = f"a text without {SEPARATOR!r}, which is what parts spelled words"
        raise checks.refuse("text", text, possible)
    return f" {SEPARATOR} ".join(" ".join(word) for word in text.split())


def unspell(text: str) -> str:
    """Convert `"M y _ s m i l e ."` to `"My smile."`; any text is accepted, as from a model.

    Raises:
        BadValue: not a string.
    """
    checks.a("text", text, str, "a text")
    return " ".join("".join(word.split()) for word in text.split(SEPARATOR) if word.strip())
