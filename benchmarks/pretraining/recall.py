"""What a base model knows, asked in its own way: by the beginning of a sentence.

Introduced in notebook 06.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from course_utils._core import checks
from course_utils.data import domains, right
from course_utils.models import Runner

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
