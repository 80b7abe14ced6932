"""The data of the two lm-eval tasks in this folder: the course's questions about countries.

lm-eval imports it through `!function` in their YAML files. Introduced in notebook 08.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset, DatasetDict

from course_utils.data import load_data

CHOICES = 4


def load(**_: Any) -> DatasetDict:
    """Load the splits of `countries`, with `choices` and `right_choice` (its index) per question.

    The three wrong choices are answers about the same relation for other countries of the split,
    seeded by country and relation, so that they are always the same. A second official language of
    the country may be among them, as the dataset lists only one.

    Args:
        _: arguments that lm-eval passes to every such function, not used here.
    """
    splits = load_data("countries")
    return DatasetDict({name: _with_choices(rows) for name, rows in splits.items()})


def _with_choices(split: Dataset) -> Dataset:
    rows = split.to_list()
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["relation"], set()).add(row["answer"])
    choices, places = [], []
    for row in rows:
        draw = random.Random(f"{row['country']}, {row['relation']}")
        others = sorted(answers[row["relation"]] - {row["answer"]})
        shown = [row["answer"], *draw.sample(others, CHOICES - 1)]
        draw.shuffle(shown)
        choices.append(shown)
        places.append(shown.index(row["answer"]))
    # Columns are added in memory: `map` would leave a cache file for each call.
    return split.add_column("choices", choices).add_column("right_choice", places)
