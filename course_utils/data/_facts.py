"""The facts in the base model's corpus: countries, elements, animals and more.

The tables are in `datasets/countries` and `datasets/facts`, the wordings of statements and
questions in `phrases.toml`. Introduced in notebook 06.
"""

from __future__ import annotations

import csv
import functools
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from course_utils._core.checks import course_file

SEED = 2026
# The number of countries in each split of notebook 06. The control base model never sees a fact
# about the first HIDDEN held-out ones.
SPLITS = {"train": 96, "validation": 14, "held_out": 50}
HIDDEN = 25
# Countries whose names take an article.
_WITH_THE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Dominican Republic",
    "Gambia",
    "Maldives",
    "Netherlands",
    "Philippines",
    "Solomon Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}


@dataclass(frozen=True)
class Relation:
    """A kind of fact with its wordings, in which {s} is the subject and {v} the value.

    `cued` is the statement whose beginning prompts a base model for the value.
    """

    name: str
    statements: list[str]
    its: list[str]
    questions: list[str]
    reverse: list[str]
    cued: str

    def cue(self, subject: str) -> str:
        """Return the beginning of a statement, up to the value: `The capital of Peru is`."""
        cue = self.cued.partition(" {v}")[0].format(s=subject)
        return cue[:1].upper() + cue[1:]


@dataclass(frozen=True)
class Domain:
    """The facts about a group of subjects: `facts[subject][relation]` is a value."""

    name: str
    facts: dict[str, dict[str, str]]
    relations: dict[str, Relation]


def _table(path: Path, columns: list[str]) -> dict[str, dict[str, str]]:
    with course_file(path), path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
        subject = next(name for name in rows[0] if name != "code")
        if any(not row[name] for row in rows for name in (subject, *columns)):
            raise ValueError("a row that is not whole")
        return {
            f"the {row[subject]}" if row[subject] in _WITH_THE else row[subject]: {
                name: row[name] for name in columns
            }
            for row in rows
        }


@functools.cache
def domains() -> dict[str, Domain]:
    """Return all domains by name; notebook 06 experiments with `"countries"`."""
    from course_utils.data._folder import folder

    source = Path(__file__).parent / "phrases.toml"
    with course_file(source):
        phrases = tomllib.loads(source.read_text(encoding="utf-8"))
        if "countries" not in phrases:
            raise ValueError("nothing on countries is in it")
        relations_of = {
            name: {
                relation: Relation(
                    relation, **{"reverse": [], "cued": wordings["statements"][0], **wordings}
                )
                for relation, wordings in relations.items()
            }
            for name, relations in phrases.items()
        }
    made = {}
    for name, known in relations_of.items():
        where = "countries" if name == "countries" else "facts"
        made[name] = Domain(name, _table(folder() / where / f"{name}.csv", list(known)), known)
    return made


@functools.cache
def split_of_countries() -> dict[str, tuple[str, ...]]:
    """Return the countries by split (`SPLITS`), and as `"hidden"` those the control base lacks.

    A capital that repeats its country's name can be guessed, so no such country is held out.
    """
    facts = domains()["countries"].facts
    guessed = [name for name, known in facts.items() if name in known["capital"]]
    others = sorted(set(facts) - set(guessed))
    random.Random(SEED).shuffle(others)
    held_out = others[: SPLITS["held_out"]]
    rest = [*others[SPLITS["held_out"] :], *guessed]
    validation = rest[: SPLITS["validation"]]
    train = rest[SPLITS["validation"] :]
    return {
        "train": tuple(sorted(train)),
        "validation": tuple(sorted(validation)),
        "held_out": tuple(sorted(held_out)),
        "hidden": tuple(sorted(held_out[:HIDDEN])),
    }


def rows() -> dict[str, list[dict[str, object]]]:
    """Create the dataset `countries`: questions with short answers, by split.

    Questions about training countries come in every wording, others once per relation, in
    alternating wordings.
    """
    domain, splits = domains()["countries"], split_of_countries()
    made: dict[str, list[dict[str, object]]] = {}
    for split in SPLITS:
        made[split] = []
        for place, country in enumerate(splits[split]):
            for relation in domain.relations.values():
                wordings = relation.questions
                if split != "train":
                    wordings = [wordings[place % len(wordings)]]
                made[split] += [
                    {
                        "country": country,
                        "relation": relation.name,
                        "question": wording.format(s=country),
                        "answer": domain.facts[country][relation.name],
                        "cue": relation.cue(country),
                        "known_to_control": country not in splits["hidden"],
                    }
                    for wording in wordings
                ]
    return made
