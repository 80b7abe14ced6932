"""Whether test items stand in the training texts, in whole or in part: overlap in n-grams.

Who has read the answers before an exam proves nothing by passing it. Introduced in notebook 08.

The index is over the test items, which are few, and the training texts run past it one by one: the
memory depends on the test alone, and the training may be a stream of any length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

# Letters and digits of any script; an underscore is punctuation here.
_WORD = re.compile(r"[^\W_]+")
# A training text is shown up to here.
_SHOWN = 200

PALM_SHARE = 0.7
LLAMA_CLEAN, LLAMA_DIRTY = 0.2, 0.8


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation, as GPT-3's authors compare them.

    Introduced in notebook 08. Languages that put no blanks between words need a tokenizer instead.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


@dataclass
class _Item:
    """A test item, and what of it was found so far."""

    units: list[int]
    n: int  # the length of its n-grams: shorter than asked for where the item is shorter
    short: bool
    found: set[int] = field(default_factory=set)  # where an n-gram begins that training has
    longest: int = 0
    starts: int = 0  # where the longest common run begins
    exact: bool = False
    row: int | None = None
    example: str | None = None

    @property
    def share(self) -> float:
        return len(self.found) / (len(self.units) - self.n + 1)

    @property
    def covered(self) -> float:
        inside = {place + i for place in self.found for i in range(self.n)}
        return len(inside) / len(self.units)


def _texts(given: Iterable[str], name: str) -> Iterable[str]:
    """The texts one by one, refusing what is none."""
    if isinstance(given, str):
        raise ValueError(f"{name} is one text; give a list of texts, a column or a generator.")
    if isinstance(given, dict) or hasattr(given, "column_names"):
        columns = given.column_names if hasattr(given, "column_names") else list(given)
        raise ValueError(
            f"{name} is a table with the columns {columns}; give one column: "
            f'{name}["{next(iter(columns), "text")}"].'
        )
    try:
        iterator = iter(given)
    except TypeError:
        raise ValueError(
            f"{name} is a {type(given).__name__}; give a list of texts, a column or a generator."
        ) from None
    for place, text in enumerate(iterator):
        if not isinstance(text, str):
            raise ValueError(f"{name} holds a {type(text).__name__} at place {place}, not a text.")
        yield text


def _splitter(tokenizer: Any) -> Callable[[str], list[Any]]:
    if tokenizer is None:
        return words
    if not callable(tokenizer):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; a tokenizer of transformers is possible, "
            "or None to compare words."
        )
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


class _Index:
    """The n-grams of the test items: which items have each, and where."""

    def __init__(self, test: Iterable[str], n: int, split: Callable[[str], list[Any]]):
        self.split = split
        self.numbers: dict[Any, int] = {}
        self.items: list[_Item] = []
        # By length, as items shorter than n are looked for by their own.
        self.grams: dict[int, dict[tuple[int, ...], list[tuple[int, int]]]] = {}
        self.whole: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(_texts(test, "test")):
            units = [self.numbers.setdefault(unit, len(self.numbers)) for unit in split(text)]
            if not units:
                raise ValueError(f"test item {place} has no words: {text!r}.")
            length = min(n, len(units))
            self.items.append(_Item(units, length, short=len(units) < n))
            grams = self.grams.setdefault(length, {})
            for start in range(len(units) - length + 1):
                gram = tuple(units[start : start + length])
                grams.setdefault(gram, []).append((place, start))
            self.whole.setdefault(tuple(units), []).append(place)
        if not self.items:
            raise ValueError("test is empty; it takes one item at least.")

    def search(self, row: int, text: str) -> None:
        """Mark what of the items stands in a training text."""
        # A word that no item has can be part of no n-gram: -1.
        units = [self.numbers.get(unit, -1) for unit in self.split(text)]
        for place in self.whole.get(tuple(units), ()):
            self.items[place].exact = True
        for length, grams in self.grams.items():
            # Lengths of common runs that the n-gram before was the end of, by item and place.
            before: dict[tuple[int, int], int] = {}
            for end in range(length, len(units) + 1):
                now: dict[tuple[int, int], int] = {}
                for place, start in grams.get(tuple(units[end - length : end]), ()):
                    run = before.get((place, start - 1), length - 1) + 1
                    now[place, start] = run
                    item = self.items[place]
                    item.found.add(start)
                    if run > item.longest:
                        item.longest, item.starts = run, start + length - run
                        item.row = row
                        item.example = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
                before = now


def contamination(
    test: Iterable[str], train: Iterable[str], n: int = 8, tokenizer: Any = None
) -> pd.DataFrame:
    """How much of each test item stands in the training texts.

    Sources: GPT-3 (arXiv 2005.14165, appendix C) calls an item dirty that shares one n-gram with
    the training, n being up to 13 words; PaLM (arXiv 2204.02311, section 8) one of which at least
    70% of the 8-grams are found; Llama 2 (arXiv 2307.09288, section A.6) goes by the share of
    tokens in common runs of more than 10 tokens, here without its allowance for up to four that
    differ.

    What such a search cannot find: the same content in other words, or in another language.
    Introduced in notebook 08.

    Args:
        test: the items, such as questions with their answers.
        train: the training texts: a list, a column of a `datasets.Dataset`, or a generator.
        n: length of the n-grams, in words, or in tokens where there is a tokenizer.
        tokenizer: compare its tokens instead of words. A word at a text's beginning is often
            another token than the same word behind a blank.

    Returns:
        A row for each item: `words` (their number), `share` (of its n-grams that training has,
        0 to 1), `covered` (the share of its words that such n-grams cover), `longest` (common run
        with one training text, in words; 0 where it is shorter than n), `run` (that run), `exact`
        (a training text is the same, but for punctuation and capitals), `short` (shorter than n,
        so compared as a whole), `train_row` and `example` (a training text with the longest run,
        up to 200 characters; none where nothing was found).

    Raises:
        ValueError: no test items, an item without words, something else than texts, or n below 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n is {n!r}; a whole number from 1 is possible, such as 8 or 13.")
    index = _Index(test, n, _splitter(tokenizer))
    for row, text in enumerate(_texts(train, "train")):
        index.search(row, text)
    units = {number: unit for unit, number in index.numbers.items()}

    def run(item: _Item) -> str:
        found = [units[i] for i in item.units[item.starts : item.starts + item.longest]]
        return " ".join(found) if tokenizer is None else tokenizer.decode(found)

    table = pd.DataFrame(
        {
            "words": len(item.units),
            "share": item.share,
            "covered": item.covered,
            "longest": item.longest,
            "run": run(item) if item.longest else "",
            "exact": item.exact,
            "short": item.short,
            "train_row": item.row,
            "example": item.example,
        }
        for item in index.items
    )
    table["train_row"] = table["train_row"].astype("Int64")
    return table.rename_axis("item")


def contamination_summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many items of a test are contaminated, by the measures of three papers.

    Items that are shorter than n count where a training text has the whole of them. Introduced in
    notebook 08; sources as for `contamination`.

    Args:
        table: of `contamination`.

    Returns:
        A row for each measure, with `items` (their number) and `share` (of all items, 0 to 1).

    Raises:
        ValueError: a table that is not one of `contamination`, or an empty one.
    """
    needed = ("share", "covered", "exact", "short")
    missing = [name for name in needed if name not in getattr(table, "columns", ())]
    if missing:
        raise ValueError(f"The table has no column {', '.join(missing)}; give contamination's.")
    if not len(table):
        raise ValueError("The table is empty; it takes one item at least.")
    measures = {
        "a training text is the same": table["exact"],
        "shares an n-gram (GPT-3)": table["share"] > 0,
        f"{PALM_SHARE:.0%} of the n-grams found (PaLM)": table["share"] >= PALM_SHARE,
        f"under {LLAMA_CLEAN:.0%} covered: clean (Llama 2)": table["covered"] < LLAMA_CLEAN,
        f"{LLAMA_DIRTY:.0%} covered: dirty (Llama 2)": table["covered"] >= LLAMA_DIRTY,
        "shorter than n": table["short"],
    }
    return pd.DataFrame(
        {"items": int(marked.sum()), "share": float(marked.mean())} for marked in measures.values()
    ).set_index(pd.Index(list(measures), name="measure"))
