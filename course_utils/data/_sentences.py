"""The course's own English sentences: a grammar over a lexicon written for it.

`python -m course_utils data` writes them, and what is derived from them, under `datasets/`.
Introduced in notebook 03.
"""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from course_utils._core import checks
from course_utils.errors import CourseError

SPLITS = {"train": 3000, "validation": 150, "test": 200, "unseen": 200}
SEED = 2025
# The share of the lexicon that only the unseen-words split may use.
_HELD_OUT = 0.12
_HELD_OUT_LEAST = 4
# No sentence has fewer words; and so many tries without a new one mean that there is none left.
_SHORTEST = 3
_TRIES = 20_000


class Verb(NamedTuple):
    """A verb's three forms."""

    base: str
    past: str
    participle: str


def plural(noun: str) -> str:
    """A noun's plural by the regular rules; irregular ones stand in the lexicon.

    Raises:
        BadValue: no word.
    """
    checks.text("noun", noun, empty=False)
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun}s"


def article(word: str) -> str:
    """`a` or `an`, by the sound that a word begins with.

    Raises:
        BadValue: no word.
    """
    checks.text("word", word, empty=False)
    if word.startswith(("hones", "hour")):
        return "an"
    silent = word.startswith(("uni", "use", "eu", "ewe", "one"))
    return "an" if word[0] in "aeiou" and not silent else "a"


@dataclass(frozen=True)
class Lexicon:
    """The words by kind: nouns as (singular, plural), verbs in three forms, others as they are."""

    nouns: dict[str, list[tuple[str, str]]]
    verbs: dict[str, list[Verb]]
    adjectives: dict[str, list[str]]
    adverbs: dict[str, list[str]]
    prepositions: list[str]
    times: list[str]

    def forms(self) -> set[str]:
        """Every content word, in every form."""
        return {
            form
            for kinds in _groups(self).values()
            for listed in kinds.values()
            for entry in listed
            for form in (entry if isinstance(entry, tuple) else (entry,))
        }


def read_lexicon(path: Path) -> Lexicon:
    """Read `lexicon.toml`."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))

    def words(text: str) -> list[str]:
        return sorted(set(text.split()))

    def noun(entry: str) -> tuple[str, str]:
        singular, _, irregular = entry.partition("/")
        return singular, irregular or plural(singular)

    def verb(entry: str) -> Verb:
        base, past, *participle = entry.split("/")
        return Verb(base, past, participle[0] if participle else past)

    return Lexicon(
        nouns={kind: [noun(e) for e in words(text)] for kind, text in data["nouns"].items()},
        verbs={kind: [verb(e) for e in words(text)] for kind, text in data["verbs"].items()},
        adjectives={kind: words(text) for kind, text in data["adjectives"].items()},
        adverbs={kind: words(text) for kind, text in data["adverbs"].items()},
        prepositions=words(data["closed"]["prepositions_of_place"]),
        times=words(data["closed"]["times"]),
    )


def divide(lexicon: Lexicon, seed: int = SEED) -> tuple[Lexicon, Lexicon]:
    """Two lexicons without a content word in common: for the seen splits, for the unseen one.

    A word that stands in more than one entry (`cricket`, `saw`) is never held out.
    """
    rng = random.Random(seed)
    entries = {
        (group, kind): [entry if isinstance(entry, tuple) else (entry,) for entry in listed]
        for group, kinds in _groups(lexicon).items()
        for kind, listed in kinds.items()
    }
    times_listed = Counter(
        form for listed in entries.values() for entry in listed for form in set(entry)
    )
    held: set[tuple[str, ...]] = set()
    for listed in entries.values():
        unique = [entry for entry in listed if all(times_listed[form] == 1 for form in entry)]
        held |= set(rng.sample(unique, max(_HELD_OUT_LEAST, round(_HELD_OUT * len(listed)))))

    def part(side: bool) -> Lexicon:
        chosen = {
            group: {
                kind: [
                    entry
                    for entry, key in zip(listed, entries[group, kind], strict=True)
                    if (key in held) is side
                ]
                for kind, listed in kinds.items()
            }
            for group, kinds in _groups(lexicon).items()
        }
        return Lexicon(**chosen, prepositions=lexicon.prepositions, times=lexicon.times)

    return part(False), part(True)


def _groups(lexicon: Lexicon) -> dict[str, dict[str, list]]:
    """The content words of a lexicon: nouns, verbs, adjectives, adverbs."""
    return {name: getattr(lexicon, name) for name in ("nouns", "verbs", "adjectives", "adverbs")}


class _Bag:
    """Draws every entry once before any comes again, so that the whole lexicon is used."""

    def __init__(self, entries: list, rng: random.Random):
        self.entries, self.rng = entries, rng
        self.left: list = []

    def draw(self) -> Any:
        if not self.left:
            self.left = self.rng.sample(self.entries, len(self.entries))
        return self.left.pop()


class Grammar:
    """Sentences from a lexicon: one clause, sometimes two."""

    def __init__(self, lexicon: Lexicon, seed: int):
        checks.a("lexicon", lexicon, Lexicon, "a Lexicon, as lexicon() gives it")
        checks.whole("seed", seed)
        self.rng = random.Random(seed)
        self.times, self.prepositions = lexicon.times, lexicon.prepositions
        self.bags = {
            (group, kind): _Bag(entries, self.rng)
            for group, kinds in _groups(lexicon).items()
            for kind, entries in kinds.items()
        }

    def draw(self, group: str, kind: str) -> Any:
        """A word of a kind."""
        return self.bags[group, kind].draw()

    def phrase(self, kind: str, adjective: float = 0.45, plurals: float = 0.5) -> tuple[str, bool]:
        """A noun phrase of a kind, and whether it is plural."""
        one, many = self.draw("nouns", kind)
        is_plural = self.rng.random() < plurals
        noun = many if is_plural else one
        described = "being" if kind in ("person", "animal") else kind
        if self.rng.random() < adjective:
            noun = f"{self.draw('adjectives', described)} {noun}"
        owners = ["the", "the", "the", "my", "our", "their", "his", "her"]
        if kind == "place":
            owners = ["the"]
        if is_plural:
            owners += ["two", "three", "many", "some", "these", "those"]
        else:
            owners += [article(noun), "this", "that", "every"]
        return f"{self.rng.choice(owners)} {noun}", is_plural

    def subject(self) -> tuple[str, str, bool]:
        """A subject, its kind, and whether its verb is plural."""
        if self.rng.random() < 0.15:
            pronoun = self.rng.choice(["I", "you", "we", "they", "he", "she"])
            return pronoun, "person", pronoun in ("you", "we", "they")
        kind = self.rng.choice(["person", "person", "person", "animal"])
        text, is_plural = self.phrase(kind)
        return text, kind, is_plural

    def tail(self) -> str:
        """What may follow an object: a place, a time, a manner, or nothing."""
        chance = self.rng.random()
        if chance < 0.3:
            return f" {self.rng.choice(self.prepositions)} {self.phrase('place', 0.2, 0)[0]}"
        if chance < 0.4:
            return f" {self.rng.choice(self.times)}"
        if chance < 0.6:
            return f" {self.draw('adverbs', 'manner')}"
        return ""

    def clause(self, tail: bool = True) -> tuple[str, str, str]:
        """Subject, verb group and the rest: an object, or an adjective after `be`."""
        subject, kind, is_plural = self.subject()
        singular_be = "am" if subject == "I" else "is"
        if self.rng.random() < 0.15:
            be = "are" if is_plural else singular_be
            if self.rng.random() < 0.5:
                be = "were" if is_plural else "was"
            return subject, be, str(self.draw("adjectives", "being"))
        objects = ["thing"] * 4 + ["food", "food", "place", "place", "being", "plant", "vehicle"]
        if kind == "animal":
            objects = ["being"]
        target = self.rng.choice(objects)
        verb = self.draw("verbs", target)
        if target == "being":
            target = self.rng.choice(["person", "animal"])
        thing, _ = self.phrase(target)
        chance = self.rng.random()
        if chance < 0.6:
            group = verb.past
        elif chance < 0.78:
            has = "have" if is_plural or subject == "I" else "has"
            group = f"{has} {verb.participle}"
        else:
            group = f"{self.rng.choice(['will', 'can', 'must', 'should'])} {verb.base}"
        return subject, group, f"{thing}{self.tail() if tail else ''}"

    def sentence(self) -> str:
        """A sentence: a clause, or two joined by a comma and a conjunction."""
        if self.rng.random() < 0.12:
            joint = self.rng.choice([", and", ", but", ", so"])
            first, second = self.clause(tail=False), self.clause(tail=False)
            text = f"{' '.join(first)}{joint} {' '.join(second)}"
        else:
            text = " ".join(self.clause())
        return f"{text[0].upper()}{text[1:]}."

    def sentences(self, longest: int = 14) -> Iterator[str]:
        """Sentences, as many as there are, none twice, none longer than `longest` words.

        Raises:
            BadValue: `longest` is no whole number from 3.
            CourseError: twenty thousand tries have brought no new sentence.
        """
        checks.whole("longest", longest, least=_SHORTEST)
        given: set[str] = set()
        tries = 0
        while tries < _TRIES:
            tries += 1
            text = self.sentence()
            if text not in given and len(text.split()) <= longest:
                given.add(text)
                tries = 0
                yield text
        raise CourseError(
            f"There seem to be no more than {len(given):,} sentences of up to {longest} words. A "
            "larger lexicon or a larger longest= gives more."
        )


def build(lexicon: Lexicon, seed: int = SEED) -> dict[str, list[str]]:
    """The sentences of each split; those of `unseen` share no content word with the others."""
    seen, unseen = divide(lexicon, seed)
    stream = Grammar(seen, seed).sentences()
    splits = {
        name: [next(stream) for _ in range(size)]
        for name, size in SPLITS.items()
        if name != "unseen"
    }
    stream = Grammar(unseen, seed).sentences()
    splits["unseen"] = [next(stream) for _ in range(SPLITS["unseen"])]
    return splits
