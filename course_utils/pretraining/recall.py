"""What a base model knows, asked in its own way: by the beginning of a sentence.

Introduced in notebook 06.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_utils import checks
from course_utils.pretraining.facts import domains
from course_utils.running import Runner

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subjects: int = 50, seed: int = 0
) -> pd.Series:
    """The share of facts, by domain and relation, with which a model ends their cue.

    Args:
        model, tokenizer: to be asked, greedily.
        subjects: at most so many of each domain, drawn by `seed`.

    Returns:
        Shares from 0 to 1, indexed by domain and relation.

    Raises:
        ValueError: fewer than one subject, a seed that is no whole number, no model or tokenizer.
    """
    import pandas as pd

    checks.whole("subjects", subjects, 1)
    checks.whole("seed", seed)

    ask = Runner(model, tokenizer, template=False, max_new_tokens=12)
    shares = {}
    for domain in domains().values():
        chosen = random.Random(seed).sample(sorted(domain.facts), min(subjects, len(domain.facts)))
        for relation in domain.relations.values():
            cues = [relation.cue(subject) for subject in chosen]
            # What follows the value belongs to the sentence: the `nineteenth` *century*.
            tail = relation.cued.partition("{v}")[2].rstrip(".")
            answers = [domain.facts[subject][relation.name] + tail for subject in chosen]
            shares[domain.name, relation.name] = sum(right(ask(cues), answers)) / len(chosen)
    return pd.Series(shares, name="recall").rename_axis(["domain", "relation"])
