"""Data contamination: n-gram overlap between test items and training texts.

Passing an exam proves nothing if you have read the answers beforehand. Introduced in notebook 08.

The index covers the test items, which are few, and the training texts are checked against it one by
one: memory depends only on the test set, and the training set may be a stream of any length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from course_utils._core import checks

# Letters and digits of any script; an underscore is punctuation here.
_WORD = re.compile(r"[^\W_]+")
# A training text is shown up to this many characters.
_SHOWN = 200
_LONGEST_GRAM = 100
# No letter has more combining marks in a row (Unicode's Stream-Safe Text Format, UAX 15).
_ACCENTS = 30

_PALM_SHARE = 0.7
_LLAMA_CLEAN, _LLAMA_DIRTY = 0.2, 0.8


def _words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation, as the authors of GPT-3 do.

    Languages without spaces between words need a tokenizer instead.

    Raises:
        BadValue: not a string.
    """
    text = checks.a("text", text, str, "a text")
    return _WORD.findall(unicodedata.normalize("NFC", _without_heaps(text)).casefold())


def _without_heaps(text: str) -> str:
    """Limit the combining marks of each letter: normalization takes quadratic time in them."""
    if text.isascii():
        return text
    kept, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _ACCENTS:
            kept.append(character)
    return "".join(kept)


@dataclass
class _Item:
    """A test item, with what has been found of it so far."""

    units: list[int]
    n: int  # the length of its n-grams: less than requested if the item is shorter
    short: bool
    found: set[int] = field(default_factory=set)  # where n-grams found in training begin
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
        inside = end = 0
        for place in sorted(self.found):
            inside += place + self.n - max(place, end)
            end = place + self.n
        return inside / len(self.units)


def _texts(given: Iterable[str], name: str) -> Iterable[str]:
    """Yield the texts one by one; refuse anything else."""
    if isinstance(given, str | bytes):
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
        return _words
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; a tokenizer of transformers is possible, "
            "or None to compare words."
        )
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


class _Runs:
    """The substrings of a training text, to find the longest one that an item shares.

    A suffix automaton, which takes time and memory in proportion to the text.
    Source: Blumer et al., Theoretical Computer Science 40 (1985), 31.
    """

    def __init__(self, units: Iterable[int]):
        self.nexts: list[dict[int, int]] = [{}]
        self.links, self.lengths = [-1], [0]
        last = 0
        for unit in units:
            place, last = last, self._state({}, -1, self.lengths[last] + 1)
            while place >= 0 and unit not in self.nexts[place]:
                self.nexts[place][unit] = last
                place = self.links[place]
            if place < 0:
                self.links[last] = 0
                continue
            other = self.nexts[place][unit]
            if self.lengths[other] == self.lengths[place] + 1:
                self.links[last] = other
                continue
            copy = self._state(dict(self.nexts[other]), self.links[other], self.lengths[place] + 1)
            self.links[other] = self.links[last] = copy
            while place >= 0 and self.nexts[place].get(unit) == other:
                self.nexts[place][unit] = copy
                place = self.links[place]

    def _state(self, nexts: dict[int, int], link: int, length: int) -> int:
        self.nexts.append(nexts)
        self.links.append(link)
        self.lengths.append(length)
        return len(self.nexts) - 1

    def longest(self, units: list[int]) -> tuple[int, int]:
        """Return the length of the longest common run, and where it begins in `units`."""
        state = length = best = start = 0
        for place, unit in enumerate(units):
            while state and unit not in self.nexts[state]:
                state = self.links[state]
                length = self.lengths[state]
            if unit in self.nexts[state]:
                state, length = self.nexts[state][unit], length + 1
            if length > best:
                best, start = length, place + 1 - length
        return best, start


class _Index:
    """The n-grams of the test items: which items contain each, and where."""

    def __init__(self, test: Iterable[str], n: int, split: Callable[[str], list[Any]]):
        self.split = split
        self.numbers: dict[Any, int] = {}
        self.items: list[_Item] = []
        # By length, as items shorter than n are searched for as a whole.
        self.grams: dict[int, dict[tuple[int, ...], dict[int, list[int]]]] = {}
        self.whole: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(_texts(test, "test")):
            units = [self.numbers.setdefault(unit, len(self.numbers)) for unit in split(text)]
            if not units:
                raise ValueError(f"test item {place} has no words: {checks.shown(text)}.")
            length = min(n, len(units))
            self.items.append(_Item(units, length, short=len(units) < n))
            grams = self.grams.setdefault(length, {})
            for start in range(len(units) - length + 1):
                gram = tuple(units[start : start + length])
                grams.setdefault(gram, {}).setdefault(place, []).append(start)
            self.whole.setdefault(tuple(units), []).append(place)
        if not self.items:
            raise ValueError("test is empty; it takes one item at least.")

    def search(self, row: int, text: str) -> None:
        """Mark the parts of the items that occur in a training text."""
        # A word that occurs in no item cannot be part of a matching n-gram: -1.
        units = [self.numbers.get(unit, -1) for unit in self.split(text)]
        for place in self.whole.get(tuple(units), ()):
            self.items[place].exact = True
        met: dict[int, None] = {}
        shared: list[int] = []  # the words in n-grams of the items, -1 between two stretches
        for length, grams in self.grams.items():
            end = -1  # end of the stretch
            for start in range(len(units) - length + 1):
                gram = tuple(units[start : start + length])
                if (places := grams.get(gram)) is None:
                    continue
                for place, starts in places.items():
                    met[place] = None
                    if starts:
                        self.items[place].found.update(starts)
                        starts.clear()  # once marked, an n-gram need not be marked again
                if start > end:
                    shared.append(-1)
                    end = start
                shared += units[end : start + length]
                end = start + length
        if not met:
            return
        runs = _Runs(shared)
        for place in met:
            item = self.items[place]
            # A common run is no longer than the item or the text.
            if item.longest >= min(len(item.units), len(units)):
                continue
            longest, starts = runs.longest(item.units)
            if longest > item.longest:
                item.longest, item.starts = longest, starts
                item.row = row
                item.example = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def contamination_report(
    test: Iterable[str], train: Iterable[str], n: int = 8, tokenizer: Any = None
) -> pd.DataFrame:
    """Measure how much of each test item occurs in the training texts.

    Sources: GPT-3 (arXiv 2005.14165, appendix C) calls an item dirty if it shares one n-gram with
    the training data, with n up to 13 words; PaLM (arXiv 2204.02311, section 8) if at least 70% of
    its 8-grams are found; Llama 2 (arXiv 2307.09288, section A.6) uses the share of tokens in
    common runs of more than 10 tokens, here without its allowance for up to four mismatches.

    Such a search cannot find paraphrases or translations.

    Args:
        test: the items, such as questions with their answers.
        train: the training texts: a list, a column of a `datasets.Dataset`, or a generator.
        n: the length of the n-grams, 1 to 100, in words, or in tokens if a tokenizer is given.
        tokenizer: compare its tokens instead of words. A word at the beginning of a text is often
            a different token from the same word after a space.

    Returns:
        One row per item: `words` (their number), `share` (of its n-grams that occur in training,
        0 to 1), `covered` (the share of its words within such n-grams), `longest` (the longest run
        shared with one training text, in words; 0 if shorter than n), `run` (that run), `exact`
        (whether a training text is the same, except for punctuation and case), `short` (shorter
        than n, so compared as a whole), `train_row` and `example` (a training text with the longest
        run, up to 200 characters; none if nothing was found).

    Raises:
        ValueError: there are no test items, an item has no words, something is not a string, or n
            is below 1 or above 100.
    """
    checks.whole("n", n, least=1, most=_LONGEST_GRAM)
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
    """Count the contaminated test items, by the measures of three papers.

    An item shorter than n counts if a training text contains all of it. For the sources, see
    `contamination_report`.

    Args:
        table: the result of `contamination_report`.

    Returns:
        One row per measure, with `items` (their number) and `share` (of all items, 0 to 1).

    Raises:
        ValueError: `table` is empty, or is not a result of `contamination_report`.
    """
    needed = ("share", "covered", "exact", "short")
    missing = [name for name in needed if name not in getattr(table, "columns", ())]
    if missing:
        raise ValueError(
            f"The table has no column {', '.join(missing)}; give contamination_report's."
        )
    if not len(table):
        raise ValueError("The table is empty; it takes one item at least.")
    measures = {
        "a training text is the same": table["exact"],
        "shares an n-gram (GPT-3)": table["share"] > 0,
        f"{_PALM_SHARE:.0%} of the n-grams found (PaLM)": table["share"] >= _PALM_SHARE,
        f"under {_LLAMA_CLEAN:.0%} covered: clean (Llama 2)": table["covered"] < _LLAMA_CLEAN,
        f"{_LLAMA_DIRTY:.0%} covered: dirty (Llama 2)": table["covered"] >= _LLAMA_DIRTY,
        "shorter than n": table["short"],
    }
    return pd.DataFrame(
        {"items": int(marked.sum()), "share": float(marked.mean())} for marked in measures.values()
    ).set_index(pd.Index(list(measures), name="measure"))
