"""Compare replies with references. Introduced in notebook 03.

`reference_scores` computes all three measures at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from course_utils._core import checks


def _checked(replies: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    for name, given in (("replies", replies), ("references", references)):
        if isinstance(given, str):
            raise ValueError(f"{name} is one text. Give lists of texts, not one text.")
    # A missing reply must not count as the reply "None".
    replies = checks.texts("replies", replies)
    references = checks.texts("references", references)
    if len(replies) != len(references) or not len(replies):
        raise ValueError(
            f"There are {len(replies)} replies and {len(references)} references; "
            "it takes one reference for each reply, and one reply at least."
        )
    return [(a.strip(), b.strip()) for a, b in zip(replies, references, strict=True)]


def exact_match(replies: Sequence[str], references: Sequence[str]) -> float:
    """Compute the share of replies, 0 to 1, that equal their references, apart from outer spaces.

    Raises:
        ValueError: the lists are empty, differ in length, or contain something else than texts.
    """
    pairs = _checked(replies, references)
    return sum(reply == reference for reply, reference in pairs) / len(pairs)


def word_accuracy(replies: Sequence[str], references: Sequence[str]) -> float:
    """Compute the share, 0 to 1, of the references' words at the same position in the reply.

    Words are separated by white space and include punctuation. A missing word shifts all later
    ones, so this is a strict measure; surplus words at the end cost nothing.

    Raises:
        ValueError: the lists are empty, differ in length, or contain something else than texts; or
            the references contain no words.
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
    """Compute the corpus-level chrF score, 0 to 100: the overlap of character n-grams, n up to 6.

    This is sacrebleu's default (chrF2: recall counts twice). Source: Popović, "chrF: character
    n-gram F-score for automatic MT evaluation", WMT 2015.

    Raises:
        ValueError: the lists are empty, differ in length, or contain something else than texts.
    """
    from sacrebleu.metrics import CHRF

    pairs = _checked(replies, references)
    return CHRF().corpus_score([a for a, _ in pairs], [[b for _, b in pairs]]).score


def reference_scores(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute `exact match`, `word accuracy` and `chrF`, by name, as a row for a table.

    Raises:
        ValueError: the lists are empty, differ in length, or contain something else than texts; or
            the references contain no words.
    """
    return {
        "exact match": exact_match(replies, references),
        "word accuracy": word_accuracy(replies, references),
        "chrF": chrf(replies, references),
    }
