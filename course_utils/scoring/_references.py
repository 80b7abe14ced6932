"""How near replies are to references. Introduced in notebook 03.

`reference_scores` gives all three measures at once; each also stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from course_utils._core import checks


def _checked(replies: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    for name, given in (("replies", replies), ("references", references)):
        if isinstance(given, str):
            raise ValueError(f"{name} is one text. Give lists of texts, not one text.")
    # A missing reply is no reply "None".
    replies = checks.texts("replies", replies)
    references = checks.texts("references", references)
    if len(replies) != len(references) or not len(replies):
        raise ValueError(
            f"There are {len(replies)} replies and {len(references)} references; "
            "it takes one reference for each reply, and one reply at least."
        )
    return [(a.strip(), b.strip()) for a, b in zip(replies, references, strict=True)]


def exact_match(replies: Sequence[str], references: Sequence[str]) -> float:
    """The share, 0 to 1, of replies equal to their references, but for white space at the ends.

    Raises:
        ValueError: the lists are empty, not of one length, or hold something else than texts.
    """
    pairs = _checked(replies, references)
    return sum(reply == reference for reply, reference in pairs) / len(pairs)


def word_accuracy(replies: Sequence[str], references: Sequence[str]) -> float:
    """The share, 0 to 1, of the references' words that stand in the same place of the reply.

    Words are what white space separates, punctuation included. A word left out shifts all behind
    it, so this is a strict measure; words too many cost nothing.

    Raises:
        ValueError: the lists are empty, not of one length, or hold something else than
            texts; the references hold no word.
    """
    right = total = 0
    for reply, reference in _checked(replies, references):
        wanted = reference.split()
        total += len(wanted)
        right += sum(a == b for a, b in zip(reply.split(), wanted, strict=False))
    if not total:
        raise ValueError("The references hold no words.")
    return right / total


def chrf(replies: Sequence[str], references: Sequence[str]) -> float:
    """chrF of the whole list, 0 to 100: the overlap in character n-grams, n up to 6.

    sacrebleu's default (chrF2: recall counts twice). Source: Popović, "chrF: character n-gram
    F-score for automatic MT evaluation", WMT 2015.

    Raises:
        ValueError: the lists are empty, not of one length, or hold something else than texts.
    """
    from sacrebleu.metrics import CHRF

    pairs = _checked(replies, references)
    return CHRF().corpus_score([a for a, _ in pairs], [[b for _, b in pairs]]).score


def reference_scores(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`exact match`, `word accuracy` and `chrF` by name, as a row for a table.

    Raises:
        ValueError: the lists are empty, not of one length, or hold something else than
            texts; the references hold no word.
    """
    return {
        "exact match": exact_match(replies, references),
        "word accuracy": word_accuracy(replies, references),
        "chrF": chrf(replies, references),
    }
