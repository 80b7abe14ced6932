"""The data of the two tasks beside this file: the course's questions on countries.

The harness imports it by the `!function` in their YAML files. Introduced in notebook 08.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset, DatasetDict

from course_utils.data import load_data

CHOICES = 4


def load(**_: Any) -> DatasetDict:
    """The splits of `countries`, with `choices` and `right_choice` (its place) for each question.

    The three wrong choices are answers to the same relation for other countries of the split, drawn
    by the country and the relation: the same each time, on every machine. A country may have a
    second official language among them; the dataset has one.

    Args:
        _: what the harness hands to every such function, of no use here.
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
    # Columns are added in memory: `map` would leave a file in the cache for each call.
    return split.add_column("choices", choices).add_column("right_choice", places)
