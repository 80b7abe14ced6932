"""Words letter by letter, and back: a format that shows a model what its tokens hide.

A language model sees tokens, not letters: "smile" is one number to it. `spell` writes each letter
apart, so that each becomes a token of its own. Introduced in notebook 03.1.
"""

from __future__ import annotations

SEPARATOR = "_"


def spell(text: str) -> str:
    """`"My smile."` to `"M y _ s m i l e ."`; white space between words becomes the separator.

    Raises:
        ValueError: the text has the separator in it, so that it could not be joined again.
    """
    if SEPARATOR in text:
        raise ValueError(f"{text!r} holds {SEPARATOR!r}, which is what parts spelled words.")
    return f" {SEPARATOR} ".join(" ".join(word) for word in text.split())


def unspell(text: str) -> str:
    """`"M y _ s m i l e ."` to `"My smile."`; takes any text, since a model may write any."""
    return " ".join("".join(word.split()) for word in text.split(SEPARATOR) if word.strip())
